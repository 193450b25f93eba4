"""Passes for engines whose kernels take tiles: a section's heads are cut, what comes back is joined and merged.

Disjoint passes are merged by their log-sum-exp: w = e^{lse_a − lse}, H = Σ w (H_a − ln w).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localist_jax.attention.flash import Found, Slopes, SumsByBlock, Terms
from localist_jax.attention.tiles import Layout, Pairs, Section, WorkList


@dataclasses.dataclass(frozen=True)
class Queries:
    """Tiles of queries (R = B·N·I).

    Attributes:
      pos, seg: int32 [R, C].
      rows: ln ω of each query (or pure tile) with each key block, [R, C | 1, K]; None where blocks do not matter.
      own: the one-hot of the queries' own blocks, [R, C | 1, Kq]; only for the router's gradient.
    """

    pos: jax.Array
    seg: jax.Array
    rows: Any = None
    own: Any = None


@dataclasses.dataclass(frozen=True)
class Keys:
    """Tiles of keys (R = B·G·J).

    Attributes:
      pos, seg: int32 [R, C].
      block: int32 [R, C], or [R, 1] in pure tiles.
      blocks: K.
      alike: whether the blocks are the same for all heads.
    """

    pos: jax.Array
    seg: jax.Array
    block: jax.Array
    blocks: int
    alike: bool = True


@dataclasses.dataclass(frozen=True)
class Pass:
    """A section as kernels take it.

    Attributes:
      pairs: which pairs it attends to; with "all", pairs inside the window have ω = 1 and no block.
      window, scale: of the attention.
      work: which key tiles each query tile visits, counted within its row.
      heads: query heads of all rows, B·N.
      first: int32 [R], the first key tile of the query tile's row (b, g) among all key tiles.
      first_of_head: the same for rows (b, n), where each query head has key tiles of its own.
      measured: whether entropy and masses are wanted.
    """

    pairs: Pairs
    window: int
    scale: float
    work: WorkList
    heads: int
    first: jax.Array
    first_of_head: jax.Array
    queries: Queries
    keys: Keys
    measured: bool


def prepare(s: Section, terms: Terms, groups: int, keyed: bool = False) -> Pass:
    """The pass of a section whose keys have so many heads; `keyed` if the router's gradient is wanted."""
    (B, I, _), (_, alike, J, _), N = s.q_at.pos.shape, s.k_at.pos.shape, s.heads
    slots = slice(0, 1) if s.q_layout.pure else slice(None)  # all slots of a tile have its block
    block = s.q_at.block[..., slots]
    rows = own = None
    if s.pairs != "near":
        rows = _of_blocks(terms.log_odds, block)
        if keyed:
            own = _per_head(jax.nn.one_hot(block, terms.log_odds.shape[2], dtype=rows.dtype), N)
    at = s.k_at
    seg = jnp.where(at.seg > 0, at.seg, -1)  # padding is seen by nothing, not even by itself
    marks = (at.pos, seg, at.block[..., slots])
    pos, seg, block = (jnp.broadcast_to(x, (B, groups, *x.shape[2:])).reshape(-1, x.shape[-1]) for x in marks)
    keys = Keys(pos, seg, block, terms.log_odds.shape[3], alike == 1)
    row = jnp.arange(B * N * I) // I
    kv_row = row // N * groups + row % N // (N // groups)
    queries = Queries(_per_head(s.q_at.pos, N), _per_head(s.q_at.seg, N), rows, own)
    return Pass(
        pairs=s.pairs, window=terms.window, scale=terms.scale, work=s.listed(), heads=B * N, first=kv_row * J,
        first_of_head=row * J, queries=queries, keys=keys, measured=terms.traits is not None,
    )  # fmt: skip


def forward(kernel: Callable, s: Section, terms: Terms, q, k, v, found: Found | None) -> Found:
    """As `flash.forward`, by a kernel.

    Args:
      kernel: (pass, q, k, v) → out, lse, H in nats and mass [R, C, K] by key block, or None. Heads lie in place,
        [B, tiles, C, heads, H], and so does out; lse and H are [R, C].
      s, terms, q, k, v, found: as there.
    """
    p, ql, kl = prepare(s, terms, k.shape[2]), s.q_layout, s.k_layout
    out, lse, entropy, mass = kernel(p, ql.cut(q), kl.cut(k), kl.cut(v))
    new = Found(ql.join(out).astype(lse.dtype), _join(ql, lse, s.heads))
    if terms.traits is not None:
        kinds = jnp.moveaxis(terms.traits, -1, 0)
        masses = [
            jnp.zeros_like(lse) if mass is None else (mass * _of_blocks(x, s.q_at.block)).sum(-1)
            for x in kinds
        ]
        mass = jnp.stack([_join(ql, x, s.heads) for x in masses], -1)
        new = dataclasses.replace(new, entropy=_join(ql, entropy, s.heads), mass=mass)
    return new if found is None else _merged(found, new)


def _merged(a: Found, b: Found) -> Found:
    lse = jnp.logaddexp(a.lse, b.lse)
    safe = jnp.where(jnp.isfinite(lse), lse, 0.0)

    def weighed(x: Found) -> Found:
        gap = jnp.where(jnp.isfinite(x.lse), x.lse - safe, 0.0)
        share = jnp.where(jnp.isfinite(x.lse), jnp.exp(gap), 0.0)
        one = Found(share[..., None] * x.out, share)
        if x.entropy is None:
            return one
        return dataclasses.replace(one, entropy=share * (x.entropy - gap), mass=share[..., None] * x.mass)

    return dataclasses.replace(jax.tree.map(jnp.add, weighed(a), weighed(b)), lse=lse)


def backward(
    kernel: Callable,
    s: Section,
    terms: Terms,
    q,
    k,
    v,
    dout,
    given: dict[str, Any],
    wanted: SumsByBlock,
    slopes: Slopes | None,
) -> Slopes:
    """As `flash.backward`, by a kernel.

    Args:
      kernel: (pass, q, k, v, dout=…, lse=…, c=…, dentropy=…, dmass=…, dexpected=…, columns=…) → dq, dk, dv as their
        inputs lie; Σ_j ∂/∂ln ω by the key's block [R, C, K], or None; and Σ_i of it of each query head by the query's
        block [B·N·J, C', Kq], if the number of these tiles, `columns`, is not 0. lse, c, dentropy per nat, dexpected
        [R, C] and dmass [R, C, K] are rows of queries; the last three may be None.
      s, terms, q, k, v, dout, given, wanted, slopes: as there.
    """
    ql, kl, N = s.q_layout, s.k_layout, s.heads
    keyed = wanted == "route"
    p = prepare(s, terms, k.shape[2], keyed)
    rows: dict[str, Any] = {name: None if x is None else _cut(ql, x) for name, x in given.items()}
    if terms.traits is not None and rows["dmass"] is not None:
        kinds = jnp.moveaxis(terms.traits, -1, 0)
        each = zip(jnp.moveaxis(rows["dmass"], -1, 0), kinds, strict=True)
        rows["dmass"] = sum(x[..., None] * _of_blocks(trait, s.q_at.block) for x, trait in each)
    columns = len(q) * N * kl.count if keyed else 0
    dq, dk, dv, sums, by_query = kernel(
        p, ql.cut(q), kl.cut(k), kl.cut(v), dout=ql.cut(dout), columns=columns, **rows
    )
    new = Slopes(ql.join(dq), kl.join(dk), kl.join(dv))
    if sums is not None and wanted != "none":
        sums = _join(ql, sums, N)
        own = jax.nn.one_hot(ql.join(s.q_at.block), terms.log_odds.shape[2], dtype=sums.dtype)
        odds = jnp.einsum("BTk,BTNl->BNkl", own, sums, precision=jax.lax.Precision.HIGHEST)
        new = dataclasses.replace(new, odds=odds)
        if keyed:
            new = dataclasses.replace(new, by_key=sums, by_query=_join(kl, by_query, N))
    return new.plus(slopes)


def _of_blocks(table, block):
    """table[b, n, block[b, i, c]] as rows of tiles: [R, C, K]."""
    found = jax.vmap(lambda by_head, at: by_head[:, at])(table, block)
    return found.reshape(-1, *found.shape[3:])


def _per_head(x, heads: int):
    """[B, M, …] → [B·heads·M, …]."""
    return jnp.repeat(x[:, None], heads, 1).reshape(-1, *x.shape[2:])


def _cut(layout: Layout, x):
    """[B, T, N, …] → tiles [B·N·M, C, …]."""
    cut = jnp.moveaxis(layout.cut(x), 3, 1)
    return cut.reshape(-1, *cut.shape[3:])


def _join(layout: Layout, x, heads: int):
    """Tiles [B·N·M, C, …] → [B, T, N, …]."""
    return layout.join(jnp.moveaxis(x.reshape(-1, heads, layout.count, *x.shape[1:]), 1, 3))

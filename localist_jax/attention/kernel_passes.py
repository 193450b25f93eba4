"""Adapter for engines whose kernels take tiles: cuts a section's arrays into tiles, runs the kernel, joins the results.

Results of disjoint passes are merged by their log-sum-exp: w = e^{lse_a − lse}, H = Σ w (H_a − ln w).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from localist_jax.attention.flash import Accumulated, Gradients, SumsByBlock, Terms
from localist_jax.attention.tiles import Layout, Pairs, Section, WorkList


@dataclasses.dataclass(frozen=True)
class Queries:
    """Tiles of queries, R = B·N·I of them.

    Attributes:
      pos, seg: int32 [R, C].
      rows: ln ω of each query (or pure tile) with each key block, [R, C | 1, K]; None where blocks do not matter.
      own: one-hot of the queries' blocks, [R, C | 1, Kq]; only for the router's gradient, else None.
    """

    pos: jax.Array
    seg: jax.Array
    rows: Any = None
    own: Any = None


@dataclasses.dataclass(frozen=True)
class Keys:
    """Tiles of keys, R = B·G·J of them.

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
    """A section in the form that kernels take.

    Attributes:
      pairs: which pairs to attend to; with "all", pairs inside the window have ω = 1 whatever their blocks.
      window, scale: of the attention.
      work: which key tiles each query tile visits, numbered within its row.
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
    """Return the pass of a section whose keys have `groups` heads; `keyed` if the router's gradient is wanted."""
    (B, I, _), (_, alike, J, _), N = s.q_marks.pos.shape, s.k_marks.pos.shape, s.heads
    slots = slice(0, 1) if s.q_layout.pure else slice(None)  # all slots of a pure tile have one block
    block = s.q_marks.block[..., slots]
    rows = own = None
    if s.pairs != "near":
        rows = _of_blocks(terms.log_odds, block)
        if keyed:
            own = _per_head(jax.nn.one_hot(block, terms.log_odds.shape[2], dtype=rows.dtype), N)
    k_marks = s.k_marks
    seg = jnp.where(k_marks.seg > 0, k_marks.seg, -1)  # so that not even padding attends to padding
    marks = (k_marks.pos, seg, k_marks.block[..., slots])
    pos, seg, block = (jnp.broadcast_to(x, (B, groups, *x.shape[2:])).reshape(-1, x.shape[-1]) for x in marks)
    keys = Keys(pos, seg, block, terms.log_odds.shape[3], alike == 1)
    row = jnp.arange(B * N * I) // I
    kv_row = row // N * groups + row % N // (N // groups)
    queries = Queries(_per_head(s.q_marks.pos, N), _per_head(s.q_marks.seg, N), rows, own)
    return Pass(
        pairs=s.pairs,
        window=terms.window,
        scale=terms.scale,
        work=s.listed(),
        heads=B * N,
        first=kv_row * J,
        first_of_head=row * J,
        queries=queries,
        keys=keys,
        measured=terms.traits is not None,
    )


def forward(kernel: Callable, s: Section, terms: Terms, q, k, v, before: Accumulated | None) -> Accumulated:
    """Do what `flash.forward` does, with a kernel.

    Args:
      kernel: (pass, q, k, v) → out, lse, H in nats, and mass [R, C, K] by key block or None. Inputs and out are
        [B, tiles, C, heads, H]; lse and H are [R, C].
      s, terms, q, k, v, before: as in `flash.forward`.
    """
    p, ql, kl = prepare(s, terms, k.shape[2]), s.q_layout, s.k_layout
    out, lse, entropy, mass = kernel(p, ql.cut(q), kl.cut(k), kl.cut(v))
    new = Accumulated(ql.join(out).astype(lse.dtype), _join(ql, lse, s.heads))
    if terms.traits is not None:
        kinds = jnp.moveaxis(terms.traits, -1, 0)
        masses = [
            jnp.zeros_like(lse) if mass is None else (mass * _of_blocks(x, s.q_marks.block)).sum(-1)
            for x in kinds
        ]
        mass = jnp.stack([_join(ql, x, s.heads) for x in masses], -1)
        new = dataclasses.replace(new, entropy=_join(ql, entropy, s.heads), mass=mass)
    return new if before is None else _merged(before, new)


def _merged(a: Accumulated, b: Accumulated) -> Accumulated:
    """Merge the results of two disjoint passes."""
    lse = jnp.logaddexp(a.lse, b.lse)
    safe = jnp.where(jnp.isfinite(lse), lse, 0.0)

    def weighed(x: Accumulated) -> Accumulated:
        gap = jnp.where(jnp.isfinite(x.lse), x.lse - safe, 0.0)
        share = jnp.where(jnp.isfinite(x.lse), jnp.exp(gap), 0.0)
        one = Accumulated(share[..., None] * x.out, share)
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
    before: Gradients | None,
) -> Gradients:
    """Do what `flash.backward` does, with a kernel.

    Args:
      kernel: (pass, q, k, v, dout=…, lse=…, c=…, dentropy=…, dmass=…, dexpected=…, columns=…) → dq, dk, dv in
        the layout of q, k, v; Σ_j ∂/∂ln ω by the key's block [R, C, K], or None; and, unless `columns` is 0, its sum
        over the queries of each head by the query's block, in `columns` tiles [B·N·J, C', Kq]. lse, c, dentropy per
        nat, dexpected [R, C] and dmass [R, C, K] are per query; the last three may be None.
      s, terms, q, k, v, dout, given, wanted, before: as in `flash.backward`.
    """
    ql, kl, N = s.q_layout, s.k_layout, s.heads
    keyed = wanted == "route"
    p = prepare(s, terms, k.shape[2], keyed)
    rows: dict[str, Any] = {name: None if x is None else _cut(ql, x) for name, x in given.items()}
    if terms.traits is not None and rows["dmass"] is not None:
        kinds = jnp.moveaxis(terms.traits, -1, 0)
        each = zip(jnp.moveaxis(rows["dmass"], -1, 0), kinds, strict=True)
        rows["dmass"] = sum(x[..., None] * _of_blocks(trait, s.q_marks.block) for x, trait in each)
    columns = len(q) * N * kl.count if keyed else 0
    dq, dk, dv, sums, by_query = kernel(
        p, ql.cut(q), kl.cut(k), kl.cut(v), dout=ql.cut(dout), columns=columns, **rows
    )
    new = Gradients(ql.join(dq), kl.join(dk), kl.join(dv))
    if sums is not None and wanted != "none":
        sums = _join(ql, sums, N)
        own = jax.nn.one_hot(ql.join(s.q_marks.block), terms.log_odds.shape[2], dtype=sums.dtype)
        odds = jnp.einsum("BTk,BTNl->BNkl", own, sums, precision=jax.lax.Precision.HIGHEST)
        new = dataclasses.replace(new, odds=odds)
        if keyed:
            new = dataclasses.replace(new, by_key=sums, by_query=_join(kl, by_query, N))
    return new.plus(before)


def _of_blocks(table, block):
    """Return table[b, n, block[b, i, c]] as tiles [R, C, K]."""
    rows = jax.vmap(lambda by_head, tile_blocks: by_head[:, tile_blocks])(table, block)
    return rows.reshape(-1, *rows.shape[3:])


def _per_head(x, heads: int):
    """Repeat [B, M, …] for every head: [B·heads·M, …]."""
    return jnp.repeat(x[:, None], heads, 1).reshape(-1, *x.shape[2:])


def _cut(layout: Layout, x):
    """Cut [B, T, N, …] into tiles [B·N·M, C, …]."""
    cut = jnp.moveaxis(layout.cut(x), 3, 1)
    return cut.reshape(-1, *cut.shape[3:])


def _join(layout: Layout, x, heads: int):
    """Join tiles [B·N·M, C, …] to [B, T, N, …]."""
    return layout.join(jnp.moveaxis(x.reshape(-1, heads, layout.count, *x.shape[1:]), 1, 3))

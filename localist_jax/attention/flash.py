"""Flash attention over work lists: online softmax, tile after tile, in lanes that run side by side.

For each query i and the keys j of the tiles on its list, with z = s + ln ω:

    lse = ln Σ e^z,   out = Σ α v,   mass_l = Σ_{j in block l} α   where α = e^{z − lse}
    H = lse − Σ α z   (nats)

and backward, from the cotangents of all four,

    dz = α ∘ (dout·v + dmass_l − dH·z − c),   c = out·dout + mass·dmass − dlse − dH·(lse − H)

so that a pass over any part of the keys needs only lse, H and c of the whole. Block-dependent terms are
contractions with the keys' blocks: in tiles of mixed blocks a one-hot per key, in pure tiles one row per tile.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from localist_jax.attention.tiles import Pairs, WorkList

MASKED = -1e30  # a logit whose exponential is exactly 0; finite, so that 0·z is 0
LOWEST = -1e29  # running maxima start above it: e^(MASKED − LOWEST) = 0


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

    def __getitem__(self, index):
        """The tiles at `index` [P]."""
        parts = (None if x is None else x[index] for x in (self.rows, self.own))
        return Queries(self.pos[index], self.seg[index], *parts)


@dataclasses.dataclass(frozen=True)
class Keys:
    """Tiles of keys (R = B·G·J).

    Attributes:
      pos, seg: int32 [R, C].
      block: int32 [R, C], or [R, 1] in pure tiles.
      blocks: K.
    """

    pos: jax.Array
    seg: jax.Array
    block: jax.Array
    blocks: int

    def __getitem__(self, index):
        """The tiles at `index` [P]."""
        return Keys(self.pos[index], self.seg[index], self.block[index], self.blocks)

    @property
    def rows(self):
        """The one-hot block of each key (or pure tile), float32 [R, C | 1, K]; made where it is used."""
        return jax.nn.one_hot(self.block, self.blocks, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Pass:
    """One pass over a work list.

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

    def logits(self, q, k, at, to, live, keys_first=False):
        """z and, where the window matters, which pairs lie beyond it (None: all).

        [P, C, C'], or with `keys_first` [P, C', C]: products that contract a left factor's rows are slow on CPU, so
        the forward pass keeps queries as rows and the backward pass keys.
        """
        rows, columns = (k, q) if keys_first else (q, k)
        a, b = (to, at) if keys_first else (at, to)
        s = _matmul("pxh,pyh->pxy", rows, columns) * self.scale
        gap = (a.pos[:, :, None] - b.pos[:, None, :]) * (-1 if keys_first else 1)
        seen = (a.seg[:, :, None] == b.seg[:, None, :]) & live[:, None, None]
        far = gap >= self.window
        if self.pairs == "near":
            return jnp.where(seen & (gap >= 0) & ~far, s, MASKED), None
        bias = _exact("pxn,pyn->pxy", a.rows, b.rows)
        if self.pairs == "far":
            return jnp.where(seen & far, s + bias, MASKED), None
        return jnp.where(seen & (gap >= 0), s + jnp.where(far, bias, 0.0), MASKED), far


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _matmul(spec, a, b):
    """A product in the inputs' precision, summed in at least float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=_wide(a))


def _exact(spec, a, b):
    """A product with one-hot rows, which must not round: ln ω has to come out as it went in."""
    return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST)


def _place(x, tile):
    """Where in [B, J, C, G, H] the tiles `tile` [P] lie: their numbers count through rows, heads and tiles."""
    _, J, _, G, _ = x.shape
    return tile // (G * J), tile % J, slice(None), tile // J % G


def _fetch(x, tile):
    """The tiles at `tile`, [P, C, H]."""
    return x[_place(x, tile)]


def _entry(lists, counts, j):
    """The j-th tile of each lane's list; a lane that is done stays at its last, so that no other tile is read."""
    return jnp.take_along_axis(lists, jnp.clip(counts - 1, 0, j)[:, None], 1)[:, 0]


def by_block(weights, rows):
    """Σ_j weights[p, i, j]·rows[p, j, l]: rows of keys, or one row for all of them."""
    if rows.shape[1] == 1:
        return weights.sum(-1, keepdims=True) * rows
    return _exact("pij,pjl->pil", weights, rows)


def forward(p: Pass, q, k, v):
    """Attends.

    Args:
      p: the pass.
      q: [B, I, C, N, H]; k: [B, J, C', G, H]; v: [B, J, C', G, Hv], in tiles whose heads lie in place: nothing is
        copied but the tiles that are visited.

    Returns:
      out [B, I, C, N, Hv]; lse [R, C] (−∞ where nothing was visible); H [R, C] in nats and mass [R, C, K], or None.
    """
    C, wide = q.shape[2], _wide(q)
    groups, lanes = p.work.order.shape
    K = p.keys.blocks if p.measured and p.pairs != "near" else 0

    def group(g, outs):
        index = p.work.order[g]
        at, counts, first, lists = (x[index] for x in (p.queries, p.work.counts, p.first, p.work.lists))
        qt = _fetch(q, index)

        def step(j, state):
            top, total, acc, zsum, mass = state
            live = j < counts
            tile = first + _entry(lists, counts, j)
            to = p.keys[tile]
            z, far = p.logits(qt, _fetch(k, tile), at, to, live)
            new = jnp.maximum(top, z.max(-1))
            weight, fade = jnp.exp(z - new[..., None]), jnp.exp(top - new)
            total = fade * total + weight.sum(-1)
            acc = fade[..., None] * acc + _matmul("pqk,pkh->pqh", weight.astype(v.dtype), _fetch(v, tile))
            if p.measured:
                zsum = fade * zsum + (weight * z).sum(-1)
            if K:
                beyond = weight if far is None else jnp.where(far, weight, 0.0)
                mass = fade[..., None] * mass + by_block(beyond, to.rows)
            return new, total, acc, zsum, mass

        zero = jnp.zeros((lanes, C), wide)
        state = (
            zero + LOWEST,
            zero,
            jnp.zeros((lanes, C, v.shape[-1]), wide),
            zero,
            jnp.zeros((lanes, C, K), wide),
        )
        top, total, acc, zsum, mass = lax.fori_loop(0, counts.max(), step, state)
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        lse = jnp.where(some, top + jnp.log(safe), -jnp.inf)
        entropy = jnp.where(some, lse - zsum / safe, 0.0)
        out, *figures = outs
        out = out.at[_place(out, index)].set(acc / safe[..., None], mode="drop", unique_indices=True)
        found = (lse, entropy, mass / safe[..., None])
        return out, *(
            lax.dynamic_update_index_in_dim(a, x, g, 0) for a, x in zip(figures, found, strict=True)
        )

    figures = (jnp.zeros((groups, lanes, *shape), wide) for shape in ((C,), (C,), (C, K)))
    outs = (jnp.zeros((*q.shape[:4], v.shape[-1]), wide), *figures)
    out, *figures = lax.fori_loop(0, groups, group, outs)
    lse, entropy, mass = (x.reshape(groups * lanes, *x.shape[2:])[p.work.place] for x in figures)
    return out, lse, entropy if p.measured else None, mass if K else None


def backward(p: Pass, q, k, v, lse, c, dout, dentropy, dmass, dexpected, columns: int):
    """Gradients of a pass, given lse and c of the whole.

    Args:
      p, q, k, v: as in `forward`.
      lse, c: [R, C]; lse finite.
      dout: [B, I, C, N, Hv]; dentropy: [R, C] per nat, or None; dmass: [R, C, K], or None.
      dexpected: [R, C] of Σ α ln ω, or None: what it adds to ∂/∂ln ω besides dz.
      columns: key tiles of all query heads, B·N·J, if the keys' block sums are wanted (for the router); else 0.

    Returns:
      dq, dk, dv as their inputs; Σ_j ∂/∂ln ω by the key's block [R, C, K], or None; and, if wanted,
      Σ_i ∂/∂ln ω of each query head by the query's block [B·N·J, C', Kq].
    """
    (C, _, H), wide = q.shape[2:], _wide(q)
    groups, lanes = p.work.order.shape
    blocked = p.pairs != "near"
    keyed = blocked and columns > 0
    K = p.keys.blocks if blocked else 0
    own: Any = p.queries.own
    Kq = own.shape[-1] if keyed else 0
    k_turned = k.swapaxes(2, 4)

    def group(g, outs):
        dq, sums, dk, dv, by_query = outs
        index = p.work.order[g]
        at, counts, first, lists = (x[index] for x in (p.queries, p.work.counts, p.first, p.work.lists))
        first_of_head = p.first_of_head[index]
        qt, dout_t = (_fetch(x, index) for x in (q, dout))
        lse_t, c_t = lse[index], c[index]
        dh_t, dm_t, dx_t = (None if x is None else x[index] for x in (dentropy, dmass, dexpected))

        def step(j, state):
            dqt, row, dk, dv, by_query = state
            live = j < counts
            local = _entry(lists, counts, j)
            tile = first + local
            to = p.keys[tile]
            z, far = p.logits(qt, _fetch(k, tile), at, to, live, keys_first=True)
            alpha = jnp.exp(z - lse_t[:, None])
            push = _matmul("pkh,pqh->pkq", _fetch(v, tile), dout_t) - c_t[:, None]
            if dm_t is not None and blocked:
                by_key = _exact("pkn,pqn->pkq", to.rows, dm_t)
                push = push + (by_key if far is None else jnp.where(far, by_key, 0.0))
            if dh_t is not None:
                push = push - dh_t[:, None] * z
            dz = alpha * push
            narrow = dz.astype(k.dtype)
            dqt = dqt + _matmul("phk,pkq->phq", _fetch(k_turned, tile), narrow)
            dk = dk.at[_place(dk, tile)].add(_matmul("pkq,pqh->pkh", narrow, qt))
            dv = dv.at[_place(dv, tile)].add(_matmul("pkq,pqh->pkh", alpha.astype(v.dtype), dout_t))
            if blocked:
                dbias = dz if dx_t is None else dz + dx_t[:, None] * alpha
                beyond = dbias if far is None else jnp.where(far, dbias, 0.0)
                row = row + by_block(beyond.swapaxes(1, 2), to.rows)
                if keyed:
                    by_query = by_query.at[first_of_head + local].add(by_block(beyond, own[index]))
            return dqt, row, dk, dv, by_query

        state = (jnp.zeros((lanes, H, C), wide), jnp.zeros((lanes, C, K), wide), dk, dv, by_query)
        dqt, row, *rest = lax.fori_loop(0, counts.max(), step, state)
        dqt = dqt.swapaxes(1, 2) * p.scale
        dq = dq.at[_place(dq, index)].set(dqt, mode="drop", unique_indices=True)
        return dq, lax.dynamic_update_index_in_dim(sums, row, g, 0), *rest

    outs = (
        jnp.zeros(q.shape, wide),
        jnp.zeros((groups, lanes, C, K), wide),
        jnp.zeros(k.shape, wide),
        jnp.zeros(v.shape, wide),
        jnp.zeros((columns, k.shape[2], Kq), wide),
    )
    dq, sums, dk, dv, by_query = lax.fori_loop(0, groups, group, outs)
    sums = sums.reshape(groups * lanes, C, K)[p.work.place]
    return dq, dk * p.scale, dv, sums if blocked else None, by_query if keyed else None

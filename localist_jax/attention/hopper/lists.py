"""Work lists of the kernels: rows, the tiles that each row visits, and facts about each visit."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from localist_jax.attention.kernel_passes import Pass
from localist_jax.attention.tiles import work_list

GROUPS, ROWS = 2, 64  # number of warpgroups that compute, and of positions in each
TILE = GROUPS * ROWS
FULL = 1 << 30  # bit of a list entry: all pairs are visible and beyond the window, so nothing is masked
LOG2E = math.log2(math.e)
# Sizes (batch, heads, tiles per head): tiles are numbered through all of them, in this order.
Side = tuple[int, int, int]


def is_mixed(p: Pass) -> bool:
    """Return whether ln ω differs within a tile."""
    return p.queries.rows is not None and p.queries.rows.shape[1] > 1


def is_pure(p: Pass) -> bool:
    """Return whether ln ω is one number in each pair of tiles."""
    return p.queries.rows is not None and p.queries.rows.shape[1] == 1


@dataclasses.dataclass(frozen=True)
class Lists:
    """The rows of a kernel and the tiles that each visits.

    Attributes:
      order: int32 [rows], rows sorted by decreasing length of their lists.
      counts: int32 [rows], number of entries of each list.
      tile: int32 [rows], the tile that each row reads its own arrays from.
      entries: int32 [rows, J], tiles to visit, with the bit FULL.
      bias: float32 [rows, J], ln ω of each entry to base 2; None unless tiles are pure.
    """

    order: jax.Array
    counts: jax.Array
    tile: jax.Array
    entries: jax.Array
    bias: jax.Array | None

    @classmethod
    def of_queries(cls, p: Pass):
        """Return the lists of a pass, with query tiles as rows."""
        R, a, b = len(p.work.lists), p.queries, p.keys
        tile = p.first[:, None] + p.work.lists
        seg, lowest, highest = a.seg[:, :1], b.seg.min(-1)[tile], b.seg.max(-1)[tile]
        alike = (seg > 0) & (a.seg == seg).all(-1, keepdims=True) & (lowest == seg) & (highest == seg)
        full = alike & (a.pos.min(-1)[:, None] - b.pos.max(-1)[tile] >= p.window) & (p.pairs != "near")
        bias = None
        if is_pure(p):
            bias = LOG2E * jnp.take_along_axis(a.rows[:, 0], b.block[:, 0][tile], 1)
        order = p.work.order.reshape(-1)[:R]
        return cls(
            order, p.work.counts[:R], jnp.arange(R, dtype=jnp.int32), jnp.where(full, tile | FULL, tile), bias
        )

    def of_keys(self, p: Pass):
        """Return the same visits with key tiles of each query head as rows, [B·N·J, I]."""
        (R, J), S = p.work.lists.shape, len(p.keys.pos)
        I, heads = R // p.heads, p.heads * J // S
        row, live = jnp.arange(R)[:, None], jnp.arange(J) < p.work.counts[:R, None]
        place = jnp.where(live, p.work.lists, J)

        def turned(x):
            """Transpose values of list entries [R, J] to [B·N, J, I]."""
            by_key = jnp.zeros((R, J + 1), x.dtype).at[row, place].set(x)[:, :J]
            return by_key.reshape(-1, I, J).swapaxes(1, 2)

        work = work_list(turned(live)[None], 1)
        rows = jnp.arange(p.heads * J, dtype=jnp.int32)
        tile, queries = rows // J // heads * J + rows % J, rows[:, None] // J * I + work.lists
        full = jnp.take_along_axis(turned(self.entries & FULL).reshape(-1, I), work.lists, 1)
        bias = LOG2E * p.queries.rows[queries, 0, p.keys.block[tile]] if is_pure(p) else None
        return Lists(
            work.order.reshape(-1)[: len(rows)], work.counts[: len(rows)], tile, queries | full, bias
        )

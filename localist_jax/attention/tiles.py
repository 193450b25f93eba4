"""Tiles of attention: which positions share a tile, and which key tiles each query tile has to visit.

Whether a pair is open depends only on (head, query block, key block). There are two layouts. *In order*: positions
stay where they are, and causality skips half of the tiles. *By block*: positions are gathered block by block, and
each block is padded to whole tiles, so that a tile is pure (holds one block) and closed pairs of blocks are skipped.
A tile is visited if it holds a visible, open pair; tiles that are not visited are never read.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from localist_jax.types import struct

Pairs = Literal[
    "all", "far", "near"
]  # a pass attends to every pair, those beyond the window, or those inside it
FAR = 1 << 30  # more than any position


@struct
class Marks:
    """Block, position and segment (0: empty) of positions [B, T], or of positions in tiles [B, M, C]; int32.

    Marks of keys have one more axis after the batch: filings, or in tiles heads (1 where all heads are alike).
    """

    block: chex.Array
    pos: chex.Array
    seg: chex.Array

    def blocks_present(self, count: int) -> Bool[Array, "*tiles K"]:
        """Return whether each tile holds each block."""
        present = (self.block[..., None] == jnp.arange(count)) & (self.seg > 0)[..., None]
        return present.any(-2)


@struct
class Filed:
    """The marks of keys under each filing, and the filing that each key/value head uses.

    Attributes:
      marks: int32 [B, F, S].
      filing: int32 [G].
    """

    marks: Marks
    filing: chex.Array

    @property
    def ways(self) -> int:
        """The number of filings, F."""
        return self.marks.pos.shape[1]

    def each(self) -> Marks:
        """Return the marks with filings as separate rows, [B·F, S]."""
        return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), self.marks)

    def by_head(self, x: jax.Array) -> jax.Array:
        """Select from rows of filings [B·F, …] those of each head: [B, G, …]; [B, 1, …] if there is one filing."""
        x = x.reshape(-1, self.ways, *x.shape[1:])
        return x if self.ways == 1 else x[:, self.filing]


@dataclasses.dataclass(frozen=True)
class Layout:
    """Positions of each row cut into M tiles of C slots.

    Attributes:
      index: int32 [B, M, C], the position in each slot; an empty slot has any position of the row. [B, G, M, C] where
        each head has its own tiles.
      filled: bool [B, M, C], whether a slot holds a position.
      length: T, the number of positions.
      pure: whether all positions of a tile have the same block; else tiles hold neighbours.
      slot: int32 [B, T] or [B, G, T], the slot (in 0 … M·C−1) of each position; None unless tiles are pure.
      overlap: how many slots at the beginning of a tile repeat positions of the tiles before it; 0 in pure tiles.
    """

    index: jax.Array
    filled: jax.Array
    length: int
    pure: bool = False
    slot: Any = None
    overlap: int = 0

    @property
    def count(self) -> int:
        """The number of tiles, M."""
        return self.index.shape[-2]

    @property
    def size(self) -> int:
        """The number of slots in a tile, C."""
        return self.index.shape[-1]

    def for_heads(self, filed: Filed) -> Layout:
        """Return the layout of keys [B, S, G, …], where this one is of the rows `filed.each()`."""
        if filed.ways == 1:
            return self
        index, filled = (x.reshape(-1, filed.ways, *x.shape[1:]) for x in (self.index, self.filled))
        if not self.pure:  # tiles of neighbours are the same under every filing
            return dataclasses.replace(self, index=index[:, 0], filled=filled[:, 0])
        index, filled, slot = (filed.by_head(x) for x in (self.index, self.filled, self.slot))
        return dataclasses.replace(self, index=index, filled=filled, slot=slot)

    def cut(self, x: jax.Array) -> jax.Array:
        """Cut [B, T, …] into tiles [B, M, C, …]; contents of empty slots have no meaning, but are finite where x is."""
        if self.index.ndim == 4:
            return jax.vmap(lambda row, index: jax.vmap(_picked, (1, 0), 2)(row, index))(x, self.index)
        if self.pure:
            return jax.vmap(lambda row, index: row[index])(x, self.index)
        (B, M, C), T = self.index.shape, x.shape[1]
        size = C - self.overlap
        apart = _padded(x, 0, M * size - T).reshape(B, M, size, *x.shape[2:])
        before = [
            _padded(apart[:, : max(0, M - s)], min(s, M), 0) for s in range(-(-self.overlap // size), 0, -1)
        ]
        return jnp.concatenate([*before, apart], 2)[:, :, -C:]

    def mark(self, marks: Marks) -> Marks:
        """Cut marks into tiles; empty slots get segment 0."""
        block, pos, seg = (self.cut(x) for x in (marks.block, marks.pos, marks.seg))
        return Marks(block=block, pos=pos, seg=jnp.where(self.filled, seg, 0))

    def join(self, tiles: jax.Array) -> jax.Array:
        """Undo `cut`: [B, M, C, …] to [B, T, …]; where tiles overlap, a position gets the sum of its slots."""
        B, M, C, *rest = tiles.shape
        if self.index.ndim == 4:
            flat = tiles.reshape(B, M * C, *rest)
            return jax.vmap(lambda row, slot: jax.vmap(_picked, (1, 0), 1)(row, slot))(flat, self.slot)
        if self.pure:
            return jax.vmap(lambda row, slot: row[slot])(tiles.reshape(B, M * C, *rest), self.slot)
        size = C - self.overlap
        earlier = -(-self.overlap // size)
        parts = jnp.pad(tiles, [(0, 0), (0, 0), (earlier * size - self.overlap, 0), *[(0, 0)] * len(rest)])
        parts = parts.reshape(B, M, earlier + 1, size, *rest)
        total = parts[:, :, earlier]
        for s in range(1, min(earlier, M - 1) + 1):
            total += _padded(parts[:, s:, earlier - s], 0, s)
        return total.reshape(B, M * size, *rest)[:, : self.length]


def _picked(row: jax.Array, index: jax.Array) -> jax.Array:
    return row[index]


def _padded(x: jax.Array, before: int, after: int) -> jax.Array:
    """Pad axis 1 with zeros."""
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))


def in_order(batch: int, length: int, size: int, overlap: int = 0) -> Layout:
    """Return tiles of `size` neighbouring positions, each preceded by the `overlap` positions before them."""
    count = -(-length // size)
    index = jnp.arange(count, dtype=jnp.int32)[:, None] * size + jnp.arange(-overlap, size, dtype=jnp.int32)
    index = jnp.broadcast_to(index, (batch, *index.shape))
    filled = (index >= 0) & (index < length)
    return Layout(jnp.clip(index, 0, length - 1), filled, length, overlap=overlap)


def by_block(block: Int[Array, "B T"], blocks: int, size: int) -> Layout:
    """Return tiles of positions of the same block, in order, by a counting sort.

    The first tile of a block is the partly filled one, since causality leaves it the fewest keys to visit.

    Args:
      block: block of each position, in 0 … blocks−1.
      blocks: number of blocks.
      size: slots of a tile; each block is padded to whole tiles.
    """
    T = block.shape[1]
    tiles = most_tiles(T, blocks, size)

    def one(row):
        member = jax.nn.one_hot(row, blocks, dtype=jnp.int32, axis=0)  # [K, T]
        rank = jnp.take_along_axis(jnp.cumsum(member, 1), row[None], 0)[0] - 1
        count = member.sum(1)
        room = -(-count // size) * size
        start = jnp.cumsum(room) - count
        slot = start[row] + rank
        index = jnp.full(tiles * size, -1, jnp.int32).at[slot].set(jnp.arange(T, dtype=jnp.int32))
        return index.reshape(tiles, size), slot

    index, slot = jax.vmap(one)(block)
    filled = index >= 0
    index = jnp.maximum(0, jnp.where(filled, index, index[..., -1:]))  # a tile's last slot is filled
    return Layout(index=index, filled=filled, length=T, pure=True, slot=slot)


def most_tiles(length: int, blocks: int, size: int) -> int:
    """Return the largest number of tiles that `length` positions in `blocks` blocks can fill."""
    return max(1, (length + min(blocks, length) * (size - 1)) // size)


def visited(
    q: Marks, k: Marks, is_open: Bool[Array, "#B N Kq K"], window: int, pairs: Pairs
) -> Bool[Array, "B N I J"]:
    """Return which key tiles (J) each query tile (I) of each head has to read: a superset of the open pairs' tiles.

    Places are compared as (segment, position): visible keys lie between the start of the query's segment and itself.

    Args:
      q: marks [B, I, C].
      k: marks [B, 1, J, C] or, where key/value heads differ, [B, G, J, C].
      is_open: which rows of queries may read which blocks of keys beyond the window.
      window: keys nearer than this are read whatever `is_open` says.
      pairs: which pairs the pass attends to.
    """
    B, N = q.pos.shape[0], is_open.shape[1]
    last_key, first_key = _extreme(k, k.pos, last=True), _extreme(k, k.pos, last=False)

    def seen(nearest: int, farthest: int):
        """Return which tiles hold a pair whose distance is in nearest … farthest."""
        highest = _extreme(q, q.pos - nearest, last=True)
        lowest = _extreme(q, jnp.maximum(0, q.pos - farthest), last=False)
        starts = _not_after([x[:, :, None] for x in first_key], [x[:, None, :, None] for x in highest])
        ends = _not_after([x[:, None, :, None] for x in lowest], [x[:, :, None] for x in last_key])
        return per_query_head(starts & ends)

    def per_query_head(x: jax.Array) -> jax.Array:
        return x if x.shape[1] == 1 else jnp.repeat(x, N // x.shape[1], 1)

    near: Any = False
    far: Any = False
    if pairs != "far":  # the window is open whatever the gates say
        near = seen(0, window - 1)
    if pairs != "near":
        rows = q.blocks_present(is_open.shape[2]).astype(jnp.float32)
        columns = k.blocks_present(is_open.shape[3]).astype(jnp.float32)
        table = jnp.broadcast_to(is_open, (B, *is_open.shape[1:])).astype(jnp.float32)
        readable = jnp.einsum("BIk,BNkl->BNIl", rows, table)
        columns = jnp.broadcast_to(per_query_head(columns), (B, N, *columns.shape[2:]))
        far = (jnp.einsum("BNIl,BNJl->BNIJ", readable, columns) > 0) & seen(window, FAR)
    return jnp.broadcast_to(near | far, (B, N, q.pos.shape[1], k.pos.shape[2]))


def _extreme(marks: Marks, pos: Int[Array, "B M C"], last: bool):
    """Return each tile's last (or first) place, as (segment, position); for empty tiles one that nothing reaches."""
    far = jnp.int32(-FAR if last else FAR)
    pick = jnp.max if last else jnp.min
    filled = marks.seg > 0
    seg = pick(jnp.where(filled, marks.seg, far), -1)
    return seg, pick(jnp.where(filled & (marks.seg == seg[..., None]), pos, far), -1)


def _not_after(a, b):
    """Return whether place a ≤ place b."""
    return (a[0] < b[0]) | ((a[0] == b[0]) & (a[1] <= b[1]))


def in_step(q: Marks, k: Marks) -> Bool[Array, ""]:
    """Return whether queries [B, T] and keys [B, F, T] have the same places, each later than the one before it."""
    alike = ((q.pos[:, None] == k.pos) & (q.seg[:, None] == k.seg)).all()
    (seg, after), (pos, later) = ((x[..., :-1], x[..., 1:]) for x in (k.seg, k.pos))
    return alike & ((after == 0) | ((seg > 0) & ((seg < after) | ((seg == after) & (pos < later))))).all()


@dataclasses.dataclass(frozen=True)
class WorkList:
    """The key tiles that each query tile visits; query tiles with lists of similar length run side by side in P lanes.

    Attributes:
      lists: int32 [R, J], for each of R = B·N·I query tiles, first the key tiles to visit, then padding.
      counts: int32 [R + P], length of each list; 0 for padding.
      order: int32 [groups, P], query tiles in the order in which they run; R and above are padding.
      groups: number of groups with anything to visit.
    """

    lists: jax.Array
    counts: jax.Array
    order: jax.Array
    groups: Any


def work_list(visit: Bool[Array, "B N I J"], lanes: int) -> WorkList:
    """Compact a map of visits into lists, and sort query tiles by the length of their lists."""
    rows, J = visit.size // visit.shape[-1], visit.shape[-1]
    lanes = min(lanes, rows)
    flat = visit.reshape(rows, J)
    rank = jnp.where(flat, jnp.cumsum(flat, -1) - 1, J)
    row = jnp.arange(rows)[:, None]
    tiles = jnp.broadcast_to(jnp.arange(J, dtype=jnp.int32), flat.shape)
    lists = jnp.zeros((rows, J), jnp.int32).at[row, rank].set(tiles, mode="drop")
    groups = -(-rows // lanes)
    counts = jnp.pad(flat.sum(-1, dtype=jnp.int32), (0, groups * lanes - rows))
    order = jnp.argsort(-counts, stable=True).astype(jnp.int32).reshape(groups, lanes)
    return WorkList(lists, counts, order, (counts[order] > 0).any(-1).sum())


def one_to_one(batch: int, heads: int, count: int, lanes: int) -> WorkList:
    """Return the work list in which query tile i of every head visits key tile i alone."""
    rows = batch * heads * count
    lanes = min(lanes, rows)
    groups = -(-rows // lanes)
    order = jnp.arange(groups * lanes, dtype=jnp.int32)
    lists = jnp.tile(jnp.arange(count, dtype=jnp.int32), batch * heads)[:, None]
    return WorkList(lists, (order < rows).astype(jnp.int32), order.reshape(groups, lanes), groups)


@dataclasses.dataclass(frozen=True)
class Section:
    """One pass of a plan: which pairs, and in which tiles.

    Attributes:
      pairs: which pairs the pass attends to.
      q_layout, k_layout: the tiles of queries and of keys.
      q_marks, k_marks: marks in tiles, [B, I, C] and [B, 1 | G, J, C].
      visit: bool [B, N, I, J], the key tiles that each query tile visits; None: query tile i visits key tile i.
      heads, lanes: number of query heads, and of query tiles that run side by side.
      whole: whether the visited tiles hold every pair; if not, the cost is infinite, so that the plan is not taken.
    """

    pairs: Pairs
    q_layout: Layout
    k_layout: Layout
    q_marks: Marks
    k_marks: Marks
    visit: Any
    heads: int
    lanes: int
    whole: Any = True

    def without_blocks(self) -> Section:
        """Return the section with all positions in block 0."""
        q_marks, k_marks = (
            dataclasses.replace(x, block=jnp.zeros_like(x.block)) for x in (self.q_marks, self.k_marks)
        )
        return dataclasses.replace(self, q_marks=q_marks, k_marks=k_marks)

    def listed(self) -> WorkList:
        """Return the work list."""
        if self.visit is None:
            return one_to_one(len(self.q_marks.pos), self.heads, self.q_layout.count, self.lanes)
        return work_list(self.visit, self.lanes)

    @property
    def cost(self):
        """The number of pairs in the tiles to visit."""
        query_tiles = len(self.q_marks.pos) * self.heads * self.q_layout.count
        visits = query_tiles if self.visit is None else self.visit.sum(dtype=jnp.float32)
        return jnp.where(self.whole, visits * self.q_layout.size * self.k_layout.size, jnp.inf)

"""The KV cache: keys and values in pages, each of which belongs to one block.

Perception layers keep one slot per position. Localist layers share a paged cache: a position goes to the current page
of its block, and a full page is followed by the next free one. So the keys of a block are adjacent, and at λ=1 a step
reads only the pages of open blocks. Where heads file keys in two ways, pages are allocated once for each filing, and a
key/value head keeps its keys in the pages of its own filing.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from localist_jax import config
from localist_jax.attention.tiles import most_tiles
from localist_jax.parallel.sharding import mesh_axes, on_each
from localist_jax.types import struct

LONG_CONTEXT = 2048  # positions from which pages hold 64 positions instead of 16


def page_size(context: int, blocks: int) -> int:
    """Return the number of positions in a page: small pages waste less on short blocks, large ones read faster."""
    return 64 if context >= max(LONG_CONTEXT, 64 * blocks) else 16


def _put(old, new, slot):
    """Write `new` [B, T, …] into slots [B, T], or [B, T, G, …] into [B, T, G]; slots past the end are dropped."""
    rows = jnp.arange(len(old)).reshape(-1, *[1] * (slot.ndim - 1))
    heads = [jnp.arange(size) for size in slot.shape[2:]]
    return old.at[(rows, slot, *heads)].set(new.astype(old.dtype), mode="drop")


@struct
class LayerCache:
    """Keys and values of one layer, [B, S, G, H] (with a leading layer axis outside the scan)."""

    k: chex.Array
    v: chex.Array

    @classmethod
    def create(cls, shape: tuple[int, ...], dtype: str) -> LayerCache:
        """Return an empty cache."""
        return cls(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

    def write(
        self,
        k: Float[Array, "B T G H"],
        v: Float[Array, "B T G H"],
        slot: Int[Array, "B T"] | Int[Array, "B T G"],
        mesh: jax.sharding.Mesh | None = None,
    ) -> LayerCache:
        """Return a cache with these keys and values added; slots past its end are dropped, and may differ by head.

        On a mesh each device writes its own part, since the TPU compiler (jaxlib 0.10.2) aborts on the global scatter
        beside axes that are mapped by hand.
        """
        if mesh is None or mesh.size == 1:
            return dataclasses.replace(self, k=_put(self.k, k, slot), v=_put(self.v, v, slot))
        batch, heads = mesh_axes("batch", mesh, k.shape[0]), mesh_axes("kv_heads", mesh, k.shape[2])
        by_head = PartitionSpec(batch or None, None, heads or None)
        rows = PartitionSpec(batch or None) if slot.ndim < 3 else by_head
        put = on_each(_put, mesh, (by_head, by_head, rows), by_head)
        return dataclasses.replace(self, k=put(self.k, k, slot), v=put(self.v, v, slot))


@struct
class RowsCache:
    """Keys and values of one layer for `attention.single`: a matrix [S, G·H] for each request."""

    k: tuple[chex.Array, ...]
    v: tuple[chex.Array, ...]

    @classmethod
    def of(cls, k: Float[Array, "B S G H"], v: Float[Array, "B S G H"]) -> RowsCache:
        """Return the cache with these keys and values."""
        return cls(k=tuple(k.reshape(*k.shape[:2], -1)), v=tuple(v.reshape(*v.shape[:2], -1)))

    def write(
        self,
        k: Float[Array, "B 1 G H"],
        v: Float[Array, "B 1 G H"],
        slot: Int[Array, "B 1"] | Int[Array, "B 1 G"],
        mesh: jax.sharding.Mesh | None = None,
    ) -> RowsCache:
        """Return a cache that also holds these keys and values; slots past its end are dropped."""
        del mesh
        return RowsCache(k=self._written(self.k, k, slot), v=self._written(self.v, v, slot))

    @staticmethod
    def _written(rows, new, slot):
        """Write slice by slice, which works in place, where a scatter would copy."""
        G, H = new.shape[2:]
        parts = 1 if slot.ndim == 2 else G  # heads with separate slots
        slot = slot.reshape(len(new), parts)
        new = new.astype(rows[0].dtype).reshape(len(new), parts, 1, G // parts * H)

        def one(row, new, slot):
            for part in range(parts):
                begin = slot[part], part * new.shape[-1]
                here = lax.dynamic_slice(row, begin, new[part].shape)
                kept = jnp.where(slot[part] < len(row), new[part], here)
                row = lax.dynamic_update_slice(row, kept, begin)
            return row

        return tuple(one(*each) for each in zip(rows, new, slot, strict=True))


@struct
class Cache:
    """The cache of a batch of requests, of capacity S positions in Z ≥ S slots.

    Attributes:
      perception: keys and values of the perception layers, [L, B, S, G, H]; slots are positions. A tuple of the
        `RowsCache` of each layer if the cache is `unrolled`.
      localist: keys and values of the localist layers, [L, B, Z, G, H], in pages.
      seen: int32 [B, S], segment of each position; 0 where nothing was read yet.
      routed: int32 [B, S], the block that the router assigned to each position.
      block, position, segment: int32 [B, Z], contents of each slot; segment 0 where it is empty.
      filled: int32 [B, K], number of positions of each block so far.
      page: int32 [B, K], the current page of each block.
      pages: int32 [B], number of pages in use.

    Where heads file keys in F > 1 ways, the fields from `block` on are kept for each filing: [B, F, …].
    """

    perception: Any
    localist: Any
    seen: chex.Array
    routed: chex.Array
    block: chex.Array
    position: chex.Array
    segment: chex.Array
    filled: chex.Array
    page: chex.Array
    pages: chex.Array

    @classmethod
    def create(cls, model: config.Model, batch: int, capacity: int) -> Cache:
        """Return an empty cache for `batch` requests of at most `capacity` positions."""
        K, size = model.block_capacity, page_size(capacity, model.block_capacity)
        filings = () if model.filings == 1 else (model.filings,)
        slots = most_tiles(capacity, K, size) * size
        row = (model.kv_heads, model.head_size)

        def ints(*shape):  # separate buffers, so that the whole cache can be donated
            return jnp.zeros((batch, *shape), jnp.int32)

        return cls(
            perception=LayerCache.create((model.router_layer, batch, capacity, *row), model.dtype),
            localist=LayerCache.create((model.layers - model.router_layer, batch, slots, *row), model.dtype),
            seen=ints(capacity),
            routed=ints(capacity),
            block=ints(*filings, slots),
            position=ints(*filings, slots),
            segment=ints(*filings, slots),
            filled=ints(*filings, K),
            page=ints(*filings, K),
            pages=ints(*filings),
        )

    def unrolled(self) -> Cache:
        """Return the cache with the keys and values of each layer and request in separate arrays."""

        def split(layers: LayerCache) -> tuple[RowsCache, ...]:
            return tuple(RowsCache.of(k, v) for k, v in zip(layers.k, layers.v, strict=True))

        return dataclasses.replace(self, perception=split(self.perception), localist=split(self.localist))

    @property
    def capacity(self) -> int:
        """The number of positions that fit."""
        return self.seen.shape[1]

    def at_positions(
        self, positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[Cache, Int[Array, "B T"]]:
        """Return the cache updated with these positions, and their slots in the perception layers."""
        slot = jnp.where(segments > 0, positions, self.capacity)
        return dataclasses.replace(self, seen=_put(self.seen, segments, slot)), slot

    def with_routed(
        self, block: Int[Array, "B T"], positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[Cache, Int[Array, "B T"]]:
        """Return the cache updated with these positions' blocks, and the block of the position before each."""
        slot = jnp.where(segments > 0, positions, self.capacity)
        routed = _put(self.routed, block, slot)
        before = jnp.take_along_axis(routed, jnp.maximum(positions - 1, 0), 1)
        return dataclasses.replace(self, routed=routed), before

    def in_pages(
        self,
        block: Int[Array, "B T"] | Int[Array, "B F T"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> tuple[Cache, Int[Array, "B T"] | Int[Array, "B F T"]]:
        """Allocate a slot for each position on a page of its block; padding (segment 0) gets none.

        Returns:
          The cache updated with block, position and segment of the slots, and the slots (Z: none), by filing.
        """
        size = page_size(self.capacity, self.filled.shape[-1])
        pages = Pages(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Pages)})
        book = partial(Pages.book, size=size)
        if block.ndim == 3:
            book = jax.vmap(book, in_axes=(1, 1, None, None), out_axes=1)
        pages, slot = book(pages, block, positions, segments)
        return dataclasses.replace(self, **vars(pages)), slot


@struct
class Pages:
    """The pages of a cache under one filing; fields as in `Cache`."""

    block: chex.Array
    position: chex.Array
    segment: chex.Array
    filled: chex.Array
    page: chex.Array
    pages: chex.Array

    def book(self, block, positions, segments, size: int) -> tuple[Pages, Int[Array, "B T"]]:
        """Do what `Cache.in_pages` does, for one filing and in pages of this size."""
        K, Z = self.filled.shape[1], self.block.shape[1]
        member = jax.nn.one_hot(block, K, dtype=jnp.int32) * (segments > 0)[..., None]

        def by_position(table):  # [B, K] → [B, T]
            return jnp.take_along_axis(table, block, 1)

        new = member.sum(1)
        held = -(-self.filled // size)
        wanted = -(-(self.filled + new) // size) - held
        first = self.pages[:, None] + jnp.cumsum(wanted, 1) - wanted  # page that each block is given
        nth = (
            by_position(self.filled)
            + jnp.take_along_axis(jnp.cumsum(member, 1), block[..., None], 2)[..., 0]
            - 1
        )
        ahead = nth // size - by_position(held)
        page = jnp.where(ahead < 0, by_position(self.page), by_position(first) + ahead)
        slot = jnp.where(segments > 0, page * size + nth % size, Z)
        places = ((self.block, block), (self.position, positions), (self.segment, segments))
        put = [_put(old, value, slot) for old, value in places]
        booked = Pages(
            block=put[0],
            position=put[1],
            segment=put[2],
            filled=self.filled + new,
            page=jnp.where(wanted > 0, first + wanted - 1, self.page),
            pages=self.pages + wanted.sum(1),
        )
        return booked, slot

"""The KV cache: what was read so far, in pages that belong to one block each.

Perception layers keep one slot per position. Localist layers share a paged cache: a position goes to the
current page of its block, and a full page is followed by the next free one. So the keys of a block lie
together, and at λ=1 a step reads the pages of the open blocks and no others.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from localist_jax import config
from localist_jax.attention.tiles import most_tiles
from localist_jax.parallel.rules import mesh_axes, on_each
from localist_jax.types import struct

LONG = 2048  # contexts from here on have pages of 64 positions, shorter ones of 16


def page_size(context: int) -> int:
    """Positions of one page. Small pages waste less of a short context, large ones are read faster."""
    return 64 if context >= LONG else 16


def _put(old, new, slot):
    """Writes `new` [B, T, …] into slots [B, T]; slots past the end are dropped."""
    rows = jnp.arange(old.shape[0])[:, None]
    return old.at[rows, slot].set(new.astype(old.dtype), mode="drop")


@struct
class LayerCache:
    """Keys and values of one layer, [B, S, G, H] (with a leading layer axis outside the scan)."""

    k: chex.Array
    v: chex.Array

    @classmethod
    def create(cls, shape: tuple[int, ...], dtype: str) -> LayerCache:
        """An empty one."""
        return cls(k=jnp.zeros(shape, dtype), v=jnp.zeros(shape, dtype))

    def write(
        self,
        k: Float[Array, "B T G H"],
        v: Float[Array, "B T G H"],
        slot: Int[Array, "B T"],
        mesh: jax.sharding.Mesh | None = None,
    ) -> LayerCache:
        """A cache that also holds these keys and values; slots past its end are dropped.

        On a mesh each device writes what it holds: left to itself the TPU compiler (jaxlib 0.10.2) aborts on it beside
        axes that are mapped by hand.
        """
        if mesh is None or mesh.size == 1:
            return dataclasses.replace(self, k=_put(self.k, k, slot), v=_put(self.v, v, slot))
        batch, heads = mesh_axes("batch", mesh, k.shape[0]), mesh_axes("kv_heads", mesh, k.shape[2])
        rows = PartitionSpec(batch or None)
        by_head = PartitionSpec(batch or None, None, heads or None)
        put = on_each(_put, mesh, (by_head, by_head, rows), by_head)
        return dataclasses.replace(self, k=put(self.k, k, slot), v=put(self.v, v, slot))


@struct
class Cache:
    """The cache of a batch of requests, of capacity S positions in Z ≥ S slots.

    Attributes:
      perception: keys and values of the perception layers, [L, B, S, G, H]; slots are positions.
      localist: those of the localist layers, [L, B, Z, G, H], in pages.
      seen: int32 [B, S], segment of each position; 0 where nothing was read.
      block, position, segment: int32 [B, Z], of each slot; segment 0 where it is empty.
      filled: int32 [B, K], positions of each block so far.
      page: int32 [B, K], the page that each block filled last.
      pages: int32 [B], pages in use.
    """

    perception: LayerCache
    localist: LayerCache
    seen: chex.Array
    block: chex.Array
    position: chex.Array
    segment: chex.Array
    filled: chex.Array
    page: chex.Array
    pages: chex.Array

    @classmethod
    def create(cls, model: config.Model, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` requests of at most `capacity` positions."""
        K, size = model.block_capacity, page_size(capacity)
        slots = most_tiles(capacity, K, size) * size
        row = (model.kv_heads, model.head_size)

        def ints(*shape):  # buffers of their own, so that the whole cache can be donated
            return jnp.zeros((batch, *shape), jnp.int32)

        return cls(
            perception=LayerCache.create((model.router_layer, batch, capacity, *row), model.dtype),
            localist=LayerCache.create(
                (model.layers - model.router_layer, batch, slots, *row), model.dtype
            ),
            seen=ints(capacity), block=ints(slots), position=ints(slots), segment=ints(slots),
            filled=ints(K), page=ints(K), pages=ints(),
        )  # fmt: skip

    @property
    def capacity(self) -> int:
        """Positions that fit."""
        return self.seen.shape[1]

    def at_positions(
        self, positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[Cache, Int[Array, "B T"]]:
        """The cache that has seen these positions, and their slots in the perception layers."""
        slot = jnp.where(segments > 0, positions, self.capacity)
        return dataclasses.replace(self, seen=_put(self.seen, segments, slot)), slot

    def in_pages(
        self, block: Int[Array, "B T"], positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> tuple[Cache, Int[Array, "B T"]]:
        """Books a slot for each position on a page of its block; padding (segment 0) gets none.

        Returns:
          The cache that knows block, position and segment of the slots, and the slots (Z: none).
        """
        (K, Z), size = (self.filled.shape[1], self.block.shape[1]), page_size(self.capacity)
        member = jax.nn.one_hot(block, K, dtype=jnp.int32) * (segments > 0)[..., None]

        def of_block(table):  # [B, K] → [B, T]
            return jnp.take_along_axis(table, block, 1)

        new = member.sum(1)
        held = -(-self.filled // size)
        wanted = -(-(self.filled + new) // size) - held
        first = self.pages[:, None] + jnp.cumsum(wanted, 1) - wanted  # of the pages that each block is given
        nth = (
            of_block(self.filled)
            + jnp.take_along_axis(jnp.cumsum(member, 1), block[..., None], 2)[..., 0]
            - 1
        )
        ahead = nth // size - of_block(held)
        page = jnp.where(ahead < 0, of_block(self.page), of_block(first) + ahead)
        slot = jnp.where(segments > 0, page * size + nth % size, Z)
        places = ((self.block, block), (self.position, positions), (self.segment, segments))
        put = [_put(old, value, slot) for old, value in places]
        cache = dataclasses.replace(
            self, block=put[0], position=put[1], segment=put[2], filled=self.filled + new,
            page=jnp.where(wanted > 0, first + wanted - 1, self.page), pages=self.pages + wanted.sum(1),
        )  # fmt: skip
        return cache, slot

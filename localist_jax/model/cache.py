"""The KV cache: keys, values and blocks of what was read so far, one slot per position."""

from __future__ import annotations

import dataclasses

import chex
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from localist_jax import config
from localist_jax.types import struct


def _put(old, new, positions, segments):
    """Writes `new` [B, T, …] at its positions; padding (segment 0) is dropped."""
    slot = jnp.where(segments > 0, positions, old.shape[1])
    rows = jnp.arange(old.shape[0])[:, None]
    return old.at[rows, slot].set(new.astype(old.dtype), mode="drop")


@struct
class LayerCache:
    """Keys and values of one layer, [B, S, G, H] (with a leading layer axis outside the scan)."""

    k: chex.Array
    v: chex.Array

    def write(
        self,
        k: Float[Array, "B T G H"],
        v: Float[Array, "B T G H"],
        positions: Int[Array, "B T"],
        segments: Int[Array, "B T"],
    ) -> LayerCache:
        """A cache that also holds these keys and values."""
        return dataclasses.replace(
            self, k=_put(self.k, k, positions, segments), v=_put(self.v, v, positions, segments)
        )


@struct
class Cache:
    """The cache of a batch of requests.

    Attributes:
      layers: keys and values of all layers, [L, B, S, G, H].
      block: int32 [B, S], block of each position.
      segment: int32 [B, S]; 0 where nothing was written.
    """

    layers: LayerCache
    block: chex.Array
    segment: chex.Array

    @classmethod
    def create(cls, model: config.Model, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` requests of at most `capacity` positions."""
        shape = (model.layers, batch, capacity, model.kv_heads, model.head_size)

        def ids():  # buffers of their own, so that the whole cache can be donated
            return jnp.zeros((batch, capacity), jnp.int32)

        layers = LayerCache(k=jnp.zeros(shape, model.dtype), v=jnp.zeros(shape, model.dtype))
        return cls(layers=layers, block=ids(), segment=ids())

    def place(
        self, block: Int[Array, "B T"], positions: Int[Array, "B T"], segments: Int[Array, "B T"]
    ) -> Cache:
        """A cache that also knows the blocks of these positions."""
        return dataclasses.replace(
            self,
            block=_put(self.block, block, positions, segments),
            segment=_put(self.segment, segments, positions, segments),
        )

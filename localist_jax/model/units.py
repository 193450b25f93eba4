"""Localist units: a small feed-forward network per block, applied to that block's positions only.

Computing every block's units everywhere would cost K times the work. Instead positions are brought into
tiles that are pure in their block, and each tile meets the weights of its own block. `dispatch` decides
the places once per forward pass; all layers share it. Accelerators have a grouped matmul of their own.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from localist_jax.types import struct


@struct
class Dispatch:
    """Where the positions of each group go. P positions per group, R groups, Z tiles.

    Attributes:
      slot: int32 [R, P]; place of each position in the tiles.
      tile_block: int32 [R, Z]; block of each tile.
      order: int32 [R, P]; positions sorted by block.
      sizes: int32 [R, K]; positions of each block.
    """

    slot: chex.Array
    tile_block: chex.Array
    order: chex.Array
    sizes: chex.Array


def tile_size(positions: int, blocks: int) -> int:
    """Positions per tile: a power of two near a quarter of a block's share, 1 … 128.

    Smaller tiles waste less padding (at most one tile per block), larger ones multiply faster.
    """
    share = positions // (4 * blocks)
    return 1 if share < 2 else min(128, 1 << (share.bit_length() - 1))


def dispatch(block_BT: Int[Array, "B T"], blocks: int, groups: int = 1) -> Dispatch:
    """Places every position in a tile of its block.

    Args:
      block_BT: block of each position.
      blocks: K.
      groups: parts of the batch that are kept apart, one per data shard, so that nothing crosses devices.
    """
    block_RP = block_BT.reshape(groups, -1)
    size = tile_size(block_RP.shape[1], blocks)
    tiles = block_RP.shape[1] if size == 1 else block_RP.shape[1] // size + blocks

    def place(block_P):
        one_hot = jax.nn.one_hot(block_P, blocks, dtype=jnp.int32)
        rank = jnp.take_along_axis(jnp.cumsum(one_hot, 0), block_P[:, None], 1)[:, 0] - 1
        sizes = one_hot.sum(0)
        ends = jnp.cumsum(-(-sizes // size))
        slot = (ends[block_P] - -(-sizes[block_P] // size)) * size + rank
        owner = jnp.searchsorted(ends, jnp.arange(tiles), side="right").clip(max=blocks - 1)
        return Dispatch(slot=slot, tile_block=owner, order=jnp.argsort(block_P, stable=True), sizes=sizes)

    return jax.vmap(place)(block_RP)


def apply_units(
    x_BTD: Float[Array, "B T D"],
    w_in_KDU: Float[Array, "K D U"],
    w_out_KUD: Float[Array, "K U D"],
    where: Dispatch,
) -> Float[Array, "B T D"]:
    """y_i = W_out[c_i]ᵀ silu(W_in[c_i]ᵀ x_i): each position through the units of its own block."""
    x_RPD = x_BTD.reshape(*where.slot.shape, x_BTD.shape[-1])
    y_RPD = jax.lax.platform_dependent(x_RPD, w_in_KDU, w_out_KUD, where, cpu=_tiled, default=_ragged)
    return y_RPD.reshape(x_BTD.shape)


def _tiled(x_RPD, w_in_KDU, w_out_KUD, where: Dispatch):
    """Padded tiles with gathered weights; the padding is 0 and stays 0."""
    size = tile_size(x_RPD.shape[1], w_in_KDU.shape[0])

    def one(x_PD, at: Dispatch):
        slots = jnp.zeros((at.tile_block.size * size, x_PD.shape[-1]), x_PD.dtype)
        tiles_ZPD = slots.at[at.slot].set(x_PD, unique_indices=True).reshape(-1, size, x_PD.shape[-1])
        hidden = jax.nn.silu(jnp.einsum("ZPD,ZDU->ZPU", tiles_ZPD, w_in_KDU[at.tile_block]))
        out = jnp.einsum("ZPU,ZUD->ZPD", hidden, w_out_KUD[at.tile_block])
        return out.reshape(slots.shape)[at.slot]

    return jax.vmap(one)(x_RPD, where)


def _ragged(x_RPD, w_in_KDU, w_out_KUD, where: Dispatch):
    """Positions sorted by block, and one grouped matmul over the runs."""

    def one(args):
        x_PD, at = args
        hidden = jax.nn.silu(jax.lax.ragged_dot(x_PD[at.order], w_in_KDU, at.sizes))
        out = jax.lax.ragged_dot(hidden, w_out_KUD, at.sizes)
        return jnp.zeros_like(x_PD).at[at.order].set(out, unique_indices=True)

    return jax.lax.map(one, (x_RPD, where)) if x_RPD.shape[0] > 1 else one((x_RPD[0], _first(where)))[None]


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)

"""Localist units: a small feed-forward network per block, applied to that block's positions only.

Computing every block's units everywhere would cost K times the work. Instead positions are brought into
tiles that are pure in their block, and each tile meets the weights of its own block. `dispatch` decides
the places once per forward pass; all layers share it. Accelerators have a grouped matmul of their own.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from localist_jax.parallel.sharding import mesh_axes, on_each
from localist_jax.types import Numeric, struct


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
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "B T D"]:
    """y_i = W_out[c_i]ᵀ silu(W_in[c_i]ᵀ x_i): each position through the units of its own block.

    On a mesh every device takes the positions of its rows through the blocks that it holds, and the sum over those
    who share its rows is all that they tell each other.
    """
    x_RPD = x_BTD.reshape(*where.slot.shape, x_BTD.shape[-1])
    if mesh is None or mesh.size == 1:
        return _here(x_RPD, w_in_KDU, w_out_KUD, where, 0).reshape(x_BTD.shape)
    groups = mesh_axes("batch", mesh, x_RPD.shape[0]) or None
    held = mesh_axes("block", mesh, w_in_KDU.shape[0])

    def one_device(x, w_in, w_out, at):
        first = jax.lax.axis_index(held) * w_in.shape[0] if held else 0
        y = _here(x, w_in, w_out, at, first)
        return jax.lax.psum(y, held) if held else y

    rows, blocks = PartitionSpec(groups), PartitionSpec(held or None)
    run = on_each(one_device, mesh, (rows, blocks, blocks, rows), rows)
    return run(x_RPD, w_in_KDU, w_out_KUD, where).reshape(x_BTD.shape)


def _here(x_RPD, w_in_KDU, w_out_KUD, where: Dispatch, first: Numeric):
    """The part of it that blocks `first`, `first` + 1, … make; 0 at the positions of others."""
    return jax.lax.platform_dependent(
        x_RPD, w_in_KDU, w_out_KUD, where, jnp.asarray(first, jnp.int32), cpu=_tiled, default=_ragged
    )


def _tiled(x_RPD, w_in_KDU, w_out_KUD, where: Dispatch, first: Numeric = 0):
    """Padded tiles with gathered weights; the padding is 0 and stays 0."""
    held = w_in_KDU.shape[0]
    size = tile_size(x_RPD.shape[1], where.sizes.shape[1])

    def one(x_PD, at: Dispatch):
        slots = jnp.zeros((at.tile_block.size * size, x_PD.shape[-1]), x_PD.dtype)
        tiles_ZPD = slots.at[at.slot].set(x_PD, unique_indices=True).reshape(-1, size, x_PD.shape[-1])
        block = at.tile_block - first
        if held < at.sizes.size:
            tiles_ZPD = jnp.where(((block >= 0) & (block < held))[:, None, None], tiles_ZPD, 0)
            block = block.clip(0, held - 1)
        hidden = jax.nn.silu(jnp.einsum("ZPD,ZDU->ZPU", tiles_ZPD, w_in_KDU[block]))
        out = jnp.einsum("ZPU,ZUD->ZPD", hidden, w_out_KUD[block])
        return out.reshape(slots.shape)[at.slot]

    return jax.vmap(one)(x_RPD, where)


def _ragged(x_RPD, w_in_KDU, w_out_KUD, where: Dispatch, first: Numeric = 0):
    """Positions sorted by block, and one grouped matmul over the runs."""
    held = w_in_KDU.shape[0]

    def one(args):
        x_PD, at = args
        order, sizes, own = at.order, at.sizes, jnp.array(True)
        if held < sizes.size:  # the positions of the blocks held come first
            before = jnp.where(jnp.arange(sizes.size) < first, sizes, 0).sum()
            order = jnp.roll(order, -before)
            sizes = jax.lax.dynamic_slice_in_dim(sizes, first, held)
            own = (jnp.arange(order.size) < sizes.sum())[:, None]
        # What ragged_dot says of rows beyond its groups differs between platforms, in its gradient too.
        hidden = jax.nn.silu(jax.lax.ragged_dot(jnp.where(own, x_PD[order], 0), w_in_KDU, sizes))
        out = jnp.where(own, jax.lax.ragged_dot(hidden, w_out_KUD, sizes), 0)
        return jnp.zeros_like(x_PD).at[order].set(out, unique_indices=True)

    return jax.lax.map(one, (x_RPD, where)) if x_RPD.shape[0] > 1 else one((x_RPD[0], _first(where)))[None]


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)

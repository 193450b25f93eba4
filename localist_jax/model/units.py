"""Localist units: a small feed-forward network per block, applied to that block's positions only.

Computing every block's units everywhere would cost K times the work. Instead positions are gathered into tiles of one
block each, and each tile is multiplied with the weights of its block. `dispatch` assigns the slots once per forward
pass, for all layers. Accelerators use a grouped matrix product instead.
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
    """The assignment of positions to tiles: P positions per group, R groups, Z tiles.

    Attributes:
      slot: int32 [R, P]; slot of each position in the tiles.
      tile_block: int32 [R, Z]; block of each tile.
      order: int32 [R, P]; positions sorted by block.
      sizes: int32 [R, K]; number of positions of each block.
    """

    slot: chex.Array
    tile_block: chex.Array
    order: chex.Array
    sizes: chex.Array


def tile_size(positions: int, blocks: int) -> int:
    """Return the positions per tile: a power of two near a quarter of a block's share, 1 … 128.

    Smaller tiles waste less padding (at most one tile per block), larger ones multiply faster.
    """
    share = positions // (4 * blocks)
    return 1 if share < 2 else min(128, 1 << (share.bit_length() - 1))


def dispatch(block_BT: Int[Array, "B T"], blocks: int, groups: int = 1) -> Dispatch:
    """Assign every position to a tile of its block.

    Args:
      block_BT: block of each position.
      blocks: K.
      groups: parts of the batch that are dispatched separately, one per data shard, so that no data crosses devices.
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
    places: Dispatch,
    mesh: jax.sharding.Mesh | None = None,
) -> Float[Array, "B T D"]:
    """Return y_i = W_out[c_i]ᵀ silu(W_in[c_i]ᵀ x_i), the units of each position's block.

    On a mesh every device applies the blocks that it holds to the positions of its rows; the only communication is the
    sum over devices that share rows.
    """
    x_RPD = x_BTD.reshape(*places.slot.shape, x_BTD.shape[-1])
    if mesh is None or mesh.size == 1:
        return _held_part(x_RPD, w_in_KDU, w_out_KUD, places, 0).reshape(x_BTD.shape)
    groups = mesh_axes("batch", mesh, x_RPD.shape[0]) or None
    held = mesh_axes("block", mesh, w_in_KDU.shape[0])

    def one_device(x, w_in, w_out, places):
        first = jax.lax.axis_index(held) * w_in.shape[0] if held else 0
        y = _held_part(x, w_in, w_out, places, first)
        return jax.lax.psum(y, held) if held else y

    rows, blocks = PartitionSpec(groups), PartitionSpec(held or None)
    run = on_each(one_device, mesh, (rows, blocks, blocks, rows), rows)
    return run(x_RPD, w_in_KDU, w_out_KUD, places).reshape(x_BTD.shape)


def _held_part(x_RPD, w_in_KDU, w_out_KUD, places: Dispatch, first: Numeric):
    """Return the part of y from the blocks `first`, `first` + 1, … that this device holds; 0 at other positions."""
    return jax.lax.platform_dependent(
        x_RPD, w_in_KDU, w_out_KUD, places, jnp.asarray(first, jnp.int32), cpu=_tiled, default=_ragged
    )


def _tiled(x_RPD, w_in_KDU, w_out_KUD, places: Dispatch, first: Numeric = 0):
    """Compute by padded tiles with gathered weights; the padding is 0 and stays 0."""
    held = w_in_KDU.shape[0]
    size = tile_size(x_RPD.shape[1], places.sizes.shape[1])

    def one(x_PD, group: Dispatch):
        slots = jnp.zeros((group.tile_block.size * size, x_PD.shape[-1]), x_PD.dtype)
        tiles_ZPD = slots.at[group.slot].set(x_PD, unique_indices=True).reshape(-1, size, x_PD.shape[-1])
        block = group.tile_block - first
        if held < group.sizes.size:
            tiles_ZPD = jnp.where(((block >= 0) & (block < held))[:, None, None], tiles_ZPD, 0)
            block = block.clip(0, held - 1)
        hidden = jax.nn.silu(jnp.einsum("ZPD,ZDU->ZPU", tiles_ZPD, w_in_KDU[block]))
        out = jnp.einsum("ZPU,ZUD->ZPD", hidden, w_out_KUD[block])
        return out.reshape(slots.shape)[group.slot]

    return jax.vmap(one)(x_RPD, places)


def _ragged(x_RPD, w_in_KDU, w_out_KUD, places: Dispatch, first: Numeric = 0):
    """Compute by one grouped matrix product over positions sorted by block."""
    held = w_in_KDU.shape[0]

    def one(args):
        x_PD, group = args
        order, sizes, own = group.order, group.sizes, jnp.array(True)
        if held < sizes.size:  # put the positions of the held blocks first
            before = jnp.where(jnp.arange(sizes.size) < first, sizes, 0).sum()
            order = jnp.roll(order, -before)
            sizes = jax.lax.dynamic_slice_in_dim(sizes, first, held)
            own = (jnp.arange(order.size) < sizes.sum())[:, None]
        # For rows beyond its groups, ragged_dot and its gradient differ between platforms; `own` masks them.
        hidden = jax.nn.silu(jax.lax.ragged_dot(jnp.where(own, x_PD[order], 0), w_in_KDU, sizes))
        out = jnp.where(own, jax.lax.ragged_dot(hidden, w_out_KUD, sizes), 0)
        return jnp.zeros_like(x_PD).at[order].set(out, unique_indices=True)

    return jax.lax.map(one, (x_RPD, places)) if x_RPD.shape[0] > 1 else one((x_RPD[0], _first(places)))[None]


def _first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)

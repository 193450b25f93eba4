"""Logical axis names → mesh axes, in one table; and the shardings that follow from it."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from localist_jax.types import PyTree

# Localist units are sharded by block, so that growth really moves data. Everything not split is replicated.
LOGICAL_AXIS_RULES: tuple[tuple[str, str | None], ...] = (
    ("batch", "data"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("block", "tensor"),
    ("specialist", None),
    ("layers", None),
    ("embed", None),
    ("head", None),
    ("unit", None),
    ("block_q", None),
    ("block_k", None),
    ("router_block", None),
)


def state_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every leaf of a tree whose parameters carry logical axis names.

    Args:
      boxed: (abstract) tree with `nn.LogicallyPartitioned` leaves; the others are replicated.
      mesh: where the tree will lie.

    Raises:
      ValueError: a dimension that does not divide over its mesh axis, by leaf path.
    """
    known = {name for name, _ in LOGICAL_AXIS_RULES}
    for path, leaf in _boxes(boxed):
        for name in leaf.names:
            if name not in known:
                raise ValueError(
                    f"sharding: {path} has the axis {name!r}, which no rule names; add it to the table"
                )
    specs = nn.get_partition_spec(boxed)
    shardings = nn.logical_to_mesh_sharding(specs, mesh, LOGICAL_AXIS_RULES)
    _check_divisible(boxed, mesh)
    return shardings


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of a batch are split over the data axis."""
    return NamedSharding(mesh, PartitionSpec(dict(LOGICAL_AXIS_RULES)["batch"]))


def _boxes(tree: PyTree):
    def is_box(leaf):
        return isinstance(leaf, nn.LogicallyPartitioned)

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        if is_box(leaf):
            yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _check_divisible(boxed: PyTree, mesh: Mesh) -> None:
    table = dict(LOGICAL_AXIS_RULES)
    for path, leaf in _boxes(boxed):
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            axis = table[name]
            parts = math.prod(mesh.shape[a] for a in ([axis] if axis else []))
            if size % parts:
                raise ValueError(
                    f"sharding: axis {name!r} of {path} has size {size}, which {parts} shards of mesh axis {axis!r} "
                    f"do not divide; change that size or config.mesh.{axis}"
                )

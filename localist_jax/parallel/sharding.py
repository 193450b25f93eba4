"""Logical axis names → mesh axes, in one table; and the shardings that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from localist_jax.types import PyTree

# Localist units are sharded by block, so that growth really moves data. Everything not split is replicated.
# A mesh may lack axes of this table; they then count as 1.
LOGICAL_AXIS_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    ("batch", ("slice", "data", "fsdp")),
    ("embed", "fsdp"),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("block", "tensor"),
    ("specialist", "specialist"),
    ("layers", None),
    ("head", None),
    ("unit", None),
    ("block_q", None),
    ("block_k", None),
    ("router_block", None),
    ("rank", None),
    ("heads_and_head", None),
)
AnyMesh = Mesh | AbstractMesh


def mesh_axes(logical: str, mesh: AnyMesh, size: int | None = None) -> tuple[str, ...]:
    """Mesh axes that split a logical axis, those of size 1 left out.

    Args:
      logical: a name of the table.
      mesh: where.
      size: of the dimension; axes are taken in their order as long as they divide it. None: all of them.
    """
    found = dict(LOGICAL_AXIS_RULES)[logical] or ()
    taken: tuple[str, ...] = ()
    for axis in (found,) if isinstance(found, str) else found:
        parts = math.prod(mesh.shape[a] for a in (*taken, axis) if a in mesh.shape)
        if mesh.shape.get(axis, 1) > 1 and (size is None or size % parts == 0):
            taken = (*taken, axis)
    return taken


def shards(logical: str, mesh: AnyMesh) -> int:
    """Parts that a logical axis is split into."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(logical, mesh))


def state_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """The sharding of every leaf of a tree whose parameters carry logical axis names.

    Args:
      boxed: (abstract) tree with `nn.LogicallyPartitioned` leaves; the others are replicated.
      mesh: where the tree will lie.

    Raises:
      ValueError: a dimension that does not divide over its mesh axis, by leaf path.
    """
    table = {name: mesh_axes(name, mesh) or None for name, _ in LOGICAL_AXIS_RULES}
    for path, leaf in _boxes(boxed):
        for name in leaf.names:
            if name not in table:
                raise ValueError(
                    f"sharding: {path} has the axis {name!r}, which no rule names; add it to the table"
                )
    _check_divisible(boxed, mesh)
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, tuple(table.items()))


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Rows of a batch are split over the batch's axes, and repeated over the others."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes("batch", mesh) or None))


def placed(x: jax.Array, mesh: AnyMesh | None, *names: str | None) -> jax.Array:
    """The same array, held where the table says; without this the compiler may gather activations for their weights.

    Args:
      x: inside a jitted function.
      mesh: None, or one of a single device, leaves it alone.
      names: logical axes of its first dimensions; None, and those not named: not split.
    """
    if mesh is None or mesh.size == 1:
        return x
    sizes = zip(names, x.shape, strict=False)
    spec = PartitionSpec(*(name and (mesh_axes(name, mesh, size) or None) for name, size in sizes))
    return jax.lax.with_sharding_constraint(x, NamedSharding(within(mesh), spec))


def within(mesh: AnyMesh) -> AnyMesh:
    """The mesh as the function around sees it: inside one that is mapped over some axes those are taken."""
    around = jax.sharding.get_abstract_mesh()
    return around if around.manual_axes else mesh


def on_each(function: Callable[..., Any], mesh: AnyMesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """`jax.shard_map` of `function` over the axes of a mesh that are not taken yet; may stand inside another."""
    inner = within(mesh)
    free = set(mesh.axis_names) - set(getattr(inner, "manual_axes", ()))
    return jax.shard_map(
        function, mesh=inner, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=False
    )


def for_each_specialist(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function` of one specialist's trees as a function of stacked ones, each on its own devices, all at once.

    Args:
      function: trees → trees, without the specialist axis.
      mesh: whose specialist axis has as many places as the stacks.

    Returns:
      A function, to be jitted, whose arguments and results have a leading axis of specialists. Branches and loops
      go each specialist's own way, and nothing is said from one to another.
    """

    def one(*stacked):
        result = function(*jax.tree.map(lambda leaf: leaf[0], stacked))
        return jax.tree.map(lambda leaf: leaf[None], result)

    spec = PartitionSpec("specialist")
    return jax.shard_map(
        one, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"specialist"}, check_vma=False
    )


def stacked(abstract: PyTree, mesh: Mesh) -> PyTree:
    """Shapes and shardings of one specialist's tree, stacked over the mesh's specialist axis."""

    def stack(leaf):
        spec = PartitionSpec("specialist", *leaf.sharding.spec)
        shape = (mesh.shape["specialist"], *leaf.shape)
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(stack, abstract)


def _boxes(tree: PyTree):
    def is_box(leaf):
        return isinstance(leaf, nn.LogicallyPartitioned)

    for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_box):
        if is_box(leaf):
            yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _check_divisible(boxed: PyTree, mesh: Mesh) -> None:
    for path, leaf in _boxes(boxed):
        for name, size in zip(leaf.names, leaf.value.shape, strict=True):
            parts = shards(name, mesh)
            if size % parts:
                axis = "×".join(mesh_axes(name, mesh))
                raise ValueError(
                    f"sharding: axis {name!r} of {path} has size {size}, which {parts} shards of mesh axis {axis!r} "
                    f"do not divide; change that size or config.mesh.{axis}"
                )

"""The table that maps logical axis names to mesh axes, and the shardings that follow from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from localist_jax.types import PyTree

# Localist units are sharded by block. Axes without a mesh axis are replicated, and a mesh may lack axes of this table.
AXIS_SHARDING: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
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
    ("router_cell", None),
    ("rank", None),
    ("heads_and_head", None),
)
AnyMesh = Mesh | AbstractMesh


def mesh_axes(logical: str, mesh: AnyMesh, size: int | None = None) -> tuple[str, ...]:
    """Return the mesh axes that split a logical axis, without those of size 1.

    Args:
      logical: a name in the table.
      mesh: the mesh.
      size: size of the dimension; axes are taken in their order while they divide it. None: take all.
    """
    axes = dict(AXIS_SHARDING)[logical] or ()
    taken: tuple[str, ...] = ()
    for axis in (axes,) if isinstance(axes, str) else axes:
        parts = math.prod(mesh.shape[a] for a in (*taken, axis) if a in mesh.shape)
        if mesh.shape.get(axis, 1) > 1 and (size is None or size % parts == 0):
            taken = (*taken, axis)
    return taken


def shards(logical: str, mesh: AnyMesh) -> int:
    """Return the number of parts that a logical axis is split into."""
    return math.prod(mesh.shape[axis] for axis in mesh_axes(logical, mesh))


def state_shardings(boxed: PyTree, mesh: Mesh) -> PyTree:
    """Return the sharding of every leaf of a tree whose parameters carry logical axis names.

    Args:
      boxed: (abstract) tree with `nn.LogicallyPartitioned` leaves; the others are replicated.
      mesh: the mesh to shard over.

    Raises:
      ValueError: if an axis is not in the table, or a dimension does not divide over its mesh axis; names the leaf.
    """
    table = {name: mesh_axes(name, mesh) or None for name, _ in AXIS_SHARDING}
    for path, leaf in _boxes(boxed):
        for name in leaf.names:
            if name not in table:
                raise ValueError(
                    f"sharding: {path} has the axis {name!r}, which is not in parallel.sharding.AXIS_SHARDING; "
                    "add it there"
                )
    _check_divisible(boxed, mesh)
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, tuple(table.items()))


def batch_sharding(mesh: AnyMesh) -> NamedSharding:
    """Return the sharding of a batch: rows are split over the batch's axes, and repeated over the others."""
    return NamedSharding(mesh, PartitionSpec(mesh_axes("batch", mesh) or None))


def placed(x: jax.Array, mesh: AnyMesh | None, *names: str | None) -> jax.Array:
    """Constrain an array to the sharding that the table gives; else the compiler may gather activations to the weights.

    Args:
      x: an array inside a jitted function.
      mesh: the mesh; None or a single device changes nothing.
      names: logical axes of the first dimensions; None and unnamed dimensions are not split.
    """
    if mesh is None or mesh.size == 1:
        return x
    sizes = zip(names, x.shape, strict=False)
    spec = PartitionSpec(*(name and (mesh_axes(name, mesh, size) or None) for name, size in sizes))
    return jax.lax.with_sharding_constraint(x, NamedSharding(within(mesh), spec))


def within(mesh: AnyMesh) -> AnyMesh:
    """Return the mesh as the enclosing function sees it: inside a `shard_map`, the mesh with its manual axes."""
    around = jax.sharding.get_abstract_mesh()
    return around if around.manual_axes else mesh


def on_each(function: Callable[..., Any], mesh: AnyMesh, in_specs: Any, out_specs: Any) -> Callable[..., Any]:
    """Apply `jax.shard_map` over the axes of a mesh that are not manual yet; may be nested in another `shard_map`."""
    inner = within(mesh)
    free = set(mesh.axis_names) - set(getattr(inner, "manual_axes", ()))
    return jax.shard_map(
        function, mesh=inner, in_specs=in_specs, out_specs=out_specs, axis_names=free, check_vma=False
    )


def for_each_specialist(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Turn a function of one specialist's trees into one of stacked trees, which runs each on its own devices.

    Args:
      function: trees → trees, without the specialist axis.
      mesh: a mesh whose specialist axis is as long as the stacks.

    Returns:
      A function, to be jitted, whose arguments and results have a leading axis of specialists. Each specialist takes
      its own branches and loop counts, and specialists do not communicate.
    """

    def one(*stacked):
        result = function(*jax.tree.map(lambda leaf: leaf[0], stacked))
        return jax.tree.map(lambda leaf: leaf[None], result)

    spec = PartitionSpec("specialist")
    return jax.shard_map(
        one, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={"specialist"}, check_vma=False
    )


def stacked(abstract: PyTree, mesh: Mesh) -> PyTree:
    """Return the shapes and shardings of one specialist's tree, stacked over the mesh's specialist axis."""

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

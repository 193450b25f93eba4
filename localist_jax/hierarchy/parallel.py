"""Training specialists in parallel: each lives on its own slice of the devices and never waits for another.

The `specialist` axis of the mesh is mapped by hand (`shard_map`), so that nothing can cross it; what lies along the
other axes of a slice is left to the compiler, as in the training of one LLM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool

from localist_jax import config
from localist_jax.data import Batch
from localist_jax.model import Transformer
from localist_jax.training.state import TrainState
from localist_jax.training.step import make_train_step

AXIS = "specialist"


def mesh_of(specialists: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of so many slices; the devices of each lie along its `data` axis.

    Raises:
      ValueError: the slices do not divide the devices.
    """
    devices = jax.devices() if devices is None else devices
    if specialists < 1 or len(devices) % specialists:
        raise ValueError(f"mesh: {specialists} slices do not divide {len(devices)} device(s)")
    grid = np.asarray(devices).reshape(specialists, -1)
    return Mesh(grid, (AXIS, "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def placed(tree, mesh: Mesh):
    """Stacked states (or batches) with each specialist on its own slice.

    Raises:
      ValueError: a number of specialists that the slices do not divide.
    """
    slices = mesh.shape[AXIS]
    for leaf in jax.tree.leaves(tree):
        if leaf.shape[0] % slices:
            raise ValueError(f"mesh: {slices} slices do not divide {leaf.shape[0]} specialists")
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(AXIS)))


def make_parallel_step(
    model: Transformer, settings: config.Config, byte_lengths: np.ndarray, mesh: Mesh
) -> Callable[[TrainState, Batch, Bool[Array, " M"]], TrainState]:
    """A compiled step of all specialists at once.

    Args:
      model, settings, byte_lengths: as of `make_train_step`.
      mesh: of `mesh_of`.

    Returns:
      (states [M, …], batches [M, B, T], learns [M]) → states. A specialist that does not learn stays bit-identical.
    """
    step = make_train_step(model, settings, byte_lengths)

    def one(now):
        state, batch, learns = now
        stepped, _ = step(state, batch)
        return jax.tree.map(lambda new, old: jnp.where(learns, new, old), stepped, state)

    def of_slice(states: TrainState, batches: Batch, learns):
        return jax.lax.map(one, (states, batches, learns))

    spec = PartitionSpec(AXIS)
    mapped = jax.shard_map(
        of_slice, mesh=mesh, in_specs=spec, out_specs=spec, axis_names={AXIS}, check_vma=False
    )
    return jax.jit(mapped)

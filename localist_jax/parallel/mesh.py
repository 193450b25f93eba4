"""The device mesh of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from localist_jax import config


def make_mesh(settings: config.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes of `config.Mesh`, in their order, over all devices.

    Args:
      settings: size of each axis; −1 takes the devices that are left.
      devices: default: all.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = dataclasses.asdict(settings)
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) > 1:
        raise ValueError(f"config.mesh: only one axis may be -1, got {', '.join(open_axes)}")
    if len(devices) % fixed or (not open_axes and fixed != len(devices)):
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"config.mesh: {given} does not fit {len(devices)} device(s); sizes must multiply to that number "
            "(-1 takes what is left)"
        )
    for name in open_axes:
        sizes[name] = len(devices) // fixed
    grid = np.asarray(devices).reshape(tuple(sizes.values()))
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))

"""The device mesh of a run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from localist_jax import config


def make_mesh(settings: config.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Return a mesh with the axes of `config.Mesh`, in their order, over all devices.

    The axes that communicate most come last, so that they connect neighbours. On TPUs each axis is laid along the torus
    of its slice; elsewhere devices are taken in order of their processes.

    Args:
      settings: size of each axis; −1 takes the devices that are left.
      devices: the devices; default: those of all processes.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or `slice` is not the number of slices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _sizes(settings, len(devices))
    slices = _slices(devices, sizes["slice"])
    shape = tuple(size for name, size in sizes.items() if name != "slice")
    grid = np.stack([_laid_out(part, shape) for part in slices])
    return Mesh(grid, tuple(sizes), axis_types=(AxisType.Auto,) * len(sizes))


def platform(mesh: Mesh | jax.sharding.AbstractMesh | None) -> str:
    """Return the platform of a mesh's devices, which need not be present: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else jax.default_backend()


def _sizes(settings: config.Mesh, count: int) -> dict[str, int]:
    sizes = dataclasses.asdict(settings)
    open_axes = [name for name, size in sizes.items() if size == -1]
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if len(open_axes) > 1:
        raise ValueError(f"config.mesh: only one axis may be -1, got {', '.join(open_axes)}")
    if count % fixed or (not open_axes and fixed != count):
        given = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(
            f"config.mesh: {given} does not fit {count} device(s); sizes must multiply to that number "
            "(-1 takes what is left)"
        )
    return sizes | dict.fromkeys(open_axes, count // fixed)


def _slices(devices: Sequence[jax.Device], wanted: int) -> list[list[jax.Device]]:
    """Return the devices of each slice; if the hardware has no slices, equal consecutive parts of the devices."""
    numbers = [getattr(device, "slice_index", None) for device in devices]
    present = sorted({n for n in numbers if n is not None})
    if len(present) > 1:
        if wanted != len(present):
            raise ValueError(
                f"config.mesh.slice: expected {len(present)}, the number of slices present, got {wanted}; only rows of "
                "a batch may be split over slices"
            )
        return [[d for d, n in zip(devices, numbers, strict=True) if n == number] for number in present]
    size = len(devices) // wanted
    return [list(devices[i * size : (i + 1) * size]) for i in range(wanted)]


def _laid_out(devices: list[jax.Device], shape: tuple[int, ...]) -> np.ndarray:
    if devices[0].platform == "tpu" and len(devices) > 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return np.asarray(devices).reshape(shape)

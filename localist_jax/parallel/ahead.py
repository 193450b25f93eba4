"""Ahead-of-time compilation for devices that are not present, and what the compiler reports about the programs.

The package libtpu compiles for TPUs on a machine that has none. Put `BUILT_FOR_TPU` into the environment before JAX is
imported, and switch the persistent compilation cache off, since its keys do not include the target.
"""

from __future__ import annotations

import dataclasses
import re
import time

import jax
from jax.experimental import topologies

from localist_jax.parallel import hlo

BUILT_FOR_TPU = {  # otherwise libtpu looks for a TPU's metadata server
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # there is no TPU to lock
}
GIB, GB = 2.0**30, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published specifications of a chip (Cloud TPU documentation: pages "TPU v5e", "TPU v5p", "TPU v6e").

    Attributes:
      flops: peak bfloat16 operations per second.
      memory: bytes of HBM.
      bandwidth: bytes per second of HBM.
      links: bytes per second that it can send to its neighbours over all links: half of the published figure, which
        counts both directions.
      network: bytes per second of its share of the pod's data-centre network.
    """

    flops: float
    memory: float
    bandwidth: float
    links: float
    network: float


CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, 3.1e9),
    "v5p": Chip(459e12, 95 * GIB, 2765e9, 600e9, 6.2e9),
    "v6e": Chip(918e12, 32 * GIB, 1638e9, 400e9, 6.2e9),
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's report on one program, per device.

    Attributes:
      error: first line of the compiler's error; None if it compiled.
      over: bytes by which the program exceeds the device's memory; 0 if it fits.
      arguments, temporaries: bytes of arguments and results, and of everything else.
      program: the parsed program; None if it did not compile.
      seconds: compilation time.
    """

    error: str | None
    over: float
    arguments: float
    temporaries: float
    program: hlo.HloProgram | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it compiled, which includes that it fits into memory."""
        return self.error is None

    @property
    def memory(self) -> float:
        """Peak memory in bytes."""
        return self.arguments + self.temporaries


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """Return the devices of a topology.

    Args:
      topology: for example "v5e:16x16", "v5p:4x8x8" or "v6e:16x16"; or "cpu:8" for simulated devices of this machine.
      slices: number of slices with that topology, joined by the data-centre network.

    Raises:
      ValueError: if there is no such topology, or no compiler for it.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        here = jax.devices("cpu")
        if len(here) != int(shape):
            raise ValueError(f"{topology}: found {len(here)} device(s); set XLA_FLAGS before JAX is imported")
        return here
    if kind not in CHIPS:
        raise ValueError(f"{topology}: unknown kind of TPU {kind!r}; known: {', '.join(CHIPS)}, and cpu")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as complaint:  # libtpu is missing, or knows no such shape
        lines = str(complaint).strip().splitlines() or [type(complaint).__name__]
        raise ValueError(
            f"{topology}: {lines[0]}; shapes are like v5e:16x16, v5p:4x8x8 and v6e:16x16, and libtpu comes with "
            "pip install -e '.[tpu]'"
        ) from complaint
    return list(description.devices)


def compile_(lowered: jax.stages.Lowered) -> Compiled:
    """Compile a program and read the result; an error of the compiler becomes part of the report."""
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as complaint:
        text = str(complaint)
        first = (text.strip().splitlines() or [type(complaint).__name__])[0]
        return Compiled(first, overflow(text), 0, 0, None, time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    usage = compiled.memory_analysis()
    # Donated arguments are also results; they count once.
    arguments = (
        usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
        if usage
        else 0.0
    )
    temporaries = usage.temp_size_in_bytes + usage.generated_code_size_in_bytes if usage else 0.0
    return Compiled(None, 0.0, arguments, temporaries, hlo.read(compiled.as_text() or ""), seconds)


def overflow(complaint: str) -> float:
    """Return by how many bytes memory is exceeded according to a compiler error; 0 for other errors.

    >>> overflow("Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.") / 2**30
    4.75
    """
    match = re.search(r"Exceeded hbm capacity by ([\d.]+)([KMGT])", complaint)
    return float(match[1]) * 1024.0 ** (1 + "KMGT".index(match[2])) if match else 0.0

"""Ahead-of-time compilation: programs for devices that are not here, and what the compiler knows about them.

libtpu, an ordinary package, compiles for TPUs on a machine that has none. Set `BUILT_FOR_TPU` in the environment
before JAX is imported, and keep the persistent compilation cache off: its keys know nothing of the target.
"""

from __future__ import annotations

import dataclasses
import re
import time

import jax
from jax.experimental import topologies

from localist_jax.parallel import hlo

BUILT_FOR_TPU = {  # libtpu otherwise looks for a TPU's metadata server
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",  # nothing here holds a TPU that others would miss
}
GIB, GB = 2.0**30, 1e9


@dataclasses.dataclass(frozen=True)
class Chip:
    """What its maker publishes of a chip (Cloud TPU documentation: pages "TPU v5e", "TPU v5p", "TPU v6e").

    Attributes:
      flops: bfloat16 matrix products, per second.
      memory: bytes of HBM.
      bandwidth: of HBM, bytes per second.
      links: bytes per second that it can send to its neighbours over all links: half of the published figure, which
        counts both directions.
      network: bytes per second of the data-centre network, its share of a pod's.
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
    """What the compiler says of one program, per device.

    Attributes:
      error: its first line of complaint; None if it compiled.
      over: bytes by which the program exceeds the device's memory; 0 if it fits.
      arguments, temporaries: bytes of what it is given and gives back, and of the rest.
      program: what it does; None if it did not compile.
      seconds: that compiling took.
    """

    error: str | None
    over: float
    arguments: float
    temporaries: float
    program: hlo.HloProgram | None
    seconds: float

    @property
    def fits(self) -> bool:
        """Whether it compiled, for the memory of its target."""
        return self.error is None

    @property
    def memory(self) -> float:
        """Bytes in use at the most."""
        return self.arguments + self.temporaries


def devices(topology: str, slices: int = 1) -> list[jax.Device]:
    """The devices of a topology.

    Args:
      topology: "v5e:16x16", "v5p:4x8x8", "v6e:16x16", …, or "cpu:8": simulated devices of this machine.
      slices: of that topology each, joined by the data-centre network.

    Raises:
      ValueError: no such topology, or no compiler for it.
    """
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        here = jax.devices("cpu")
        if len(here) != int(shape):
            raise ValueError(
                f"{topology}: {len(here)} device(s) are here; XLA_FLAGS was not set early enough"
            )
        return here
    if kind not in CHIPS:
        raise ValueError(f"{topology}: unknown kind of TPU {kind!r}; known: {', '.join(CHIPS)}, and cpu")
    more = {"num_slices": slices} if slices > 1 else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except Exception as complaint:  # libtpu is missing, or knows no such shape
        lines = str(complaint).strip().splitlines() or [type(complaint).__name__]
        raise ValueError(
            f"{topology}: {lines[0]}; shapes are like v5e:16x16, v5p:4x8x8 and v6e:16x16, and libtpu comes with "
            "pip install -e '.[tpu]'"
        ) from complaint
    return list(found.devices)


def compile_(lowered: jax.stages.Lowered) -> Compiled:
    """Compiles, and reads the result; whatever the compiler raises is the finding."""
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except Exception as complaint:
        text = str(complaint)
        first = (text.strip().splitlines() or [type(complaint).__name__])[0]
        return Compiled(first, overflow(text), 0, 0, None, time.perf_counter() - begun)
    seconds = time.perf_counter() - begun
    found = compiled.memory_analysis()
    # Donated arguments are results too: they count once.
    arguments = (
        found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
        if found
        else 0.0
    )
    temporaries = found.temp_size_in_bytes + found.generated_code_size_in_bytes if found else 0.0
    return Compiled(None, 0.0, arguments, temporaries, hlo.read(compiled.as_text() or ""), seconds)


def overflow(complaint: str) -> float:
    """Bytes by which memory is exceeded, as the compiler complains; 0 if that is not its complaint.

    >>> overflow("Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.") / 2**30
    4.75
    """
    found = re.search(r"Exceeded hbm capacity by ([\d.]+)([KMGT])", complaint)
    return float(found[1]) * 1024.0 ** (1 + "KMGT".index(found[2])) if found else 0.0

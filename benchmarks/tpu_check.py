"""Compiles the TPU kernels for several TPUs on a machine that has none: `python -m benchmarks.tpu_check`.

Needs libtpu, the compiler that TPUs run; `make tpu-check` installs it. What it can't tell is speed, and whether a
TPU's results are right: those of the interpreted kernels are, by `tests/attention/test_tpu.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import re
import sys
import time
from pathlib import Path

TARGETS = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
DIRECTIONS = ("forward", "forward and backward")
BUILT_FOR_TPU = {  # libtpu otherwise looks for a TPU's metadata server
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
KERNEL = re.compile(
    r'%(\w+)[.\d]* = .*custom_call_target="tpu_custom_call".*?"used_scoped_memory_configs":\[([^]]*)\]'
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of the problem; inputs are bfloat16."""

    B: int = 1
    T: int = 4096
    N: int = 8
    G: int = 4
    H: int = 128
    K: int = 16
    window: int = 8


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The figures of one compilation.

    Attributes:
      error: the first line of the compiler's complaint; None if there was none.
      seconds: it took.
      vmem: bytes of on-chip memory that each kernel asks for, by its name: the most of those of that name.
      temporaries: bytes of HBM besides inputs and results.
    """

    target: str
    direction: str
    error: str | None
    seconds: float
    vmem: dict[str, int]
    temporaries: int = 0


def compile_for(target: str, direction: str, sizes: Sizes) -> Outcome:
    """Compiles `attend` for one chip of a topology; both ways and all kernels are in it."""
    start = time.perf_counter()
    try:
        compiled = _lower(target, direction, sizes).compile()
    except Exception as complaint:  # whatever the compiler raises is the finding
        lines = str(complaint).strip().splitlines() or [type(complaint).__name__]
        return Outcome(target, direction, lines[0], time.perf_counter() - start, {})
    vmem: dict[str, int] = {}
    for name, uses in KERNEL.findall(compiled.as_text()):
        used = sum(int(size) for size in re.findall(r'"size":"(\d+)"', uses))
        vmem[name] = max(vmem.get(name, 0), used)
    error = None if vmem else "no kernel in the compiled program"
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return Outcome(target, direction, error, time.perf_counter() - start, vmem, temporaries)


def _lower(target: str, direction: str, sizes: Sizes):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from localist_jax.attention import attend

    chips = topologies.get_topology_desc(platform="tpu", topology_name=target).devices
    one = NamedSharding(Mesh(np.array(chips[:1]), ("chip",)), PartitionSpec())
    s = sizes

    def shape(*axes, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(axes, dtype, sharding=one)

    queries, keys = (shape(s.B, s.T, heads, s.H, dtype=jnp.bfloat16) for heads in (s.N, s.G))
    table, places = (1, s.N, s.K, s.K), shape(s.B, s.T, dtype=jnp.int32)
    learned = (queries, keys, keys, shape(*table), shape(s.B, s.T, s.K))

    def forward(learned, relevant, block, pos, seg):
        q, k, v, odds, route = learned
        marks = {"block": block, "pos": pos, "seg": seg}
        places = {f"{side}_{name}": x for side in "qk" for name, x in marks.items()}
        return attend(
            q, k, v, **places, odds=odds, relevant=relevant, route=route,
            window=s.window, stats="open", implementation="tpu",
        )  # fmt: skip

    def score(*args):
        out, stats = forward(*args)
        return (out.astype(jnp.float32) ** 2).sum() + (stats.entropy_bits + stats.fidelity).sum()

    run = forward if direction == "forward" else jax.value_and_grad(score)
    traced = jax.jit(run).trace(learned, shape(*table, dtype=jnp.bool_), places, places, places)
    return traced.lower(lowering_platforms=("tpu",))


def flops(sizes: Sizes) -> dict[str, float]:
    """Return the operations of the matrix products if all blocks are open: tiles on and below the diagonal, in order.

    Per pair of a visited tile and head: forward s and α·v, and three parts each of ln ω and of the masses; backward
    s, dout·v and dq, then s, dout·v, dk and dv, and the parts of ln ω, of dmass (twice both) and of two sums.
    """
    from localist_jax.attention.tpu import ENGINE

    rows, columns, _ = ENGINE.wide
    visits = sum(-(-(i + 1) * rows // columns) for i in range(-(-sizes.T // rows)))
    pairs = sizes.B * sizes.N * visits * rows * columns
    forward = 2 * pairs * (2 * sizes.H + 2 * 3 * sizes.K)
    backward = 2 * pairs * (7 * sizes.H + 6 * 3 * sizes.K)
    return {"forward": float(forward), "forward and backward": float(forward + backward)}


def page(outcomes: list[Outcome], sizes: Sizes, libtpu: str) -> str:
    """The body of the study."""
    from localist_jax.report.study import table

    work = flops(sizes)
    rows = [
        [
            f"{x.target}, {x.direction}",
            "yes" if x.error is None else f"no: {x.error}",
            f"{max(x.vmem.values(), default=0) / 2**20:.2f}",
            f"{x.temporaries / 2**20:.1f}",
            f"{work[x.direction] / 1e9:.1f}",
            f"{x.seconds:.1f}",
        ]
        for x in outcomes
    ]
    head = ("target, direction", "compiled", "VMEM, MiB", "HBM temporaries, MiB", "Gflop, dense", "seconds")
    names = sorted({name for x in outcomes for name in x.vmem})
    by_kernel = [
        [
            f"{x.target}, {x.direction}",
            *(f"{x.vmem[name] / 1024:.0f}" if name in x.vmem else "–" for name in names),
        ]
        for x in outcomes
    ]
    shape = ", ".join(f"{name}={value}" for name, value in dataclasses.asdict(sizes).items())
    return f"""Do the TPU kernels compile for real TPUs? `attend(…, implementation="tpu")` with statistics and the
router's gradient, bfloat16, {shape}, compiled for one chip of each topology by libtpu {libtpu}, with no TPU.

{table(head, rows)}
One program holds both ways of `attend`, in order and by block, and takes one of them as it runs. *VMEM* is the
scoped on-chip memory that the largest kernel of the program asks for, as the compiled text says; *HBM
temporaries* is the compiler's `memory_analysis()`: what it places in on-chip memory instead isn't in it. *Gflop* is
counted by hand: matrix products of every tile on or below the diagonal, as if all pairs of blocks were open. *Seconds*
are those of tracing, lowering and compiling.

VMEM by kernel, KiB, the most over ways:

{table(("target, direction", *(f"`{name}`" for name in names)), by_kernel)}
What this doesn't show: speed, and the values that a TPU computes. The interpreted kernels agree with the definition
(`tests/attention/test_tpu.py`)."""


def main(arguments: list[str] | None = None) -> int:
    """Compiles, prints the table and writes the study; 1 if something did not compile."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"), help="folder of the study")
    out = parser.parse_args(arguments).out
    if importlib.util.find_spec("libtpu") is None:
        print(
            "tpu_check: libtpu is not installed; `make tpu-check` installs it (half a gigabyte)",
            file=sys.stderr,
        )
        return 1
    os.environ.update(BUILT_FOR_TPU)
    import jax  # only now, since it reads the environment

    jax.config.update(
        "jax_enable_compilation_cache", False
    )  # keys of compiled programs know nothing of the target
    from importlib.metadata import version

    from localist_jax.report import study

    outcomes = []
    for target in TARGETS:
        for direction in DIRECTIONS:
            outcomes.append(compile_for(target, direction, Sizes()))
            print(f"{target}, {direction}: {outcomes[-1].error or 'compiled'}", flush=True)
    libtpu = version("libtpu")
    body = page(outcomes, Sizes(), libtpu)
    print(f"\n{body}")
    work = flops(Sizes())
    figures = {
        f"{x.target} {x.direction}": {
            "compiled": x.error is None,
            "error": x.error,
            "seconds": x.seconds,
            "vmem_bytes": x.vmem,
            "hbm_temporary_bytes": x.temporaries,
            "dense_flops": work[x.direction],
        }
        for x in outcomes
    }
    study.write(
        out, "attention_tpu", title="The TPU kernel, compiled ahead of time", body=body,
        command="make tpu-check", seeds=(), figures={"libtpu": libtpu, **figures}, pictures={},
    )  # fmt: skip
    return 0 if all(x.error is None for x in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Speed and memory of `attend` beside jax.nn, PyTorch and FlexAttention, in one run.

    python -m benchmarks.attention [--only dense density decode] [--longest SECONDS]
        [--torch-python PATH] [--quick]

One shape of heads for CPUs (batch 1, 4 heads of 64, float32) and one for GPUs (batch 4, 16 heads of 64, bfloat16),
window 8, random blocks as routing by content gives. The contenders of a size take turns, so that drift of the
machine hits all alike. Compilation, the first call of each (under 5 s) and, for calls under 2 s, the first of each
turn are left out. `page.py` says what the figures mean and sets them beside their targets.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import page
from benchmarks.contenders import WINDOW, Contender, Sizes, jaxnn, operations, ours, products
from benchmarks.peers import Refused, Worker
from benchmarks.pictures import pictures
from localist_jax.attention.sparse import CPU
from localist_jax.errors import one_line
from localist_jax.report import study

BLOCKS = 16  # of the sweep over T and of decoding
LONGEST, LARGEST = 20.0, 8 << 30  # seconds and bytes that one call may take
FEWEST = 3  # repetitions, of calls of two seconds and more
NO_WARM_UP = 5.0  # seconds from which a call hardly feels whether it is the first
DIALS = (0.0, 0.9, 1.0)
WAYS = ("fwd", "fwdbwd")
PARTS = ("dense", "density", "decode")


QUICK = Sizes(
    dense=(256, 512), details=256, reference=256, flex=512, density=512, blocks=(4,), flex_blocks=(4,),
    long=(1024, 8), decode=(256, 512),
)  # fmt: skip
GPU = Sizes(
    batch=4, heads=16, dtype="bfloat16", implementation="gpu", capacity=64, dense=(8192, 32768), reference=0,
    flex=8192, blocks=(2, 4, 8, 16, 32), flex_blocks=(2, 4, 8, 16, 32), density=8192, long=(), decode=(),
)  # fmt: skip
QUICK_GPU = dataclasses.replace(
    GPU, dense=(512, 1024), details=512, flex=512, density=1024, blocks=(4,), flex_blocks=(4,)
)


class Bench:
    """Times contenders and keeps what was found.

    Attributes:
      timings: part → name → size → {median, low, high (quartiles), repetitions}, in seconds.
      refused: part → name → size → why there is no timing.
      memory: part → name → size → bytes.
      flex: part → size → order of positions that FlexAttention was fastest in.
    """

    def __init__(self, sizes: Sizes, worker: Worker, longest: float = LONGEST):
        self.sizes, self.worker, self.longest = sizes, worker, longest
        self.timings: dict[str, Any] = {}
        self.refused: dict[str, Any] = {}
        self.memory: dict[str, Any] = {}
        self.flex: dict[str, Any] = {}

    def peer(self, kind: str, name: str, **sizes) -> Contender | str:
        """A call of the worker's, or why it has none."""
        try:
            of = self.sizes
            device = "cuda" if jax.default_backend() == "gpu" else "cpu"
            more = dict(batch=of.batch, heads=of.heads, size=of.head_size, dtype=of.dtype, device=device)
            about = self.worker.make(name, kind, **more, **sizes)
        except Refused as why:
            return str(why)
        if "positions" in about:
            self.flex.setdefault(f"T={sizes['tokens']}", {})[str(sizes["blocks"])] = about["positions"]
        return Contender(lambda: self.worker.call(name))

    def prepare(self) -> None:
        """Compiles what takes long, all at once, for a machine with cores to spare; the rest finds it made."""
        of, todo = self.sizes, list[Callable[[], Any]]()
        lengths = {T: ("none", "open") if of.details >= T else ("none",) for T in of.dense}
        for T, way in itertools.product({*lengths, of.density, *of.long[:1]}, WAYS):
            for stats in lengths.get(T, ("none",)) if way == "fwd" else ("none",):
                todo.append(functools.partial(ours, of, T, T, BLOCKS, (1.0,), way, stats))

        def flex():  # one after the other: there is one worker
            lengths = sorted(T for T in {*of.dense, of.density} if of.flex >= T)
            for T, way in itertools.product(lengths, WAYS):
                self.peer("flex", "warm", tokens=T, blocks=BLOCKS, window=WINDOW, gradient=way != "fwd")
            self.worker.drop()

        with ThreadPoolExecutor(1 + len(todo)) as pool:
            for future in [pool.submit(one) for one in (flex, *todo)]:
                future.result()

    def race(self, part: str, contenders: Mapping[tuple[str, int], Contender | str], expect=None) -> None:
        """Times the contenders (by name and size) in turns; `expect` foresees seconds by name and size."""
        ready: dict[tuple[str, int], tuple[Contender, int]] = {}
        for (name, size), contender in contenders.items():
            why = contender if isinstance(contender, str) else None
            if not isinstance(contender, str):
                if contender.memory is not None:
                    _put(self.memory, part, name, size, contender.memory)
                foreseen = expect(name, size) if expect else 0.0
                if (contender.memory or 0) > LARGEST:
                    why = f"over {LARGEST >> 30} GiB"
                elif foreseen > self.longest:
                    why = f"over {self.longest:g} s"
                else:
                    try:
                        warm_up = foreseen if foreseen > NO_WARM_UP else contender.once()
                        ready[name, size] = (contender, _repetitions(warm_up))
                    except Refused as error:
                        why = str(error)
            if why:
                _put(self.refused, part, name, size, why)
        rounds = max((count for _, count in ready.values()), default=0)
        seconds: dict[tuple[str, int], list[float]] = {key: [] for key in ready}
        for turn in range(rounds):
            for key, (contender, count) in ready.items():
                if (turn + 1) * count // rounds > turn * count // rounds:  # spread over all rounds
                    if count > FEWEST:  # wake threads that rested while another process ran
                        contender.once()
                    seconds[key].append(contender.once())
        for (name, size), found in seconds.items():
            low, median, high = np.percentile(found, (25, 50, 75))
            one = {"median": median, "low": low, "high": high, "repetitions": len(found)}
            _put(self.timings, part, name, size, one)
        self.worker.drop()

    def dense(self, T: int) -> None:
        """Every path at one length."""
        upto, gpu = self.sizes, jax.default_backend() == "gpu"
        detailed = upto.details >= T
        found: dict[tuple[str, int], Contender | str] = {}
        for way in WAYS:
            for stats in ("none", "open") if detailed and not (gpu and way == "fwdbwd") else ("none",):
                dials = DIALS if detailed and stats == "none" else (0.0, 1.0)
                tail = "" if stats == "none" else f"_{stats}"
                for dial, one in zip(dials, ours(upto, T, T, BLOCKS, dials, way, stats), strict=True):
                    found[f"dial{dial:g}_{way}{tail}", T] = one
            if upto.reference >= T:
                found[f"reference_{way}", T] = ours(
                    upto, T, T, BLOCKS, (0.0,), way, implementation="reference"
                )[0]
            if gpu:  # the plain one would hold every logit
                found[f"cudnn_{way}", T] = jaxnn(upto, T, T, way, implementation="cudnn")
            else:
                found[f"jaxnn_{way}", T] = jaxnn(upto, T, T, way)
            name = f"sdpa_{way}"
            found[name, T] = self.peer("sdpa", name, tokens=T, keys=T, gradient=way == "fwdbwd")
            if way == "fwd" or gpu:
                flex: Contender | str = f"over {upto.flex:,} tokens"
                if upto.flex >= T:
                    flex = self.peer(
                        "flex", f"flex_{way}", tokens=T, blocks=BLOCKS, window=WINDOW, gradient=way != "fwd"
                    )
                found[f"flex_{way}", T] = flex

        def expect(name: str, T: int) -> float:
            before = self.timings.get("dense", {}).get(name, {}).get(T // 2, {}).get("median", 0.0)
            late = any(size < T for size in self.refused.get("dense", {}).get(name, ()))
            return float("inf") if late else 4 * before

        self.race("dense", found, expect)

    def density(self) -> None:
        """λ=1 at one length, from dense to sparse."""
        T = self.sizes.density
        found: dict[tuple[str, int], Contender | str] = {}
        for way in WAYS:
            for d in sorted({BLOCKS, *self.sizes.blocks}):
                *dense, sparse = ours(self.sizes, T, T, d, (0.0, 1.0) if d == BLOCKS else (1.0,), way)
                found |= {(f"attend_{way}", 1): one for one in dense}
                if d in self.sizes.blocks:
                    found[f"attend_{way}", d] = sparse
            if jax.default_backend() == "gpu":
                found[f"cudnn_{way}", 1] = jaxnn(self.sizes, T, T, way, implementation="cudnn")
            if way == "fwd" or jax.default_backend() == "gpu":
                for d in self.sizes.flex_blocks:
                    name = f"flex{d}_{way}"
                    found[f"flex_{way}", d] = self.peer(
                        "flex", name, tokens=T, blocks=d, window=WINDOW, gradient=way != "fwd"
                    )
        self.race("density", found)

    def products(self) -> None:
        """The products of tiles of each size alone, which bound what closing blocks can save."""
        tiles = {(q, k) for q, k, _ in (CPU.wide, *(x.size for x in CPU.pure))}
        found = {(f"{q}×{k}", q * k): products(self.sizes, q, k) for q, k in tiles}
        self.race("products", found)

    def long(self) -> None:
        """λ=1 at the greatest length."""
        T, d = self.sizes.long
        self.race("long", {(f"attend_{way}", T): ours(self.sizes, T, T, d, (1.0,), way)[0] for way in WAYS})

    def decode(self, S: int) -> None:
        """One query against a cache of S keys."""
        found: dict[tuple[str, int], Contender | str] = {}
        dials = (0.0, 1.0)
        for dial, one in zip(
            dials, ours(self.sizes, 1, S, BLOCKS, dials, "fwd", implementation=None), strict=True
        ):
            found[f"dial{dial:g}", S] = one
        found["jaxnn", S] = jaxnn(self.sizes, 1, S, "fwd")
        found["sdpa", S] = self.peer("sdpa", "sdpa", tokens=1, keys=S, gradient=False)
        self.race("decode", found)


def _put(table: dict[str, Any], part: str, name: str, size: int, value: Any) -> None:
    table.setdefault(part, {}).setdefault(name, {})[size] = value


def _repetitions(seconds: float) -> int:
    return FEWEST if seconds >= 2 else int(np.clip(0.2 / seconds, 5, 40))


def measure(sizes: Sizes, parts: Sequence[str], worker: Worker, longest: float = LONGEST) -> Bench:
    """Runs the parts; says on stderr where it is and how long it may still take."""
    bench = Bench(sizes, worker, longest)
    jobs: list[tuple[str, float, Callable[[], None]]] = []  # what, its expected share of the time, how
    if "dense" in parts:
        for T in sizes.dense:
            jobs.append((f"T={T}", 20 + 130 * (T / 65536) ** 0.5, lambda T=T: bench.dense(T)))  # type: ignore[misc]
    if "density" in parts:
        jobs.append((f"densities at T={sizes.density}", 70, bench.density))
        if jax.default_backend() == "cpu":
            jobs.append(("products of tiles", 2, bench.products))
        if sizes.long:
            jobs.append((f"T={sizes.long[0]} at density 1/{sizes.long[1]}", 40, bench.long))
    if "decode" in parts:
        for S in sizes.decode:
            jobs.append((f"decoding with {S} keys", 5, lambda S=S: bench.decode(S)))  # type: ignore[misc]
    begun, done = time.monotonic(), 0.0
    if jax.default_backend() == "gpu":
        jobs.insert(0, ("compiling", 100, bench.prepare))
    whole = sum(share for _, share, _ in jobs)
    for what, share, job in jobs:
        passed = time.monotonic() - begun
        left = f", about {passed * (whole - done) / done / 60:.1f} min left" if done else ""
        print(f"attention: {what}{left}", file=sys.stderr, flush=True)
        job()
        done += share
    print(f"attention: {(time.monotonic() - begun) / 60:.1f} min in all", file=sys.stderr, flush=True)
    return bench


def study_of(bench: Bench, out: Path, command: str) -> Path:
    """Writes `attention.md`, `.json` and pictures of what a bench has measured into `out`."""
    found = page.Found(
        backend=jax.default_backend(), timings=bench.timings, refused=bench.refused, memory=bench.memory,
        flex=bench.flex, torch=bench.worker.version or bench.worker.refusal, limits=(bench.longest, LARGEST),
        blocks=BLOCKS, density_tokens=bench.sizes.density, operations=operations(bench.sizes),
        tiles=_tiles(),
        shape=f"batch {(s := bench.sizes).batch}, {s.heads} heads of {s.head_size}, window {WINDOW}, {s.dtype}",
    )  # fmt: skip
    on_gpu, figures = found.backend == "gpu", page.figures_of(found)
    return study.write(
        out, "attention_gpu" if on_gpu else "attention", title="Attention: speed and memory beside others",
        body=page.body(found), command=command, seeds=[0],
        figures=figures if on_gpu else {**figures, "tpu_compiled": tpu_compiled(out)},
        pictures=pictures(found),
    )  # fmt: skip


def _tiles() -> str:
    """Which tiles the engine takes on CPU."""
    pure = (f"{x.size[0]}×{x.size[1]} from {x.since} tokens on" for x in CPU.pure)
    return f"λ=0 takes tiles of {CPU.wide[0]}×{CPU.wide[1]}; λ=1, by the mean length of blocks, {', '.join(pure)}."


def tpu_compiled(out: Path) -> list[str]:
    """Targets and directions that the last `make tpu-check` compiled; none where it was not run."""
    record = out / "attention_tpu.json"
    figures = json.loads(record.read_text())["figures"] if record.exists() else {}
    return [name for name, figure in figures.items() if isinstance(figure, dict) and figure["compiled"]]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("benchmarks.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="measure these parts alone")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything works")
    parser.add_argument("--longest", type=float, default=LONGEST, help="seconds that one call may take")
    parser.add_argument("--torch-python", default=sys.executable, help="a Python that has PyTorch")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    given = parser.parse_args()
    words = [f"--only {' '.join(given.only)}"] * (given.only is not PARTS) + ["--quick"] * given.quick
    words += [f"--longest {given.longest:g}"] * (given.longest != LONGEST)
    words += ["--torch-python PATH"] * (
        given.torch_python != sys.executable
    )  # whose path is nobody's business
    pages = os.environ.get("GLIBC_TUNABLES")  # huge ones: they change what is measured
    command = " ".join([*[f"GLIBC_TUNABLES={pages}"] * bool(pages), "python -m benchmarks.attention", *words])
    with one_line(), Worker(given.torch_python) as worker:
        on_gpu = jax.default_backend() == "gpu"
        sizes = (QUICK_GPU if on_gpu else QUICK) if given.quick else GPU if on_gpu else Sizes()
        bench = measure(sizes, given.only, worker, given.longest)
        print(study_of(bench, given.out, command))


if __name__ == "__main__":
    main()

"""Speed of a training step beside a plain Flax transformer and PyTorch, and what checkpoints, recruiting and a restart
cost.

    pip install -e '.[parity]'        # PyTorch and transformers, for their column
    python -m benchmarks.training [--rounds 12] [--quick]

The contenders take turns, round by round, in one run; a figure is the median over rounds of the ratio within a round,
so that drift of the machine hits all alike. Compilation and the first call of each turn are left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import plain, restart
from benchmarks.peers import Refused, Worker
from benchmarks.training_page import body
from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import Dial
from localist_jax.model import Transformer, forward
from localist_jax.parallel import mesh as meshes
from localist_jax.parallel import sharding
from localist_jax.recruitment.recruiter import hooks
from localist_jax.report import study
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.journal import Journal
from localist_jax.training.run import Run, fresh_state
from localist_jax.training.state import GATES, at_path, with_leaf
from localist_jax.training.step import compile_step

DIALS = {"λ=0": ("fixed", 0.0), "any-dial": ("any", 1.0), "λ=1": ("fixed", 1.0)}
OPEN = 0.2  # share of gates that are open, as trained models have it
CALLS = 3  # of a contender in its turn
CADENCE = 150  # steps between checkpoints, as the quickstart has it
QUICK = plain.Sizes(layers=2, width=32, heads=2, hidden=64, vocabulary=300, context=32, batch=2)
Turn = Callable[[], float]


def settings_for(sizes: plain.Sizes, dial: str) -> config.Config:
    """The plain model's sizes with blocks, gates, units and a router on top."""
    mode, locality = DIALS[dial]
    s = sizes
    return config.Config(
        data=config.Data(vocab_size=s.vocabulary, context=s.context, batch=s.batch),
        model=config.Model(
            layers=s.layers, width=s.width, heads=s.heads, kv_heads=s.heads, head_size=s.width // s.heads,
            feed_forward=s.hidden, perception_window=0, qk_norm=False, dtype=s.dtype,
        ),
        dial=config.DialTraining(mode=mode, locality=locality),
        optimizer=config.Optimizer(kind="adamw", learning_rate=plain.PEAK),
    )  # fmt: skip


class Ours:
    """Our training step at one dial; a state of its own."""

    def __init__(self, sizes: plain.Sizes, dial: str):
        self.settings = settings_for(sizes, dial)
        self.mesh = meshes.make_mesh(self.settings.mesh, jax.devices()[:1])
        self.model = Transformer(self.settings.model, sizes.vocabulary)
        state = fresh_state(self.model, self.settings, self.mesh)
        gates = at_path(state.params, GATES)
        opened = jax.random.bernoulli(jax.random.key(1), OPEN, gates.shape).astype(gates.dtype)
        opened = jax.device_put(opened.at[..., 0].set(1.0), gates.sharding)
        self.state = dataclasses.replace(state, params=with_leaf(state.params, GATES, opened))
        lengths = np.ones(sizes.vocabulary, np.int32)
        self._step = compile_step(self.model, self.settings, lengths, self.state)
        tokens, targets = drawn(sizes)
        places = np.broadcast_to(np.arange(sizes.context, dtype=np.int32), tokens.shape)
        batch = Batch(tokens, targets, np.ones_like(tokens), places)
        self.batch = jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def __call__(self) -> None:
        """One step, to its end."""
        self.state, metrics = self._step(self.state, self.batch)
        jax.block_until_ready(metrics)

    @property
    def compile_count(self) -> int:
        """How often the step was compiled so far."""
        return self._step._cache_size()  # type: ignore[attr-defined]


def drawn(sizes: plain.Sizes) -> tuple[np.ndarray, np.ndarray]:
    """Random tokens and targets."""
    both = np.random.default_rng(0).integers(2, sizes.vocabulary, (2, sizes.batch, sizes.context))
    return both[0].astype(np.int32), both[1].astype(np.int32)


def flax_turns(sizes: plain.Sizes) -> dict[str, Callable[[], None]]:
    """Calls of the plain model, by part."""
    state, functions = plain.make(sizes, jax.random.key(0))
    kept = {"state": state}
    batch = jax.device_put(drawn(sizes))

    def step():
        kept["state"], value = functions["step"](kept["state"], *batch)
        jax.block_until_ready(value)

    calls: dict[str, Callable[[], None]] = {"plain Flax, step": step}
    for part in ("forward", "gradient"):
        calls[f"plain Flax, {part}"] = lambda f=functions[part]: jax.block_until_ready(
            f(kept["state"], *batch)
        )  # type: ignore[misc]
    return calls


def our_parts(ours: Ours) -> dict[str, Callable[[], None]]:
    """Forward alone and the loss's gradient of our model at λ=0, without what the step does beside them."""

    def loss(params, state, batch):
        out = forward(
            ours.model, params, batch.tokens, Dial(0.0), state.blocks, positions=batch.positions,
            segments=batch.segments, noise=1.0, rngs={"router": state.key},
        )  # fmt: skip
        return bits.code_length(out.logits, batch.targets).mean()

    parts = {"forward": jax.jit(loss), "gradient": jax.jit(jax.value_and_grad(loss))}
    return {
        f"λ=0, {part}": lambda f=f: jax.block_until_ready(f(ours.state.params, ours.state, ours.batch))  # type: ignore[misc]
        for part, f in parts.items()
    }


def timed(call: Callable[[], Any]) -> Turn:
    """Seconds of one call, the median of a few after one that does not count."""

    def turn() -> float:
        call()
        seconds = []
        for _ in range(CALLS):
            begun = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - begun)
        return statistics.median(seconds)

    return turn


def torch_turns(worker: Worker, sizes: plain.Sizes) -> dict[str, Turn]:
    """Calls of PyTorch's worker, by part; empty where it is missing."""
    turns: dict[str, Turn] = {}
    for part in ("forward", "gradient", "step"):
        name = f"PyTorch, {part}"
        try:
            about = worker.make(name, "llama", part=part, sizes=dataclasses.asdict(sizes))
        except Refused as reason:
            print(f"{name}: {reason}", file=sys.stderr, flush=True)
            return {}
        if about["parameters"] != sizes.parameters:
            raise ValueError(f"{name}: {about['parameters']} parameters, expected {sizes.parameters}")

        def turn(name=name) -> float:
            worker.call(name)
            return statistics.median(worker.call(name) for _ in range(CALLS))

        turns[name] = turn
    return turns


def product_rate(sizes: plain.Sizes) -> Turn:
    """Seconds per 10⁹ operations of a large matrix product in the same precision: what the machine can do at best."""
    n = 1024 if sizes.width >= 256 else 128
    x = jnp.ones((n, n), sizes.dtype)
    multiply = jax.jit(lambda a, b: a @ b)
    turn = timed(lambda: jax.block_until_ready(multiply(x, x)))
    return lambda: turn() / (2 * n**3 / 1e9)


def speeds(sizes: plain.Sizes, rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, one per round."""
    contenders = {name: Ours(sizes, name) for name in DIALS}
    calls: dict[str, Callable[[], Any]] = {f"{name}, step": ours for name, ours in contenders.items()}
    calls |= our_parts(contenders["λ=0"]) | flax_turns(sizes)
    turns = {name: timed(call) for name, call in calls.items()}
    turns["matrix products"] = product_rate(sizes)
    for call in calls.values():
        call()  # compiles
    with Worker() as worker:
        turns |= torch_turns(worker, sizes)
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for nth in range(rounds):
            print(f"round {nth + 1} of {rounds}", file=sys.stderr, flush=True)
            for name, turn in turns.items():
                seconds[name].append(turn())
    for name, ours in contenders.items():
        if ours.compile_count != 1:
            raise RuntimeError(
                f"{name}: the step was compiled {ours.compile_count} times; its state has moved"
            )
    return seconds


def checkpoint_cost(sizes: plain.Sizes, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds that `steps` steps take with one asynchronous save before them and without, and that `save` blocks."""
    ours = Ours(sizes, "any-dial")
    ours()
    found: dict[str, list[float]] = {"without": [], "with": [], "blocked": []}
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints:

        def block(save: bool, nth: int) -> float:
            begun = time.perf_counter()
            if save:
                checkpoints.save(nth, ours.state, manifest={}, cursor={})
                found["blocked"].append(time.perf_counter() - begun)
            for _ in range(steps):
                ours()
            taken = time.perf_counter() - begun
            checkpoints.wait()
            return taken

        checkpoints.save(1, ours.state, manifest={}, cursor={})
        checkpoints.wait()
        for nth in range(rounds):
            found["without"].append(block(False, 0))
            found["with"].append(block(True, nth + 2))
    return found


def idle_cost(sizes: plain.Sizes, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step with a recruiter that waits and of one without, in turn, and of the waiting call itself."""
    ours = Ours(sizes, "any-dial")
    settings = ours.settings.replace(
        recruitment={"every": 1000, "start": 0.9}, model={"generations": 2}, train={"steps": 10**6}
    )
    (recruiter,) = hooks(settings)
    with tempfile.TemporaryDirectory() as folder, Journal(folder) as journal:
        run = Run(Path(folder), settings, ours.model, None, ours.state, ours.mesh)  # type: ignore[arg-type]
        recruiter.start(run, journal, 0)
        ours()
        found: dict[str, list[float]] = {"without": [], "with": [], "hook": []}
        for nth in range(1, rounds * CALLS + 1):
            for which in ("without", "with") if nth % 2 else ("with", "without"):
                begun = time.perf_counter()
                if which == "with":
                    ours.state = recruiter(nth, ours.state, ours.batch)
                    found["hook"].append(time.perf_counter() - begun)
                ours()
                found[which].append(time.perf_counter() - begun)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Measures, and writes the study."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"), help="folder of the study")
    given = parser.parse_args(arguments)
    os.environ.setdefault(
        "OMP_WAIT_POLICY", "passive"
    )  # PyTorch's waiting threads must not spin on others' cores
    sizes = QUICK if given.quick else plain.Sizes()
    seconds = speeds(sizes, given.rounds)
    saving = checkpoint_cost(sizes, max(3, given.rounds // 2), 3 if given.quick else 12)
    idle = idle_cost(sizes, given.rounds)
    text, figures = body(sizes, seconds, saving, idle, CADENCE, restart.measure())
    print(text)
    command = shlex.join(
        ["python", "-m", "benchmarks.training", *(sys.argv[1:] if arguments is None else arguments)]
    )
    study.write(
        given.out, "training", title="The training step beside its peers", body=text, command=command,
        seeds=(), figures=figures, pictures={},
    )  # fmt: skip


if __name__ == "__main__":
    main()

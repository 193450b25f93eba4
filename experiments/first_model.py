"""Measure what one set of weights does at each dial. With controls, on a corpus of real text.

    python -m experiments.first_model --runs runs/wikitext2_small/seed0 runs/wikitext2_small/seed1

Takes finished runs that differ in their seed alone. Measures each on its whole validation split at four
dials; at λ=1 also with all gates closed and with the gates shuffled within each head, two nulls for what
the learned gates are worth. Counts compilations over twenty settings, times the training step, and kills
and resumes a short run to see whether it ends bit for bit where an unbroken one ends.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cases import Case, Figures, Results, fingerprint
from experiments.study import Options, Page, Study
from localist_jax.data import train_batches, valid_batches
from localist_jax.locality import Dial
from localist_jax.report import figures, study
from localist_jax.report.page import SWEEP_COLUMNS
from localist_jax.training import journal
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import Run, abstract_state
from localist_jax.training.state import GATES, at_path, with_leaf
from localist_jax.training.step import make_train_step

LOCALITIES = (0.0, 0.9, 0.99, 1.0)
TIMED_STEPS = 40
RESUME = {"steps": 12, "log_every": 1, "eval_every": 6, "save_every": 4, "keep": 2}


@functools.cache
def opened(paths: tuple[Path, ...]) -> list[Run]:
    """Return the runs.

    Raises:
      ValueError: they differ in more than their seed.
    """
    runs = [Run.open(path) for path in paths]
    seeds = [run.settings.train.seed for run in runs]
    if len(set(seeds)) < 2 or len({run.settings.replace(train={"seed": 0}) for run in runs}) > 1:
        raise ValueError(f"first_model: needs runs that differ in their seed alone, got seeds {seeds}")
    return runs


def cases(options: Options) -> list[Case]:
    """Return a case for each run, and those of the first run alone."""
    dials = [Case(f"dials/{nth}", {"run": nth}, _dials, cost=3.0) for nth in range(len(options.runs))]
    return [*dials, *(Case(name, {}, _first) for name in FIRST)]


def _dials(runs: Sequence[Run], case: Case) -> Figures:
    return _measure(runs[case.settings["run"]])


def _first(runs: Sequence[Run], case: Case) -> Figures:
    return {case.name: FIRST[case.name](runs[0])}


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    runs = opened(tuple(options.runs))
    swept, first = [found[f"dials/{nth}"] for nth in range(len(runs))], runs[0]
    values: dict[str, Any] = {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(first.state.params)),
        "training_tokens": first.settings.train.steps
        * first.settings.data.batch
        * first.settings.data.context,
        "validation_tokens": swept[0]["tokens"],
        **{name: found[name][name] for name in FIRST},
        "kkt_residual_over_price": [_kkt(run) for run in runs],
    }
    for value in LOCALITIES:
        for name, _, _ in SWEEP_COLUMNS:
            values[f"{name}@{value:g}"] = [row[f"{value:g}"][name] for row in swept]
    for null in ("gates closed", "gates shuffled"):
        values[f"bits_per_token@1, {null}"] = [row[null] for row in swept]
    pictures = {
        "dial": figures.dial_curves([swept[0][f"{value:g}"] for value in LOCALITIES]),
        "gates": figures.gate_maps(
            np.asarray(at_path(first.state.params, GATES)),
            np.asarray(first.state.blocks.active),
            first.settings.model.router_layer,
        ),
        "training": figures.training_curves(journal.read(first.workdir / "metrics.jsonl")),
    }
    seeds = [run.settings.train.seed for run in runs]
    return Page("A first any-dial model", _body(first, values), seeds, values, pictures)


def _measure(run: Run) -> Figures:
    """Return figures by λ, and the two nulls' code lengths at λ=1, over the whole validation split."""
    batches = valid_batches(run.data.valid, run.settings.data.batch, 0)
    blocks, params = run.state.blocks, run.state.params
    gates = np.asarray(at_path(params, GATES))
    found: Figures = {
        f"{row['locality']:g}": row for row in run.evaluator.sweep(params, blocks, batches, LOCALITIES)
    }
    rng = np.random.default_rng(run.settings.train.seed)
    nulls = {"gates closed": np.zeros_like(gates), "gates shuffled": _shuffled(gates, rng)}
    for name, changed in nulls.items():
        other = with_leaf(params, GATES, jnp.asarray(changed))
        found[name] = run.evaluator.bits_per_token(other, blocks, batches, Dial(1.0))["bits_per_token"]
    found["tokens"] = sum(int(batch.scored.sum()) for batch in batches)
    return found


def _shuffled(gates: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same gate values in each head, at other pairs of blocks (row and column 0 stay)."""
    inner = gates[..., 1:, 1:].reshape(*gates.shape[:2], -1)
    mixed = gates.copy()
    mixed[..., 1:, 1:] = rng.permuted(inner, axis=-1).reshape(gates[..., 1:, 1:].shape)
    return mixed


def _kkt(run: Run) -> float:
    """Mean distance of the gates from T6's dichotomy at the end of training, as a share of the price."""
    last = [r for r in journal.read(run.workdir / "metrics.jsonl") if r["kind"] == "train"][-1]
    return last["kkt_residual"] / last["gate_price"]


def compile_count(run: Run) -> int:
    """Compilations for twenty settings of the dial, per layer, head and request included."""
    c, batch = run.settings.model, run.valid[0]
    rng = np.random.default_rng(0)
    dials = [Dial(x) for x in np.linspace(0, 1, 12)]
    dials += [Dial.regime(name, c.layers) for name in ("audit", "balanced")]
    dials += [Dial.per_layer(list(rng.random(c.layers))), Dial.progressive(1.0, 3.0, c.layers)]
    dials += [
        Dial.per_head(rng.random((c.layers, c.heads)).tolist()),
        Dial(0.5) + Dial.per_layer([0.9] * c.layers),
    ]
    dials += [Dial.for_requests(list(rng.random(len(batch.tokens)))) for _ in range(2)]
    assert len(dials) == 20
    fresh = dataclasses.replace(run).evaluator
    for dial in dials:
        fresh.measure(run.state.params, run.state.blocks, [batch], dial)
    return fresh.compile_count


def tokens_per_second(run: Run) -> float:
    """Training speed of the compiled step, data included; the median over single steps."""
    settings = run.settings
    step = jax.jit(make_train_step(run.model, settings, run.tokenizer.byte_lengths))
    batches = train_batches(run.data.train, settings.data.batch, settings.train.seed)
    seconds = []
    for _ in range(TIMED_STEPS):
        begun = time.perf_counter()
        jax.block_until_ready(step(run.state, next(batches)))
        seconds.append(time.perf_counter() - begun)
    return settings.data.batch * settings.data.context / float(np.median(seconds))


def resumes_exactly(run: Run) -> bool:
    """Whether a short run of this configuration, killed with SIGKILL and resumed, equals an unbroken one."""
    with tempfile.TemporaryDirectory() as folder:
        settings = run.settings.replace(train=RESUME)
        path = Path(folder) / "settings.py"
        path.write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict({settings.to_dict()!r})\n"
        )
        whole, broken = Path(folder) / "whole", Path(folder) / "broken"
        command = [sys.executable, "-m", "experiments.launch", f"--config={path}"]
        subprocess.run([*command, f"--workdir={whole}"], check=True, capture_output=True)
        child = subprocess.Popen(
            [*command, f"--workdir={broken}"], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while child.poll() is None and not _reached(broken, 7):
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
        if child.wait() != -signal.SIGKILL:
            raise RuntimeError("first_model: the run that should be killed ended by itself")
        subprocess.run([*command, f"--workdir={broken}"], check=True, capture_output=True)
        return _same_end(run, whole, broken)


def _reached(workdir: Path, step: int) -> bool:
    path = workdir / "metrics.jsonl"
    return path.exists() and any(record["step"] >= step for record in journal.read(path))


def _same_end(run: Run, one: Path, other: Path) -> bool:
    timing = ("time", "tokens_per_second")
    curves = [
        [{k: v for k, v in r.items() if k not in timing} for r in journal.read(path / "metrics.jsonl")]
        for path in (one, other)
    ]
    wanted = abstract_state(run.model, run.settings, run.mesh)
    ends = []
    for path in (one, other):
        with Checkpoints(path / "checkpoints") as checkpoints:
            ends.append(checkpoints.restore(wanted)[0])
    leaves = zip(jax.tree.leaves(ends[0].params), jax.tree.leaves(ends[1].params), strict=True)
    return curves[0] == curves[1] and all(np.array_equal(a, b) for a, b in leaves)


def _body(run: Run, values: dict[str, Any]) -> str:
    settings = run.settings
    rows = [
        [f"{value:g}", *(study.spread(values[f"{name}@{value:g}"], form) for name, _, form in SWEEP_COLUMNS)]
        for value in LOCALITIES
    ]
    table = study.table(["λ", *(title for _, title, _ in SWEEP_COLUMNS)], rows)
    cost = np.subtract(values["bits_per_token@1"], values["bits_per_token@0"])
    nulls = {name: values[f"bits_per_token@1, {name}"] for name in ("gates closed", "gates shuffled")}
    extra = {
        name: study.spread(list(np.subtract(x, values["bits_per_token@1"])), "+.4f")
        for name, x in nulls.items()
    }
    return f"""
One set of weights, trained at any dial on {settings.data.corpus} ({values["parameters"]:,} parameters,
{values["training_tokens"]:,} training tokens), measured at four dials on all {values["validation_tokens"]:,}
held-out tokens. Mean over {len(cost)} seeds ± half their range.

{table}
{{dial}}

Going from λ=0 to λ=1 costs {study.spread(list(cost), "+.4f")} bits per token. Open share counts causal pairs over all
layers, perception, window and sink included; entropy, fidelity and price are means over all layers and heads.

**Nulls at λ=1**, same weights: closing every gate costs {extra["gates closed"]} bits per token more, and
shuffling the learned gates among the block pairs of each head (their number unchanged) {extra["gates shuffled"]}.
The first says how much of attention's worth goes through the gates beyond the always-open window, the second whether it
matters *which* gates are open. Neither compares with a model that was trained without gates: that takes a study of its
own.

{{gates}}

{{training}}

- Twenty settings of the dial, per layer, head and request among them, compiled
  {values["compile_count_of_20_dials"]} time(s).
- Training speed: {values["tokens_per_second"]:,} tokens per second.
- Killed with SIGKILL and resumed, a run ends bit for bit where an unbroken one ends: {values["resume_exact"]}.
- Mean KKT residual of the gates over their price at the end: \
{", ".join(f"{x:.3f}" for x in values["kkt_residual_over_price"])} (0 at a stationary point, T6).
"""


FIRST: dict[str, Callable[[Run], Any]] = {  # figures of the first run alone
    "compile_count_of_20_dials": compile_count,
    "tokens_per_second": lambda run: round(tokens_per_second(run)),
    "resume_exact": resumes_exactly,
}
STUDY = Study(
    "first_model",
    __doc__ or "",
    cases=cases,
    page=page,
    options={
        "--runs": {
            "nargs": "+",
            "type": Path,
            "required": True,
            "help": "folders of finished runs, one per seed",
        }
    },
    bench=lambda options: opened(tuple(options.runs)),
    data=lambda runs, case: fingerprint([runs[case.settings.get("run", 0)].workdir / "metrics.jsonl"]),
)

if __name__ == "__main__":
    STUDY.main()

"""The tasks of the comparison, at three sizes: a probe for CPU cores, minutes and an hour or so of one GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.dial_sweep import babi, blimp, recall
from experiments.dial_sweep.conditions import CONDITIONS
from localist_jax import config
from localist_jax.config import Config
from localist_jax.data import Prepared, prepare, valid_batches
from localist_jax.locality import Dial, reach
from localist_jax.model import forward
from localist_jax.training.run import Run
from localist_jax.training.state import GATES, at_path

ENDS_AND_CONTROLS = ("any", "dense", "dense_above", "always", "localist", "window", "neighbours")
CERTIFIED_ROWS = 8  # validation rows whose pairs are followed through the layers (T16)


@dataclasses.dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
      title, what: for the page.
      settings: by scale; seed 0. A task without the scale asked for is run at the probe's.
      conditions: trained on it; all of them where it is text, those that a plain answer can tell apart elsewhere.
      prepare: (settings, folder for caches) → rows and tokenizer.
      extra: (run, condition) → function of λ: further figures at that dial.
      text: whether every next token is scored, so that code length is the figure; else only answers are.
    """

    title: str
    what: str
    settings: dict[str, Config]
    conditions: tuple[str, ...]
    prepare: Callable[[Config, Path], Prepared]
    extra: Callable[[Run, str], Callable[[float], dict[str, Any]]] = lambda run, condition: (
        lambda locality: {}
    )
    text: bool = False

    def at(self, scale: str) -> Config:
        """The configuration at a scale."""
        return self.settings.get(scale, self.settings["cpu"])


def measure(task: Task, run: Run, condition: str, localities: tuple[float, ...]) -> dict[str, Any]:
    """Everything that is measured on one run: a row per λ, and the certified share at λ=1."""
    batches = run.valid
    rows = run.evaluator.sweep(run.state.params, run.state.blocks, batches, localities)
    extra = task.extra(run, condition)
    for row in rows:
        del row["by_layer"]
        row |= extra(row["locality"])
    figures: dict[str, Any] = {"rows": rows}
    if 1.0 in localities:
        figures["certified_share"] = certified_share(run)
    return figures


def certified_share(run: Run) -> float:
    """Share of causal pairs whose later position provably does not depend on the earlier one's state at λ=1."""
    c = run.settings.model
    batch = valid_batches(run.data.valid, CERTIFIED_ROWS, CERTIFIED_ROWS)[0]
    dial = Dial(1.0).broadcast(CERTIFIED_ROWS, c.layers, c.heads)

    @jax.jit
    def reached(params, blocks, batch):
        where = {"positions": batch.positions, "segments": batch.segments}
        out = forward(run.model, params, batch.tokens, dial, blocks, **where)
        gates = at_path(params, GATES)
        pairs, everything = (
            reach.open_pairs(g, out.blocks, batch.positions, batch.segments, c.window)
            for g in (gates, jnp.ones_like(gates))
        )
        return (reach.reach(pairs) & everything[0]).sum() / everything[0].sum()

    return float(1 - reached(run.state.params, run.state.blocks, batch))


def _blimp(run: Run, condition: str) -> Callable[[float], dict[str, Any]]:
    if condition not in ("any", "dense"):
        return lambda locality: {}
    accuracy = blimp.reader(run)
    return lambda locality: {"blimp": accuracy(locality)}


def _settings(**sections: dict[str, Any]) -> Config:
    return config.resolve(sections)


def _in_cache(settings: Config, folder: Path) -> Prepared:
    return prepare(settings.data, folder)


_PROBE = {"eval_every": 10_000, "save_every": 500, "log_every": 50, "keep": 1}
_ONCE = {
    "eval_every": 0,
    "save_every": 100_000,
    "log_every": 100,
    "keep": 1,
}  # runs of seconds: saved when done
_SMALL = {
    "layers": 3, "width": 64, "heads": 4, "kv_heads": 4, "head_size": 16, "feed_forward": 192, "block_units": 16,
    "window": 1,
}  # fmt: skip
_MEDIUM = {**_SMALL, "width": 128, "head_size": 32, "feed_forward": 384}
_TEXT = {
    "layers": 4, "width": 96, "heads": 4, "kv_heads": 4, "head_size": 24, "feed_forward": 256, "block_units": 16,
    "perception_window": 2,
}  # fmt: skip
_TEXT_MINUTES = {
    "layers": 4, "width": 256, "heads": 4, "kv_heads": 4, "head_size": 64, "feed_forward": 704, "block_units": 16,
    "perception_window": 2, "dtype": "bfloat16",
}  # fmt: skip
_TEXT_GPU = {
    "layers": 12, "width": 512, "heads": 8, "kv_heads": 8, "head_size": 64, "feed_forward": 1408, "router_layer": 2,
    "blocks": 32, "block_capacity": 32, "block_units": 16, "perception_window": 2, "dtype": "bfloat16",
}  # fmt: skip


def _text(title: str, steps: int, **model: Any) -> Task:
    """WikiText-2, with these changes to the model."""
    data = {"corpus": "wikitext-2", "vocab_size": 2048, "context": 256, "batch": 4, "valid_rows": 256}
    medium = {**data, "vocab_size": 4096, "batch": 32, "valid_rows": 0}
    large = {**data, "vocab_size": 16_384, "context": 1024, "batch": 16, "valid_rows": 128}
    settings = {
        "cpu": _settings(
            data=data, model=_TEXT | model, optimizer={"learning_rate": 6e-3}, train={"steps": steps, **_PROBE}
        ),
        "gpu-minutes": _settings(
            data=medium, model=_TEXT_MINUTES | model, optimizer={"learning_rate": 6e-3}, train={"steps": 800, **_ONCE}
        ),
        "gpu": _settings(
            data=large, model=_TEXT_GPU | model, optimizer={"learning_rate": 1e-3}, train={"steps": 1000, **_PROBE}
        ),
    }  # fmt: skip
    what = f"next token, byte-level BPE; {model['window']} always open in the localist layers"
    return Task(title, what, settings, tuple(CONDITIONS), _in_cache, _blimp, text=True)


TASKS: dict[str, Task] = {
    "wikitext2": _text("WikiText-2", 2400, window=1),
    "wikitext2_window": _text(
        "WikiText-2 with a window", 1800, window=16, blocks=32, block_capacity=32
    ),
    "recall": Task(
        "Associative recall",
        f"{recall.PAIRS} pairs among fillers, asked for at the end of the row; only the answers are scored",
        {
            "cpu": _settings(
                data={"corpus": "recall", "context": 64, "batch": 64, "valid_rows": 512},
                model={**_SMALL, "perception_window": 2},
                train={"steps": 600, **_PROBE},
            ),
            "gpu-minutes": _settings(
                data={"corpus": "recall", "context": 64, "batch": 256, "valid_rows": 512},
                model={**_MEDIUM, "perception_window": 2},
                train={"steps": 1500, **_ONCE},
            ),
        },
        ENDS_AND_CONTROLS,
        lambda settings, folder: recall.prepare(settings),
    ),
    "babi": Task(
        "bAbI 1, 2 and 16",
        "one model for the three tasks; only the answers are scored",
        {
            "cpu": _settings(
                data={"corpus": "babi", "vocab_size": 512, "context": 128, "batch": 16, "valid_rows": 256},
                model={**_SMALL, "perception_window": 8},
                optimizer={"learning_rate": 6e-3},
                train={"steps": 1000, **_PROBE},
            ),
            "gpu-minutes": _settings(
                data={"corpus": "babi", "vocab_size": 512, "context": 128, "batch": 64, "valid_rows": 256},
                model={**_MEDIUM, "perception_window": 8},
                train={"steps": 2000, **_ONCE},
            ),
        },
        ENDS_AND_CONTROLS,
        lambda settings, folder: babi.prepare(settings),
        lambda run, condition: babi.reader(run),
    ),
}  # fmt: skip

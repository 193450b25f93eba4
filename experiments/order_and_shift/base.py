"""The base LLM of every stream: it has read general text, so that a domain brings new words and facts, not English."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import jax

from experiments.cases import Case, Figures, Store
from experiments.clinic import setting
from experiments.order_and_shift.texts import Library
from localist_jax import config
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.run import fresh_state
from localist_jax.training.state import TrainState

STEPS, TELL = 3000, 500
library = functools.cache(Library)  # read once in a process


def settings(seed: int, width: int) -> config.Config:
    """Return the settings of the clinic's LLM and rule; it learns faster, surveys more often and judges later.

    Chosen on the order of seed 100, which is not reported.
    """
    return setting.settings(seed, width).replace(
        optimizer={"learning_rate": 1e-2},
        hierarchy={"start": 40, "every": 8, "horizon": 192, "placebos": 6, "capacity": 8},
    )


def case_of(width: int) -> Case:
    """Return the case of the base, which all others need."""
    return Case("base", {"config": settings(0, width).to_dict(), "steps": STEPS}, measured)


def read(folder: Path) -> TrainState:
    """Return the base that was trained in this folder."""
    return EnsembleRun.open(folder).ensemble.state(0)


def measured(store: Store, case: Case) -> Figures:
    """Train the base on batches of WikiText-2; return the bits per token of the last one."""
    chosen, steps, tokenizer = (
        config.resolve(case.settings["config"]),
        case.settings["steps"],
        library().tokenizer,
    )
    model = Transformer(chosen.model, tokenizer.vocab_size)
    engine = EnsembleEngine(model, chosen, tokenizer.byte_lengths)
    state = fresh_state(model, chosen, make_mesh(config.Mesh(), jax.devices()[:1]))
    alone, rate = Ensemble.create(state, 1, tokenizer.vocab_size), 0.0
    for step, batch in enumerate(library().general(steps, 0), 1):
        if step % TELL == 0:
            rate = float(engine.losses(state, batch, alone.dial(0)).sum() / batch.scored.sum())
            print(f"order_and_shift: base, batch {step} of {steps}: {rate:.2f} bits/token", file=sys.stderr)
        state = engine.train(state, batch)
    EnsembleRun.of(store.own(case), alone.with_state(0, state), chosen, tokenizer).save(steps)
    return {"bits_per_token": rate}

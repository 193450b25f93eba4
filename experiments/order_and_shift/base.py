"""The base LLM of every stream: it has read general text, so that a domain brings new words and facts, not English."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import jax

from experiments.clinic import setting
from experiments.order_and_shift.texts import Library
from localist_jax import config
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.run import fresh_state, is_ensemble
from localist_jax.training.state import TrainState

STEPS, TELL = 3000, 500


def settings(seed: int, width: int) -> config.Config:
    """Return the clinic's settings, but faster learning, more surveys, and later judgement by fewer placebos.

    Chosen on the order of seed 100, which is not reported.
    """
    return setting.settings(seed, width).replace(
        optimizer={"learning_rate": 1e-2},
        hierarchy={"start": 40, "every": 8, "horizon": 192, "placebos": 6, "capacity": 8},
    )


def folder_of(library: Library, width: int, root: Path) -> Path:
    """Return the folder of the base, which its settings, its tokenizer and its steps name."""
    about = json.dumps([settings(0, width).to_dict(), library.tokenizer.fingerprint, STEPS], sort_keys=True)
    return root / f"base{width}-{hashlib.sha256(about.encode()).hexdigest()[:12]}"


def pretrained(library: Library, width: int, root: Path) -> TrainState:
    """Return the base after `STEPS` batches of WikiText-2; read from its folder if it was trained before."""
    folder = folder_of(library, width, root)
    if is_ensemble(folder):
        return EnsembleRun.open(folder).ensemble.state(0)
    chosen, tokenizer = settings(0, width), library.tokenizer
    model = Transformer(chosen.model, tokenizer.vocab_size)
    engine = EnsembleEngine(model, chosen, tokenizer.byte_lengths)
    state = fresh_state(model, chosen, make_mesh(config.Mesh(), jax.devices()[:1]))
    alone = Ensemble.create(state, 1, tokenizer.vocab_size)
    for step, batch in enumerate(library.general(STEPS, 0), 1):
        if step % TELL == 0:
            rate = engine.losses(state, batch, alone.dial(0)).sum() / batch.scored.sum()
            print(f"order_and_shift: base, batch {step} of {STEPS}: {rate:.2f} bits/token", file=sys.stderr)
        state = engine.train(state, batch)
    EnsembleRun.of(folder, alone.with_state(0, state), chosen, tokenizer).save(STEPS)
    return state

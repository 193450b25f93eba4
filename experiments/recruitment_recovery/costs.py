"""The cost of a trial and of a birth, in ordinary training steps of the study's own model."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.cases import Case, Figures, Store
from experiments.recruitment_recovery.runs import settings_of, stream
from localist_jax.config import Config, resolve
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.recruitment import growth, trial
from localist_jax.training.run import boxed_state, fresh_state
from localist_jax.training.state import TrainState
from localist_jax.training.step import make_train_step

ROUNDS = 15
FEW, MANY = 2, 32  # placebos of the two trials from which the cost of one contender is taken


def case() -> Case:
    """Return the case of the timings, which nothing else may disturb."""
    return Case("costs", {"config": settings_of("recruits", 2, 0).to_dict()}, costs, alone=True)


def costs(store: Store, case: Case) -> Figures:
    """Return what a trial and a birth take, as medians of interleaved rounds.

    Returns:
      trial_step_ratio: a step with a trial of one candidate beside it, over a step; with its 32 placebos too.
      growth_pause_steps: a birth inside the capacity, compiled before.
    """
    settings = resolve(case.settings["config"])
    _, prepared, _ = stream(settings, 2)
    mesh = make_mesh(settings.mesh)
    model = Transformer(settings.model, prepared.tokenizer.vocab_size, mesh.shape["data"], mesh)
    state = fresh_state(model, settings, mesh)
    batch = jax.device_put(prepared.train.take(np.arange(settings.data.batch)))
    boxed = boxed_state(model, settings)
    step = jax.jit(make_train_step(model, settings, prepared.tokenizer.byte_lengths))
    birth = _birth(settings, boxed, state)
    timed: dict[str, Callable[[], Any]] = {
        "step": lambda: step(state, batch),
        "birth": lambda: growth.grow(state, [birth], boxed, mesh, settings.model.generations),
    }
    for placebos in (FEW, MANY):
        timed[str(placebos)] = _trial(model, settings, boxed, state, batch, birth, placebos)
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(ROUNDS + 1):
        for name, call in timed.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            seconds[name].append(time.perf_counter() - begun)
    took = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first one compiles
    each = (took[str(MANY)] - took[str(FEW)]) / (MANY - FEW)
    alone = took[str(FEW)] - FEW * each
    return {
        "step_seconds": took["step"],
        "trial_step_ratio": 1 + alone / took["step"],
        "trial_step_ratio_with_placebos": 1 + took[str(MANY)] / took["step"],
        "growth_pause_steps": took["birth"] / took["step"],
    }


def _birth(settings: Config, boxed: TrainState, state: TrainState) -> growth.Birth:
    child, parent, number = (jnp.asarray(x, jnp.int32) for x in (2, 1, 1))
    direction = 0.1 * jax.random.normal(jax.random.key(0), (settings.model.width,))
    fresh = growth.fresh(growth.Birth.blank(settings), growth.axis_names(boxed), state, parent, number)
    return dataclasses.replace(
        fresh, child=child, parent=parent, number=number, share=jnp.asarray(0.5), direction=direction
    )


def _trial(model, settings, boxed, state, batch, birth, placebos: int) -> Callable[[], Any]:
    made = settings.replace(recruitment={"placebos": placebos})
    lanes = 1 + placebos
    room = settings.model.anchor_capacity
    nobody = (np.full(room, -1, np.int32), np.zeros(room, np.float32))
    blank = trial.closed(made)
    opened = trial.opened(blank, state, made, [birth] * lanes, [nobody] * lanes, [1.0])
    advance = jax.jit(trial.make_trial_step(model, made, growth.axis_names(boxed)))
    return lambda: advance(state, opened, batch)

"""Distilling: low-rank deltas learn, at every dial, what the original model says at λ=0.

The teacher is the model itself at λ=0, where deltas add exactly 0 and all gates are open; the student is the same
parameters at a dial. Only the deltas move: router, filing and gates keep what calibration found, the trunk is frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util

from localist_jax import bits, config
from localist_jax.data import Batch, Rows, train_batches
from localist_jax.locality import Dial
from localist_jax.model import Transformer, forward
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.dials import training_dial
from localist_jax.training.journal import Journal
from localist_jax.training.loop import TrainingDiverged
from localist_jax.training.progress import Progress
from localist_jax.training.run import Run
from localist_jax.training.state import DELTAS, TrainState, optimizer
from localist_jax.types import PyTree

SCORED = 384  # positions of each row whose distributions are compared: the vocabulary's product is a fifth of a step
Metrics = dict[str, jax.Array]


def make_distil_step(
    model: Transformer, settings: config.Config
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure step function, ready for `jax.jit(…, donate_argnums=0)`.

    The loss is KL(original ‖ student) at random positions, bits per token; the dial is drawn as in training.
    """
    c, steps, tx = settings.model, settings.train.steps, optimizer(settings)

    def predictions(params, batch, dial, blocks, read_at):
        places = {"positions": batch.positions, "segments": batch.segments}
        out = forward(model, params, batch.tokens, dial, blocks, **places, read_at=read_at)
        return jax.nn.log_softmax(out.logits)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dial_key, place_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        rows, length = batch.tokens.shape
        dial = training_dial(dial_key, settings.dial, state.step / steps, c.layers).broadcast(
            rows, c.layers, c.heads
        )
        chance = jnp.where(batch.segments > 0, jax.random.uniform(place_key, batch.tokens.shape), -1.0)
        _, read_at = jax.lax.top_k(chance, min(SCORED, length))
        counted = jnp.take_along_axis(batch.segments, read_at, 1) > 0
        blocks = state.blocks
        teacher = predictions(
            state.params, batch, Dial(0.0).broadcast(rows, c.layers, c.heads), blocks, read_at
        )
        teacher = jax.lax.stop_gradient(teacher)

        def loss(deltas: PyTree) -> jax.Array:
            student = predictions(merged(state.params, deltas), batch, dial, blocks, read_at)
            gap = (jnp.exp(teacher) * (teacher - student)).sum(-1)
            return jnp.where(counted, gap, 0.0).sum() / jnp.maximum(1, counted.sum())

        value, gradient = jax.value_and_grad(loss)(deltas_of(state.params))
        everywhere = merged(jax.tree.map(jnp.zeros_like, state.params), gradient)
        updates, opt_state = tx.update(everywhere, state.opt_state, state.params)
        learned = optax.apply_updates(deltas_of(state.params), deltas_of(updates))
        metrics = {
            "divergence_bits": bits.from_nats(value),
            "locality": dial.locality.mean(),
            "gradient_norm": optax.tree.norm(gradient),
        }
        new = dataclasses.replace(
            state, step=state.step + 1, params=merged(state.params, learned), opt_state=opt_state
        )
        return new, metrics

    return step


def deltas_of(params: PyTree) -> PyTree:
    """The parameters that distilling moves: paths → leaves."""
    flat = traverse_util.flatten_dict(params)
    return {path: leaf for path, leaf in flat.items() if path[-2:-1] in DELTAS}


def merged(params: PyTree, deltas: PyTree) -> PyTree:
    """Parameters with these deltas."""
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(params), **deltas})


def distil(run: Run, rows: Rows) -> None:
    """Distils a calibrated run for as many steps as its settings say, and leaves it saved; goes on where it was.

    Args:
      run: with deltas; its state is replaced.
      rows: of text.

    Raises:
      TrainingDiverged: the loss became NaN or infinite; the last good checkpoint is kept.
    """
    settings, steps = run.settings, run.settings.train.steps
    start = int(run.state.step)
    batches = train_batches(rows, settings.data.batch, settings.train.seed)
    step = jax.jit(make_distil_step(run.model, settings), donate_argnums=0)
    progress = Progress(steps, start=start, tokens=settings.data.batch * rows.tokens.shape[1], label="distil")
    with (
        Checkpoints(run.workdir / "checkpoints", keep=settings.train.keep) as checkpoints,
        Journal(run.workdir, resume_step=start) as journal,
    ):
        if start:
            batches.set_state(checkpoints.cursor(start))
        for done in range(start + 1, steps + 1):
            run.state, metrics = step(run.state, next(batches))
            figures = {name: float(np.asarray(x)) for name, x in metrics.items()}
            if not np.isfinite(figures["divergence_bits"]):
                raise TrainingDiverged(
                    f"distil: the divergence is not finite at step {done}; lower the learning rate"
                )
            if done == start + 1:
                progress.started(done)
            journal.scalars(done, "distil", figures)
            progress.update(
                done, f"divergence {figures['divergence_bits']:.4f} bits at λ={figures['locality']:.3f}"
            )
            if done % settings.train.save_every == 0 or done == steps:
                checkpoints.save(done, run.state, manifest=run.manifest(), cursor=batches.get_state())
        progress.done()

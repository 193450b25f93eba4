"""The training loop: dispatch, measure, save, resume, and stop honestly when numbers go bad.

Step N is dispatched before the metrics of step N−1 are read, so the device never waits for the log.
Recruitment, hierarchy and reports hang in through hooks; the loop knows none of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import grain
import jax
import numpy as np

from localist_jax import config
from localist_jax.data import Batch, Prepared, prepare, train_batches
from localist_jax.errors import StoppedRun
from localist_jax.model import Transformer
from localist_jax.parallel import mesh as meshes
from localist_jax.parallel import rules
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.journal import Journal
from localist_jax.training.progress import Progress
from localist_jax.training.run import Run, abstract_state, fresh_state
from localist_jax.training.state import TrainState
from localist_jax.training.step import Metrics, make_train_step

WATCHED = (0.0, 0.9, 1.0)  # dials at which the validation loss is followed
WATCHDOGS = ("bits_per_token", "parameter_norm")  # finite, or the run stops before anything is saved


class Hook(Protocol):
    """Something that acts every so many steps and may return another state."""

    every: int

    def __call__(self, state: TrainState, batch: Batch, metrics: Metrics) -> TrainState:
        """Called after the step, with the state and metrics it returned."""


class TrainingDiverged(StoppedRun):
    """A loss or parameters that are not finite; the last good checkpoint is kept."""


def train(
    settings: config.Config,
    workdir: Path,
    *,
    command: str = "",
    hooks: Sequence[Hook] = (),
    prepared: Prepared | None = None,
    begin: Callable[[TrainState], TrainState] | None = None,
) -> Run:
    """Trains, or resumes, until `settings.train.steps` are done.

    Leaves in `workdir`: config.json, metrics.jsonl, TensorBoard files, checkpoints/. An interrupted run
    continues from its last whole checkpoint, bit for bit on CPU.

    Args:
      settings: the resolved configuration.
      workdir: of the run.
      command: what the user typed, for the record.
      hooks: called after every `hook.every`-th step.
      prepared: what to train on; None prepares the corpus that the settings name.
      begin: fresh state → the one that step 0 begins with, such as one with weights from elsewhere.

    Raises:
      TrainingDiverged: loss or parameters became NaN or infinite.
      CheckpointError: the folder holds a run of another topology.
      ValueError: bad corpus, batch or mesh.
    """
    prepared = prepared or prepare(settings.data, workdir / "cache")
    mesh = meshes.make_mesh(settings.mesh)
    model = Transformer(settings.model, prepared.tokenizer.vocab_size, mesh.shape["data"], mesh)
    batches = train_batches(prepared.train, settings.data.batch, settings.train.seed)
    with Checkpoints(workdir / "checkpoints", keep=settings.train.keep) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            state, cursor = checkpoints.restore(abstract_state(model, settings, mesh), start)
            batches.set_state(cursor)
        else:
            state = fresh_state(model, settings, mesh)
            state = begin(state) if begin else state
        run = Run(workdir, settings, model, prepared.tokenizer, state, mesh, prepared)
        run.record(command)
        with Journal(workdir, resume_step=start) as journal:
            _Loop(run, batches, checkpoints, journal, hooks).go(start)
    return run


@dataclasses.dataclass
class _Loop:
    """One pass over the remaining steps, with what it has to look after."""

    run: Run
    batches: grain.DatasetIterator[Batch]
    checkpoints: Checkpoints
    journal: Journal
    hooks: Sequence[Hook]

    def go(self, start: int) -> None:
        settings, run = self.run.settings, self.run
        t, tokens = settings.train, settings.data.batch * settings.data.context
        step_fn = jax.jit(make_train_step(run.model, settings, run.tokenizer.byte_lengths), donate_argnums=0)
        place = rules.batch_sharding(run.mesh)
        progress = Progress(t.steps, start=start, tokens=tokens)
        pending: list[Metrics] = []
        for step in range(start + 1, t.steps + 1):
            batch = jax.device_put(next(self.batches), place)
            run.state, metrics = step_fn(run.state, batch)
            for hook in self.hooks:
                if step % hook.every == 0:
                    run.state = hook(run.state, batch, metrics)
            pending.append(metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)  # compiled
                progress.started(step)
            last = step == t.steps
            save, measure = (last or step % every == 0 for every in (t.save_every, t.eval_every))
            if save or measure or step % t.log_every == 0:
                figures = self._flush(pending, step)
                progress.update(step, _line(figures))
                speed = {"tokens_per_second": progress.tokens_per_second}
                self.journal.scalars(step, "train", {**figures, **speed})
            if measure:
                with progress.paused():
                    self.journal.scalars(step, "eval", run.watch(WATCHED))
            if save:
                with progress.paused():
                    self.checkpoints.save(
                        step, run.state, manifest=run.manifest(), cursor=self.batches.get_state()
                    )
        progress.done()

    def _flush(self, pending: list[Metrics], step: int) -> dict[str, float]:
        """Reads the metrics since the last call: means of the losses, last values of the rest."""
        read = jax.device_get(pending)
        pending.clear()
        for offset, metrics in enumerate(read):
            if not all(math.isfinite(metrics[name]) for name in WATCHDOGS):
                raise TrainingDiverged(self._epitaph(step - len(read) + 1 + offset))
        figures = {name: float(value) for name, value in read[-1].items()}
        for name in ("bits_per_token", "bits_per_byte"):
            figures[name] = float(np.mean([metrics[name] for metrics in read]))
        return figures

    def _epitaph(self, step: int) -> str:
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        kept = (
            f"checkpoint {good} is the last good one" if good is not None else "no checkpoint was saved yet"
        )
        return f"loss or parameters are not finite at step {step}; {kept}; try a lower config.optimizer.learning_rate"


def _line(figures: dict[str, float]) -> str:
    line = f"{figures['bits_per_token']:.3f} bits/token  {figures['bits_per_byte']:.3f} bits/byte"
    return line + f"  open {figures['open_share']:.2f}"

"""The training loop: dispatches steps, evaluates, saves, resumes, and stops when numbers are not finite.

Step N is dispatched before the metrics of step N−1 are read, so the device never waits for the log. Recruitment,
hierarchy and reports are attached by hooks, which the loop knows nothing about.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from localist_jax import config
from localist_jax.data import Batch, Prepared, Tokenizer, prepare, train_batches
from localist_jax.errors import StoppedRun
from localist_jax.model import Transformer
from localist_jax.parallel import hosts, sharding
from localist_jax.parallel import mesh as meshes
from localist_jax.parallel.preemption import Preemption
from localist_jax.training.checkpoint import CheckpointError, Checkpoints
from localist_jax.training.journal import Journal
from localist_jax.training.progress import Progress
from localist_jax.training.run import (
    Run,
    abstract_state,
    check_tokenizer,
    compare_data,
    compare_hosts,
    fresh_state,
    own_tokenizer,
    report_new_text,
)
from localist_jax.training.state import TrainState
from localist_jax.training.step import Metrics, compile_step
from localist_jax.types import PyTree

EVAL_DIALS = (0.0, 0.9, 1.0)  # λ at which the validation loss is evaluated during training
MUST_BE_FINITE = ("bits_per_token", "parameter_norm")  # metrics; else the run stops before anything is saved


class Hook:
    """A hook, which is called every `every` steps before the state is trained on a batch, and may return another state.

    If that state has another block capacity, the loop builds and compiles the model of that size.
    """

    every: int = 1

    def start(self, run: Run, journal: Journal, step: int) -> None:
        """Prepare for the run; called once before the first step, with `run.state` after `step` steps."""

    def __call__(self, step: int, state: TrainState, batch: Batch) -> TrainState:
        """Return the state to train on; called before step number `step`."""
        return state

    def memory(self) -> PyTree:
        """Return arrays to save in checkpoints; their shapes may depend on the configuration only."""
        return {}

    def remember(self, memory: PyTree) -> None:
        """Restore what `memory` returned when the run was saved."""


class Preempted(StoppedRun):
    """SIGTERM came: the run was saved, and continues from there when it is started again."""

    status = 75  # EX_TEMPFAIL of sysexits.h: try again later


class TrainingDiverged(StoppedRun):
    """Loss or parameters are not finite; the last good checkpoint is kept."""


def train(
    settings: config.Config,
    workdir: Path,
    *,
    command: str = "",
    hooks: Sequence[Hook] = (),
    prepared: Prepared | None = None,
    begin: Callable[[TrainState], TrainState] | None = None,
) -> Run:
    """Train, or resume training, until `settings.train.steps` are done.

    It writes config.json, metrics.jsonl, TensorBoard files and checkpoints/ to `workdir`. An interrupted run continues
    from its last complete checkpoint, bit for bit on CPU.

    Args:
      settings: the resolved configuration.
      workdir: folder of the run.
      command: the command line, for the record.
      hooks: called before every `hook.every`-th step.
      prepared: the data to train on; None prepares the corpus that the settings name.
      begin: maps the fresh state to the initial one, for example with weights from elsewhere.

    Raises:
      TrainingDiverged: if loss or parameters became NaN or infinite.
      Preempted: if SIGTERM came; a checkpoint of the last step was saved first.
      CheckpointError: if the folder holds a run of another topology or tokenizer.
      HostsDiffer: if settings, versions, data or folders differ between the processes of the job.
      ValueError: for an invalid corpus, batch or mesh.
    """
    compare_hosts(settings, workdir)
    prepared = hosts.together(lambda: _prepared(settings, workdir, prepared))
    compare_data(prepared)
    mesh = meshes.make_mesh(settings.mesh)
    if mesh.shape["specialist"] > 1:
        raise ValueError(
            f"config.mesh.specialist: a run trains one LLM, got {mesh.shape['specialist']}; set it to 1"
        )
    model = Transformer(settings.model, prepared.tokenizer.vocab_size, sharding.shards("batch", mesh), mesh)
    batches = train_batches(
        prepared.train,
        settings.data.batch,
        settings.train.seed,
        shuffle=settings.data.shuffle,
        shard=hosts.share(sharding.batch_sharding(mesh), settings.data.batch),
    )
    with Checkpoints(workdir / "checkpoints", keep=settings.train.keep) as checkpoints:
        start = checkpoints.latest() or 0
        if start:
            settings, model = _grown(settings, model, checkpoints.manifest(start))
            state, cursor = checkpoints.restore(abstract_state(model, settings, mesh), start)
            batches.set_state(cursor)
        else:
            state = fresh_state(model, settings, mesh)
            state = begin(state) if begin else state
        run = Run(workdir, settings, model, prepared.tokenizer, state, mesh, prepared)
        run.record(command)
        if prepared.about and hosts.is_first():
            print(f"data: {prepared.about}", file=sys.stderr, flush=True)
        with Journal(workdir, resume_step=start) as journal:
            for hook in hooks:
                hook.start(run, journal, start)
            if start and (kept := _remembering(hooks)):
                memories = checkpoints.restore_memory([memory for _, memory in kept], start)
                for (hook, _), memory in zip(kept, memories, strict=True):
                    hook.remember(memory)
            with Preemption() as preemption:
                _TrainingLoop(run, batches, checkpoints, journal, hooks, preemption).go(start)
    return run


def _prepared(settings: config.Config, workdir: Path, given: Prepared | None) -> Prepared:
    """Return the data to train on; a resumed run keeps its own tokenizer, even if the text has changed."""
    manifest = _saved(workdir)
    if manifest is None:
        return given or prepare(settings.data, workdir / "cache")
    own = own_tokenizer(workdir, manifest["topology"]["tokenizer"])
    then, now = config.resolve(manifest["config"]).data, settings.data
    named = now.tokenizer if now.tokenizer != then.tokenizer or Path(now.tokenizer).is_file() else ""
    if not given and named and not own.same_as(_like(own, named)):
        raise CheckpointError(
            f"config.data.tokenizer: {now.tokenizer} is not the tokenizer of the run in {workdir}; "
            "leave the setting as it was, or use another --workdir"
        )
    if not given and not now.tokenizer and now.vocab_size != then.vocab_size:
        raise CheckpointError(
            f"config.data.vocab_size: the run in {workdir} has {then.vocab_size}, got {now.vocab_size}; "
            "a run keeps its tokenizer: set config.data.vocab_size as in the checkpoint, or use another --workdir"
        )
    prepared = given or prepare(now, workdir / "cache", own)
    check_tokenizer(prepared.tokenizer, own.fingerprint, "the data")
    report_new_text(prepared.corpus_name, prepared.text, manifest.get("seen", ""))
    return prepared


def _like(own: Tokenizer, path: str) -> Tokenizer:
    return Tokenizer.load(path, vocab_size=own.vocab_size, stop=own.stop)


def _saved(workdir: Path) -> dict[str, Any] | None:
    """Return the manifest of the last checkpoint in a folder, if there is one."""
    if not (workdir / "checkpoints").is_dir():
        return None
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        last = checkpoints.latest()
        return None if last is None else checkpoints.manifest(last)


def _grown(
    settings: config.Config, model: Transformer, manifest: dict[str, Any]
) -> tuple[config.Config, Transformer]:
    """Return settings and model at the capacity that recruitment had reached when the checkpoint was saved."""
    capacity = manifest["topology"]["block_capacity"]
    if settings.recruitment.every and capacity > settings.model.block_capacity:
        settings = settings.replace(model={"block_capacity": capacity})
        model = dataclasses.replace(model, config=settings.model)
    return settings, model


def _remembering(hooks: Sequence[Hook]) -> list[tuple[Hook, PyTree]]:
    """Return the hooks with something to save, and what; the other hooks may differ when a run is resumed."""
    memories = [(hook, hook.memory()) for hook in hooks]
    return [(hook, memory) for hook, memory in memories if jax.tree.leaves(memory)]


@dataclasses.dataclass
class _TrainingLoop:
    """The loop over the remaining steps, and the objects that it uses."""

    run: Run
    batches: grain.DatasetIterator[Batch]
    checkpoints: Checkpoints
    journal: Journal
    hooks: Sequence[Hook]
    preemption: Preemption

    def go(self, start: int) -> None:
        settings, run = self.run.settings, self.run
        t, tokens = settings.train, settings.data.batch * settings.data.context
        step_fn, built_for = self._compiled(), run.model
        progress = Progress(t.steps, start=start, tokens=tokens, silent=not hosts.is_first())
        pending: list[Metrics] = []
        for step in range(start + 1, t.steps + 1):
            batch = run.place(next(self.batches))
            for hook in self.hooks:
                if step % hook.every == 0:
                    run.state = hook(step, run.state, batch)
            run.fit()
            if run.model is not built_for:
                step_fn, built_for = self._compiled(), run.model
            run.state, metrics = step_fn(run.state, batch)
            pending.append(metrics)
            if step == start + 1:
                jax.block_until_ready(metrics)  # compiled
                progress.started(step)
            last = step == t.steps
            stop = self.preemption.due(step)
            save = stop or last or step % t.save_every == 0
            measure = t.eval_every and (last or (step % t.eval_every == 0 and not stop))
            if save or measure or step % t.log_every == 0:
                figures = self._flush(pending, step)
                progress.update(step, _line(figures))
                speed = {"tokens_per_second": progress.tokens_per_second}
                self.journal.scalars(step, "train", {**figures, **speed})
            if measure:
                with progress.paused():
                    self.journal.scalars(step, "eval", run.watch(EVAL_DIALS))
            if save:
                with progress.paused():
                    self.checkpoints.save(
                        step,
                        run.state,
                        manifest=run.manifest(),
                        cursor=self.batches.get_state(),
                        memory=[memory for _, memory in _remembering(self.hooks)],
                    )
            if stop and not last:
                raise Preempted(
                    f"stopped by SIGTERM after step {step}, which is saved; start the run again to continue from there"
                )
        progress.done()

    def _compiled(self):
        run = self.run
        return compile_step(run.model, run.settings, run.tokenizer.byte_lengths, run.state)

    def _flush(self, pending: list[Metrics], step: int) -> dict[str, float]:
        """Read the metrics since the last call: means of the losses, last values of the rest."""
        read = jax.device_get(pending)
        pending.clear()
        for offset, metrics in enumerate(read):
            if not all(math.isfinite(metrics[name]) for name in MUST_BE_FINITE):
                raise TrainingDiverged(self._divergence(step - len(read) + 1 + offset))
        figures = {name: float(value) for name, value in read[-1].items()}
        for name in ("bits_per_token", "bits_per_byte"):
            figures[name] = float(np.mean([metrics[name] for metrics in read]))
        return figures

    def _divergence(self, step: int) -> str:
        self.checkpoints.wait()
        good = self.checkpoints.latest()
        kept = (
            f"checkpoint {good} is the last good one" if good is not None else "no checkpoint was saved yet"
        )
        return f"loss or parameters are not finite at step {step}; {kept}; try a lower config.optimizer.learning_rate"


def _line(figures: dict[str, float]) -> str:
    line = f"{figures['bits_per_token']:.3f} bits/token  {figures['bits_per_byte']:.3f} bits/byte"
    return line + f"  open {figures['open_share']:.2f}"

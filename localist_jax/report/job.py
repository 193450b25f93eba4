"""The main job, as the launcher and `localist train` run it: train, measure, report."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import jax

from localist_jax import config, report
from localist_jax.data import corpora
from localist_jax.hierarchy.job import held_out
from localist_jax.hierarchy.job import run as stream
from localist_jax.parallel import hosts
from localist_jax.parallel.compilation import keep_programs
from localist_jax.recruitment import chronicle
from localist_jax.recruitment.proposals import Concept
from localist_jax.recruitment.recruiter import hooks
from localist_jax.report import collect, figures, tree
from localist_jax.report.watch import Watch
from localist_jax.training.journal import Journal, read
from localist_jax.training.loop import train
from localist_jax.training.run import Run, compare_hosts
from localist_jax.training.state import GATES, at_path

MADE_BY_RUN = (
    "cache", "checkpoints", "tensorboard", "metrics.jsonl", "recruitment.jsonl", "config.json",
    "ensemble.json", "hierarchy.jsonl", "members",
)  # fmt: skip


def run_job(settings: config.Config, workdir: Path, *, command: str = "", fresh: bool = False) -> Path:
    """Trains (or resumes), measures the dial, writes samples and the report; returns the report's path.

    A configuration with `hierarchy.every` makes an ensemble, which takes the corpus as a stream (see `hierarchy.job`).
    A job of many processes only trains, and returns the folder.
    Concepts of the run's rules that no block covers are candidates for recruitment, where that is on.

    Args:
      settings: the resolved configuration.
      workdir: the run's folder.
      command: what the user typed, for the record.
      fresh: throw an earlier run in that folder away, and start again.

    Raises:
      HostsDiffer: the processes of the job have not all the same settings, versions, data and folder.
    """
    keep_programs()
    compare_hosts(settings, workdir, fresh=fresh)
    if fresh:
        if hosts.is_first():
            _forget(workdir)
        hosts.meet("fresh")
    if settings.hierarchy.every:
        return _ensemble(settings, workdir, command)
    concepts: list[Concept] = []
    if settings.recruitment.every:
        from localist_jax.rules import coverage  # here, since solver and engine take a while to import

        # Looking for them is one process's work: many go by what was found before.
        alone = jax.process_count() == 1
        concepts = (
            coverage.wanted(workdir) if alone else hosts.agreed(lambda: coverage.remembered(workdir) or [])
        )
    watching = [Watch(every)] if (every := settings.train.eval_every) else []
    run = train(settings, workdir, command=command, hooks=[*hooks(settings, concepts), *watching])
    if jax.process_count() > 1:  # measuring is one process's work: `localist report` does it
        return workdir
    return measure(run)


def _ensemble(settings: config.Config, workdir: Path, command: str) -> Path:
    """Concepts of the rules of the base that none of its blocks covers are candidates for LLMs of their own."""
    concepts: list[Concept] = []
    if base := settings.hierarchy.base:
        from localist_jax.rules import coverage

        concepts = hosts.agreed(lambda: coverage.wanted(Path(base)))
    house = stream(settings, workdir, command=command, concepts=concepts)
    if jax.process_count() > 1:
        return workdir
    corpus = corpora.load(settings.data)
    step, found = max(r["step"] for r in read(workdir / "metrics.jsonl")), held_out(house, corpus.valid)
    with Journal(workdir, resume_step=step) as journal:
        journal.scalars(step, "held_out", found)
    print(tree.text(tree.branches(house)), file=sys.stderr)
    told = ", ".join(f"{name.replace('_', ' ')} {x:.3f}" for name, x in found.items())
    print(f"held out: {told}", file=sys.stderr, flush=True)
    return tree.write(house)


def measure(run: Run) -> Path:
    """Measures a trained run and writes its report; progress, and who was recruited why, goes to standard error.

    Raises:
      ValueError: a run that was adopted and has not been made localist.
    """
    if run.settings.model.blocks == 1:
        raise ValueError(
            f"{run.workdir}: was adopted and has no blocks yet, so there is nothing to report; "
            "`localist localise` gives it some"
        )
    records = chronicle.read(run.workdir)
    for line in chronicle.births(records):
        print(f"recruitment: {line}", file=sys.stderr, flush=True)
    print("measure: dial sweep, samples, blocks", file=sys.stderr, flush=True)
    collect.collect(run)
    step = int(run.state.step)
    with Journal(run.workdir, resume_step=step) as journal:
        gates = at_path(run.state.params, GATES)
        journal.figure(step, "gates", figures.gate_maps(gates, run.state.blocks.active))
        if chronicle.tried(records):
            journal.figure(step, "recruitment", figures.recruitment(records, step))
        for sample in collect.read(run.workdir, "samples"):
            journal.text(step, f"sample@{sample['locality']:g}", sample["prompt"] + sample["text"])
    return report.write(run.workdir)


def _forget(workdir: Path) -> None:
    """Removes what an earlier run left; nothing else in that folder is touched."""
    for name in MADE_BY_RUN:
        path = workdir / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)

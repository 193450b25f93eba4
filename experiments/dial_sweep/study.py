"""The runs of the study: where they lie, what they are trained with, in which order they go."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from experiments.dial_sweep.conditions import ALL, CONDITIONS, fitted
from experiments.dial_sweep.tasks import TASKS, measure
from experiments.pool import RESULT, Job, Pool, kept, train_and_measure
from localist_jax.config import Config
from localist_jax.data import Prepared, corpora, valid_batches
from localist_jax.training.run import write_json

Results = dict[str, dict[str, dict[int, dict[str, Any]]]]  # by task, condition, seed


@dataclasses.dataclass(frozen=True)
class Study:
    """Where the study keeps its runs, and at which size."""

    folder: Path
    scale: str
    steps: int = 0  # 0: as the scale says

    def folder_of(self, task: str, condition: str, seed: int) -> Path:
        """Where a run lies."""
        return self.folder / self.scale / task / condition / f"seed{seed}"

    def settings(self, task: str, condition: str, seed: int) -> Config:
        """The configuration of one run; a control is fitted to the open share of any-dial's run of that seed.

        Raises:
          CorpusError: the task's corpus is not there.
        """
        base = TASKS[task].at(self.scale).replace(train={"seed": seed})
        if self.steps:
            base = base.replace(train={"steps": self.steps})
        control, size = ALL[condition].matches, 0
        if control:
            any_dial = kept(self.folder_of(task, "any", seed), self.settings(task, "any", seed))
            assert any_dial is not None
            share = next(row["open_share"] for row in any_dial["rows"] if row["locality"] == 1)
            rows = self.prepared(task, base).valid
            size = fitted(base, control, valid_batches(rows, base.data.batch, 64), share)
        return ALL[condition].settings(base, size)

    def prepared(self, task: str, settings: Config) -> Prepared:
        """Rows and tokenizer of a task, from its cache if they are there."""
        return TASKS[task].prepare(settings, self.folder / self.scale / task / "cache")


def run(study: Study, task: str, condition: str, seed: int) -> dict[str, Any]:
    """Trains (or resumes, or finds) one run, and measures it; called in a worker."""
    from localist_jax.training.loop import train

    def trained(settings: Config, folder: Path):
        prepared = study.prepared(task, settings)
        return train(settings, folder, command="python -m experiments.dial_sweep", prepared=prepared)

    return train_and_measure(
        study.folder_of(task, condition, seed),
        study.settings(task, condition, seed),
        trained,
        lambda finished: measure(TASKS[task], finished, condition, ALL[condition].localities),
    )


def compare(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """What any-dial writes at each λ, scored by the dense model of the same seed; kept like a run's figures."""
    from experiments.dial_sweep import samples
    from localist_jax.training.run import Run

    folders = [study.folder_of("wikitext2", name, seed) for name in ("any", "dense")]
    path = folders[0] / "samples.json"
    made_from = [(folder / RESULT).read_text(encoding="utf-8") for folder in folders]
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["from"] == made_from:
            return stored["samples"]
    writer, judge = (
        dataclasses.replace(run, prepared=study.prepared("wikitext2", run.settings))
        for run in map(Run.open, folders)
    )
    found = samples.written(writer, judge, CONDITIONS["any"].localities)
    found["dense"] = samples.written(judge, judge, (0.0,))["0"]
    write_json(path, {"from": made_from, "samples": found})
    return found


def all_runs(
    study: Study, tasks: list[str], seeds: list[int], variants: list[str], workers: int
) -> tuple[Results, dict[int, Any]]:
    """Every result, and the samples by seed."""
    results: Results = {task: {} for task in tasks}
    free, fitted_ones = (
        [name for name, condition in CONDITIONS.items() if bool(condition.matches) is matches]
        for matches in (False, True)
    )
    everywhere = [(task, seed) for seed in seeds for task in tasks]
    stages: list[list[tuple[str, str, int]]] = [
        [(task, name, seed) for task, seed in everywhere for name in group if name in TASKS[task].conditions]
        for group in (free, fitted_ones)
    ]
    text = "wikitext2" in tasks
    stages.append([("wikitext2", variant, seeds[0]) for variant in variants if text])
    with Pool(workers) as pool:
        for stage in stages:
            jobs: list[Job] = [(at, run, (study, *at)) for at in stage]
            for (task, condition, seed), figures in pool.results(jobs, "dial_sweep"):
                results[task].setdefault(condition, {})[seed] = figures
        jobs = [(seed, compare, (study, seed)) for seed in seeds if text]
        return results, dict(pool.results(jobs, "dial_sweep: samples"))


def available(study: Study, tasks: list[str]) -> list[str]:
    """The tasks whose corpora are there; the others are named on standard error."""
    found = []
    for task in tasks:
        try:
            study.prepared(task, study.settings(task, "any", 0))
            found.append(task)
        except corpora.CorpusError as error:
            print(f"dial_sweep: leaves out {task}: {error}", file=sys.stderr, flush=True)
    return found

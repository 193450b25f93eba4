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

SAMPLES = "samples"  # in the place of a condition: what any-dial writes, scored by dense
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


def kept_samples(study: Study, seed: int) -> dict[str, dict[str, Any]] | None:
    """Return what `compare` found earlier with these two runs; None if there is nothing."""
    path = _samples_path(study, seed)
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored["samples"] if stored["from"] == _made_from(study, seed) else None


def _samples_path(study: Study, seed: int) -> Path:
    return study.folder_of("wikitext2", "any", seed) / "samples.json"


def _made_from(study: Study, seed: int) -> list[str]:
    folders = (study.folder_of("wikitext2", name, seed) for name in ("any", "dense"))
    return [(folder / RESULT).read_text(encoding="utf-8") for folder in folders]


def compare(study: Study, seed: int) -> dict[str, dict[str, Any]]:
    """Return the score that the dense model gives to any-dial's samples at each λ; kept like a run's figures."""
    from experiments.dial_sweep import samples
    from localist_jax.training.run import Run

    if (found := kept_samples(study, seed)) is not None:
        return found
    opened = (Run.open(study.folder_of("wikitext2", name, seed)) for name in ("any", "dense"))
    writer, judge = (
        dataclasses.replace(run, prepared=study.prepared("wikitext2", run.settings)) for run in opened
    )
    found = samples.written(writer, judge, CONDITIONS["any"].localities)
    found["dense"] = samples.written(judge, judge, (0.0,))["0"]
    write_json(_samples_path(study, seed), {"from": _made_from(study, seed), "samples": found})
    return found


def all_runs(
    study: Study,
    tasks: list[str],
    seeds: list[int],
    variants: list[str],
    workers: int,
    own_cores: bool = True,
) -> tuple[Results, dict[int, Any]]:
    """Every result, and the samples by seed; trains what is not there.

    It goes seed by seed, so that what is interrupted has whole seeds; any-dial comes first, since controls wait for its
    open share.
    """
    results: Results = {task: {} for task in tasks}
    texts: dict[int, Any] = {}

    def job(task: str, condition: str, seed: int) -> Job:
        return (task, condition, seed), run, (study, task, condition, seed)

    def then(at: tuple[str, str, int], found: Any) -> list[Job]:
        """The controls that were waiting for any-dial, and what is written once both writer and judge are there."""
        task, condition, seed = at
        if condition == SAMPLES:
            texts[seed] = found
            return []
        results[task].setdefault(condition, {})[seed] = found
        jobs = [job(task, name, seed) for name in _conditions(task, fitted=True) if condition == "any"]
        ends = {"any", "dense"}
        if (
            task == "wikitext2"
            and condition in ends
            and all(seed in results[task].get(end, {}) for end in ends)
        ):
            jobs.append(((task, SAMPLES, seed), compare, (study, seed)))
        return jobs

    jobs = [
        job(task, name, seed) for seed in seeds for task in tasks for name in _conditions(task, fitted=False)
    ]
    jobs.sort(key=lambda one: (seeds.index(one[0][2]), one[0][1] != "any"))
    if "wikitext2" in tasks:
        for name in variants:
            jobs += [job("wikitext2", name, seed) for seed in (seeds if ALL[name].every_seed else seeds[:1])]
    with Pool(workers, own_cores) as pool:
        for _ in pool.results(jobs, "dial_sweep", then):
            pass  # `then` has taken it
    return results, dict(sorted(texts.items()))


def _conditions(task: str, fitted: bool) -> list[str]:
    """Return the controls of a task that are fitted to any-dial, or its other conditions."""
    return [name for name in TASKS[task].conditions if bool(CONDITIONS[name].matches) is fitted]


def kept_runs(
    study: Study, tasks: list[str], seeds: list[int], variants: list[str]
) -> tuple[Results, dict[int, Any]]:
    """Return `all_runs` of earlier calls; seeds of a task that are not complete are left out, and named.

    Raises:
      ValueError: no seed of any task is whole.
    """
    results: Results = {}
    texts: dict[int, Any] = {}
    for task in tasks:
        for seed in seeds:
            found = {name: _found(study, task, name, seed) for name in TASKS[task].conditions}
            whole = {name: figures for name, figures in found.items() if figures is not None}
            if missing := ", ".join(name for name in found if name not in whole):
                print(
                    f"dial_sweep: leaves out {task}, seed {seed}: no {missing}", file=sys.stderr, flush=True
                )
                continue
            for name, figures in whole.items():
                results.setdefault(task, {}).setdefault(name, {})[seed] = figures
            if task == "wikitext2" and (samples := kept_samples(study, seed)):
                texts[seed] = samples
    for name in variants if "wikitext2" in results else ():
        for seed in results["wikitext2"]["any"]:
            if one := _found(study, "wikitext2", name, seed):
                results["wikitext2"].setdefault(name, {})[seed] = one
    if not results:
        raise ValueError(f"dial_sweep: nothing whole is kept in {study.folder / study.scale}")
    return results, texts


def _found(study: Study, task: str, condition: str, seed: int) -> dict[str, Any] | None:
    """Return the kept figures of a run; those of a control need the run that it is fitted to."""
    control = bool(ALL[condition].matches)
    if control and _found(study, task, "any", seed) is None:
        return None
    return kept(study.folder_of(task, condition, seed), study.settings(task, condition, seed))


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

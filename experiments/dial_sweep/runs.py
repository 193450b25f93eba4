"""The runs of the study: what each is trained with, in which order they go, and what is read of them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import Any

from experiments import cases
from experiments.cases import Case, Figures, Results, Store
from experiments.dial_sweep.conditions import ALL, CONDITIONS, fitted
from experiments.dial_sweep.tasks import TASKS, measure
from localist_jax import config
from localist_jax.config import Config
from localist_jax.data import Prepared, corpora, valid_batches

SAMPLES = "samples"  # in the place of a condition: what any-dial writes, scored by dense
ByTask = dict[str, dict[str, dict[int, Figures]]]  # results by task, condition, seed


class Plan:
    """The cases of the study at one size.

    Args:
      scale: of models and data.
      steps: of training; 0: as the scale says.
    """

    def __init__(self, scale: str, steps: int = 0):
        self.scale, self.steps = scale, steps

    def settings(self, task: str, seed: int) -> Config:
        """Return the configuration of any-dial's run."""
        steps = {"steps": self.steps} if self.steps else {}
        return TASKS[task].at(self.scale).replace(train={"seed": seed, **steps})

    def case(self, task: str, condition: str, seed: int) -> Case:
        """Return a run; a control waits for any-dial's run of its seed, the samples for that and dense's."""
        about = {"scale": self.scale, "task": task, "condition": condition}
        name = f"{self.scale}/{task}/{condition}/seed{seed}"
        if condition == SAMPLES:
            ends = tuple(self.case(task, end, seed) for end in ("any", "dense"))
            return Case(name, about, compare, after=ends)
        made, any_dial = ALL[condition], self.settings(task, seed)
        # A control has as large a size here as there is: the true one is fitted to any-dial's run.
        settings = {
            **about,
            "config": made.settings(any_dial, any_dial.data.context).to_dict(),
            "base": any_dial.to_dict(),
        }
        return Case(name, settings, run, after=(self.case(task, "any", seed),) if made.matches else ())

    def all(self, tasks: Sequence[str], seeds: Sequence[int], variants: Sequence[str]) -> list[Case]:
        """Return the cases seed by seed, so that what is interrupted has whole seeds; any-dial comes first."""
        found = []
        for seed in seeds:
            of_seed = [(task, name, seed) for task in tasks for name in TASKS[task].conditions]
            found += sorted(of_seed, key=lambda which: (which[1] != "any", not CONDITIONS[which[1]].matches))
            found += [(task, SAMPLES, seed) for task in tasks if task == "wikitext2"]
        for name in variants if "wikitext2" in tasks else ():
            found += [("wikitext2", name, seed) for seed in (seeds if ALL[name].every_seed else seeds[:1])]
        return [self.case(*which) for which in found]

    def whole(
        self, tasks: Sequence[str], seeds: Sequence[int], variants: Sequence[str], found: Results
    ) -> tuple[ByTask, dict[int, Any]]:
        """Return the figures of whole seeds, and the samples by seed; what is left out is named.

        Raises:
          ValueError: no seed of any task is whole.
        """
        results: ByTask = {}
        texts: dict[int, Any] = {}

        def of(task: str, condition: str, seed: int) -> Figures | None:
            return found.get(self.case(task, condition, seed).name)

        for task in tasks:
            for seed in seeds:
                if missing := [name for name in TASKS[task].conditions if of(task, name, seed) is None]:
                    said = f"leaves out {task}, seed {seed}: no {', '.join(missing)}"
                    print(f"dial_sweep: {said}", file=sys.stderr, flush=True)
                    continue
                for name in TASKS[task].conditions:
                    results.setdefault(task, {}).setdefault(name, {})[seed] = of(task, name, seed) or {}
                if task == "wikitext2" and (samples := of(task, SAMPLES, seed)):
                    texts[seed] = samples["samples"]
        for name in variants if "wikitext2" in results else ():
            for seed in results["wikitext2"]["any"]:
                if one := of("wikitext2", name, seed):
                    results["wikitext2"].setdefault(name, {})[seed] = one
        if not results:
            raise ValueError(f"dial_sweep: no seed of any task is whole at the scale {self.scale}")
        return results, dict(sorted(texts.items()))


def prepared(store: Store, case: Case, settings: Config) -> Prepared:
    """Return rows and tokenizer of a case's task, from its cache if they are there."""
    task = case.settings["task"]
    return TASKS[task].prepare(settings, store.folder / "cache" / case.settings["scale"] / task)


def run(store: Store, case: Case) -> Figures:
    """Return the figures of a run, which is trained or resumed first; a control is fitted to any-dial's open share."""
    from localist_jax.training.loop import train

    task, condition = case.settings["task"], case.settings["condition"]
    settings, control = config.resolve(case.settings["config"]), ALL[condition].matches
    rows = prepared(store, case, settings)
    if control:
        base, any_dial = config.resolve(case.settings["base"]), store.figures(case.after[0])
        assert any_dial is not None
        share = next(row["open_share"] for row in any_dial["rows"] if row["locality"] == 1)
        size = fitted(base, control, valid_batches(rows.valid, base.data.batch, 64), share)
        settings = ALL[condition].settings(base, size)
    command = "python -m experiments.dial_sweep"
    finished = train(settings, store.own(case), command=command, prepared=rows)
    return measure(TASKS[task], finished, condition, ALL[condition].localities)


def compare(store: Store, case: Case) -> Figures:
    """Return what any-dial writes at each λ, scored by the dense model of the same seed."""
    from experiments.dial_sweep import samples
    from localist_jax.training.run import Run

    writer, judge = (Run.open(store.own(end)) for end in case.after)
    for one in (writer, judge):
        one.prepared = prepared(store, case, one.settings)
    found = samples.written(writer, judge, CONDITIONS["any"].localities)
    return {"samples": {**found, "dense": samples.written(judge, judge, (0.0,))["0"]}}


@functools.cache
def fingerprint(task: str) -> str:
    """Return what tells the texts of a task from others.

    Raises:
      CorpusError: they are not there.
    """
    from experiments import babi

    if task == "babi":
        return babi.fingerprint()
    if not TASKS[task].text:
        return ""
    text = corpora.load(config.Data(corpus="wikitext-2")).digest
    return text + cases.fingerprint(corpora.find("blimp", "blimp.tsv, BLiMP as one table").glob("*.tsv"))

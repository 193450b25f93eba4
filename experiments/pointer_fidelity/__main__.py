"""Does attention on the facts of bAbI make answers right, by dial, with and without a rule that names them?

    LOCALIST_DATA=… python -m experiments.pointer_fidelity

Writes `pointer_fidelity.md`, `.json` and a picture. Runs are kept in `--workdir` and taken up again.
"""

from __future__ import annotations

from experiments import babi
from experiments.cases import Results
from experiments.pointer_fidelity.measure import case_of
from experiments.pointer_fidelity.models import CONTEXT
from experiments.pointer_fidelity.page import page_of
from experiments.study import Options, Page, Study, number, some_of
from experiments.workers import Pool


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""

    def figures(task: int, seed: int):
        return found[case_of(task, seed, options.steps).name]

    results = {task: [figures(task, seed) for seed in options.seeds] for task in options.tasks}
    return page_of(results, options.seeds)


STUDY = Study(
    "pointer_fidelity",
    __doc__,
    cases=lambda options: [case_of(t, s, options.steps) for t in options.tasks for s in options.seeds],
    page=page,
    options={"--tasks": some_of(CONTEXT), "--steps": number(2500, "of training")},
    seeds=(0, 1),
    quick={"tasks": [1], "seeds": [0], "steps": 50},
    pool=lambda options: Pool(options.workers),
    data=lambda bench, case: babi.fingerprint(),
)

if __name__ == "__main__":
    STUDY.main()

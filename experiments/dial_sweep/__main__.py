"""Does localism cost anything, and where?

    LOCALIST_DATA=… python -m experiments.dial_sweep

Trains every condition on every task with several seeds, measures them over the dial, and writes
`dial_sweep.md`, `.json` and pictures. Runs are kept in --workdir: what was trained is not trained again, what was
interrupted goes on. A task whose corpus is missing is left out, with a line that says where to get it; the page is of
whole seeds alone.
"""

from __future__ import annotations

import os

from experiments.cases import Case, Results
from experiments.dial_sweep.conditions import VARIANTS
from experiments.dial_sweep.page import page_of
from experiments.dial_sweep.runs import Plan, fingerprint
from experiments.dial_sweep.tasks import TASKS
from experiments.study import Options, Page, Study, number, some_of
from experiments.workers import Pool

WORKERS = {"cpu": 0, "gpu-minutes": 0, "gpu": 1}  # by scale; 0: one per core


def cases(options: Options) -> list[Case]:
    """Return the cases of the tasks that were asked for."""
    return Plan(options.scale, options.steps).all(options.tasks, options.seeds, options.variants)


def page(options: Options, found: Results) -> Page:
    """Return the page of the seeds that are whole."""
    plan = Plan(options.scale, options.steps)
    results, texts = plan.whole(options.tasks, options.seeds, options.variants, found)
    return page_of(results, texts, {task: plan.settings(task, options.seeds[0]) for task in results})


def pool(options: Options) -> Pool:
    """Return the workers; on a GPU they share its memory."""
    on_gpu = options.scale != "cpu"
    if on_gpu:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    return Pool(options.workers or WORKERS[options.scale], own_cores=not on_gpu)


STUDY = Study(
    "dial_sweep",
    __doc__,
    cases=cases,
    page=page,
    options={
        "--scale": {"choices": list(WORKERS), "default": "cpu", "help": "size of models and data"},
        "--tasks": some_of(TASKS),
        "--variants": some_of(VARIANTS, "changes to any-dial, most with one seed", least="*"),
        "--steps": number(0, "training steps; default: as the scale says"),
    },
    seeds=(0, 1, 2),
    pool=pool,
    data=lambda bench, case: fingerprint(case.settings["task"]),
    partial=True,
)

if __name__ == "__main__":
    STUDY.main()

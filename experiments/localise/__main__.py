"""The adoption study: what a foreign model keeps when it is made localist, against the steps that takes.

    LOCALIST_DATA=… python -m experiments.localise

Pretrains a model on WikiText-2 and openstax, exports it, adopts the export as if it were foreign, localises it with
a frozen and with a lightly tuned trunk, and writes `adopt.md`, `.json` and a picture.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.localise import page
from experiments.localise.study import Study, measured
from experiments.pool import Job, Pool
from localist_jax.errors import one_line


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("localise", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--pretrain", type=int, default=4000, help="steps")
    parser.add_argument(
        "--budgets", nargs="+", type=int, default=[100, 400, 1600], help="steps of localising"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/localise"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--workers", type=int, default=0, help="seeds at a time; default: one per core")
    arguments = parser.parse_args()
    with one_line():
        study = Study(arguments.workdir, arguments.pretrain, tuple(arguments.budgets))
        study.corpus()  # before the workers ask for it
        jobs: list[Job] = [(seed, measured, (study, seed)) for seed in arguments.seeds]
        workers = arguments.workers or min(len(jobs), len(os.sched_getaffinity(0)))
        with Pool(workers) as pool:
            results = dict(pool.results(jobs, "localise"))
        command = shlex.join(["python", "-m", "experiments.localise", *sys.argv[1:]])
        print(page.write(study, results, arguments.out, command))


if __name__ == "__main__":
    main()

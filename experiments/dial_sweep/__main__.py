"""The dial study: does localism cost anything, and where?

    LOCALIST_DATA=… python -m experiments.dial_sweep

Trains every condition on every task with several seeds, measures them over the dial, and writes
`dial_sweep.md`, `.json` and pictures. Runs are kept in --workdir: what was trained is not trained again, what was
interrupted goes on. A task whose corpus is missing is left out, with a line that says where to get it.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.dial_sweep.conditions import VARIANTS
from experiments.dial_sweep.study import Study, all_runs, available
from experiments.dial_sweep.tasks import TASKS
from localist_jax.errors import one_line


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("dial_sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=("cpu", "gpu"), default="cpu", help="size of models and data")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        help="changes to any-dial, one seed",
    )
    parser.add_argument("--steps", type=int, default=0, help="training steps; default: as the scale says")
    parser.add_argument("--workdir", type=Path, default=Path("runs/dial_sweep"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument(
        "--workers", type=int, default=0, help="runs at a time; default: one per core, or one on a GPU"
    )
    arguments = parser.parse_args()
    with one_line():
        study = Study(arguments.workdir, arguments.scale, arguments.steps)
        workers = arguments.workers or (1 if arguments.scale == "gpu" else len(os.sched_getaffinity(0)))
        tasks = available(study, arguments.tasks)
        if not tasks:
            raise ValueError("dial_sweep: no task is left; see the lines above")
        results, texts = all_runs(study, tasks, arguments.seeds, arguments.variants, workers)
        from experiments.dial_sweep import page

        command = shlex.join(["python", "-m", "experiments.dial_sweep", *sys.argv[1:]])
        print(page.write(results, texts, arguments.seeds, arguments.out, command))


if __name__ == "__main__":
    main()

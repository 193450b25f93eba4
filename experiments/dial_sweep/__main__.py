"""Does localism cost anything, and where?

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
from experiments.dial_sweep.study import Study, all_runs, available, kept_runs
from experiments.dial_sweep.tasks import TASKS
from localist_jax.errors import one_line

WORKERS = {"cpu": 0, "gpu-minutes": 0, "gpu": 1}  # by scale; 0: one per core


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("dial_sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=list(WORKERS), default="cpu", help="size of models and data")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--variants",
        nargs="*",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        help="changes to any-dial, most with one seed",
    )
    parser.add_argument("--steps", type=int, default=0, help="training steps; default: as the scale says")
    parser.add_argument("--workdir", type=Path, default=Path("runs/dial_sweep"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        help="runs at a time; default: one per core, or one with --scale gpu",
    )
    parser.add_argument(
        "--kept",
        action="store_true",
        help="train nothing: the page of what earlier calls measured, whole seeds alone",
    )
    arguments = parser.parse_args()
    with one_line():
        study = Study(arguments.workdir, arguments.scale, arguments.steps)
        tasks = available(study, arguments.tasks)
        if not tasks:
            raise ValueError("dial_sweep: no task is left; see the lines above")
        wanted = study, tasks, arguments.seeds, arguments.variants
        if arguments.kept:
            results, texts = kept_runs(*wanted)
        else:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            on_gpu = arguments.scale != "cpu"
            if on_gpu:  # workers share its memory
                os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
            workers = arguments.workers or WORKERS[arguments.scale] or cores
            results, texts = all_runs(*wanted, workers, own_cores=not on_gpu)
        from experiments.dial_sweep import page

        command = shlex.join(["python", "-m", "experiments.dial_sweep", *sys.argv[1:]])
        settings = {task: study.settings(task, "any", arguments.seeds[0]) for task in results}
        print(page.write(results, texts, settings, arguments.out, command))


if __name__ == "__main__":
    main()

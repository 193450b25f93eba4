"""Does attention on the facts of bAbI make answers right, by dial, with and without a rule that names them?

    LOCALIST_DATA=… python -m experiments.pointer_fidelity

Writes `pointer_fidelity.md`, `.json` and a picture. Runs are kept in `--workdir` and taken up again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.pointer_fidelity import measure, page
from experiments.pointer_fidelity.models import CONTEXT
from experiments.pool import Job, Pool
from localist_jax.errors import one_line


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("pointer_fidelity", description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", type=int, default=list(CONTEXT), choices=list(CONTEXT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=2500, help="of training")
    parser.add_argument("--workdir", type=Path, default=Path("runs/pointer_fidelity"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--workers", type=int, default=0, help="models at a time; default: one per core")
    arguments = parser.parse_args()
    with one_line():
        jobs: list[Job] = [
            ((task, seed), measure.job, (arguments.workdir, task, seed, arguments.steps))
            for task in arguments.tasks
            for seed in arguments.seeds
        ]
        with Pool(arguments.workers or len(os.sched_getaffinity(0))) as pool:
            found = dict(pool.results(jobs, "pointer_fidelity"))
        results = {task: [found[task, seed] for seed in arguments.seeds] for task in arguments.tasks}
        command = shlex.join(["python", "-m", "experiments.pointer_fidelity", *sys.argv[1:]])
        print(page.write(results, arguments.seeds, arguments.out, command))


if __name__ == "__main__":
    main()

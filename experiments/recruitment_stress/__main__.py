"""What does a recruiter do with streams that try to mislead it?

    python -m experiments.recruitment_stress

Everything it needs is generated. Writes `recruitment_stress.md`, `.json` and a picture. Runs are kept in --workdir.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.pool import Job, Pool
from experiments.recruitment_stress import page, runs, streams
from localist_jax.errors import one_line


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("recruitment_stress", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", nargs="+", choices=list(streams.SAID), default=list(streams.SAID))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--workdir", type=Path, default=Path("runs/recruitment_stress"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--workers", type=int, default=0, help="runs at a time; default: one per core")
    arguments = parser.parse_args()
    with one_line():
        jobs: list[Job] = [
            ((name, seed), runs.job, (arguments.workdir, name, seed))
            for seed in arguments.seeds
            for name in arguments.streams
        ]
        with Pool(arguments.workers or len(os.sched_getaffinity(0))) as pool:
            found = dict(pool.results(jobs, "recruitment_stress"))
        results = {name: [found[name, seed] for seed in arguments.seeds] for name in arguments.streams}
        command = shlex.join(["python", "-m", "experiments.recruitment_stress", *sys.argv[1:]])
        print(page.write(results, arguments.seeds, arguments.out, command))


if __name__ == "__main__":
    main()

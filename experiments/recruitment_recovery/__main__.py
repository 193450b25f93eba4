"""Does recruitment find the fields of a stream one by one, and nothing else, where the truth is known?

    python -m experiments.recruitment_recovery

Everything it needs is generated. Writes `recruitment_recovery.md`, `.json` and pictures. Runs are kept in --workdir:
what was trained is not trained again, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path
from typing import Any

from experiments.pool import Job, Pool
from experiments.recruitment_recovery import nulls, page, runs
from experiments.recruitment_recovery.costs import costs
from localist_jax.errors import one_line

Results = dict[tuple[str, int], list[dict[str, Any]]]  # by condition and number of fields: one for each seed


def _world(text: str) -> tuple[int, int | None]:
    """K*, and of how many seeds; None: all."""
    fields, _, count = text.partition(":")
    return int(fields), int(count) if count else None


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("recruitment_recovery", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--fields", nargs="+", type=_world, default=[(2, None), (4, None), (8, None)], metavar="K*[:S]",
        help="of each world; S: only the first S seeds",
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[2, 3])
    parser.add_argument("--streams", type=int, default=100, help="with nothing to find")
    parser.add_argument("--workdir", type=Path, default=Path("runs/recruitment_recovery"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--workers", type=int, default=0, help="runs at a time; default: one per core")
    arguments = parser.parse_args()
    with one_line():
        workers = arguments.workers or len(os.sched_getaffinity(0))
        wanted = {
            (condition, fields): arguments.seeds[:count]
            for fields, count in sorted(arguments.fields)
            for condition in runs.CONDITIONS
        }
        jobs: list[Job] = [
            ((*world, seed), runs.job, (arguments.workdir, *world, seed))
            for world, seeds in sorted(wanted.items(), key=lambda x: -x[0][1])  # the longest ones first
            for seed in seeds
        ]
        null = ("null", 1, 0)
        jobs.append((null, nulls.false_recruits, (arguments.workdir / "null_seed0", 0, arguments.streams)))
        with Pool(workers) as pool:
            found = dict(pool.results(jobs, "recruitment_recovery"))
        results: Results = {world: [found[*world, seed] for seed in seeds] for world, seeds in wanted.items()}
        command = shlex.join(["python", "-m", "experiments.recruitment_recovery", *sys.argv[1:]])
        print(page.write(results, found[null] | costs(), arguments.seeds, arguments.out, command))


if __name__ == "__main__":
    main()

"""Does an ensemble find the domains of textbooks and statute law, in any order and as they shift?

    LOCALIST_DATA=~/corpora python -m experiments.order_and_shift

Streams: the seven domains in random orders; the health books one after another; abrupt, gradual and recurring changes
between two domains; and, as nulls, streams without sessions and without domains. Runs are kept in --workdir: what was
done before is not done again. Writes `order_and_shift.md`, `.json` and pictures.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.order_and_shift import page, runs
from experiments.pool import Job, Pool
from localist_jax.errors import one_line
from localist_jax.report import study

TITLE = "In which order domains come, and how"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("order_and_shift", description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=6, help="random orders of the seven domains")
    parser.add_argument("--seeds", type=int, default=2, help="of the other streams")
    parser.add_argument("--workdir", type=Path, default=Path("runs/order_and_shift"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--workers", type=int, default=0, help="runs at a time; default: one per core")
    arguments = parser.parse_args()
    with one_line():
        runs.prepare(arguments.workdir)
        wanted = [
            (name, condition, seed)
            for name in runs.STREAMS
            for condition in runs.conditions(name)
            for seed in range(arguments.orders if name == "order" else arguments.seeds)
        ]
        wanted.sort(key=lambda which: (runs.CONDITIONS.index(which[1]), which[2]))  # the ensembles first
        jobs: list[Job] = [(which, runs.job, (arguments.workdir, *which)) for which in wanted]
        with Pool(arguments.workers or len(os.sched_getaffinity(0))) as pool:
            found = dict(pool.results(jobs, "order_and_shift"))
        results: dict[tuple[str, str], list[dict]] = {}
        for name, condition, seed in sorted(found):
            results.setdefault((name, condition), []).append(found[name, condition, seed])
        figures = page.summary(results)
        grown = results["order", "recruits"][page.shown(figures)]
        print(
            study.write(
                arguments.out, "order_and_shift", title=TITLE, body=page.body(figures), figures=figures,
                command=shlex.join(["python", "-m", "experiments.order_and_shift", *sys.argv[1:]]),
                seeds=range(max(arguments.orders, arguments.seeds)),
                pictures={"tree": page.tree(grown), "saved": page.saved(results)},
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()

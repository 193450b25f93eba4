"""Does recruitment find the books in a stream of real text, and what does it save?

    LOCALIST_DATA=~/corpora python -m experiments.recruitment_text

Reads `openstax` and `dc_code` from the folder of corpora; one that is missing is left out, with a line that says so.
Writes `recruitment_text.md`, `.json` and pictures. Runs are kept in --workdir: what was trained is not trained again,
what was interrupted goes on.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from experiments.pool import Job, Pool
from experiments.recruitment_text import page, runs
from experiments.recruitment_text.books import SHELVES
from localist_jax.data.corpora import CorpusError
from localist_jax.errors import one_line


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("recruitment_text", description=__doc__.splitlines()[0])
    parser.add_argument("--corpora", nargs="+", choices=list(SHELVES), default=list(SHELVES))
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0, 1], help="each another order of the books"
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/recruitment_text"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--workers", type=int, default=0, help="runs at a time; default: one per core")
    arguments = parser.parse_args()
    with one_line():
        there = []
        for corpus in arguments.corpora:
            try:
                runs.shelf(corpus)
                there.append(corpus)
            except CorpusError as error:
                print(f"recruitment_text: leaves out {corpus}: {error}", file=sys.stderr)
        if not there:
            raise ValueError("recruitment_text: no corpus is left; see the lines above")
        jobs: list[Job] = [
            ((corpus, condition, seed), runs.job, (arguments.workdir, corpus, condition, seed))
            for seed in arguments.seeds
            for corpus in there
            for condition in (*runs.CONDITIONS, *runs.NULLS)
        ]
        with Pool(arguments.workers or len(os.sched_getaffinity(0))) as pool:
            found = dict(pool.results(jobs, "recruitment_text"))
        results: page.Results = {
            (corpus, condition): [found[corpus, condition, seed] for seed in arguments.seeds]
            for corpus in there
            for condition in (*runs.CONDITIONS, *runs.NULLS)
        }
        command = shlex.join(["python", "-m", "experiments.recruitment_text", *sys.argv[1:]])
        print(page.write(results, arguments.seeds, arguments.out, command))


if __name__ == "__main__":
    main()

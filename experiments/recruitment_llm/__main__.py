"""Do blocks of a pretrained LLM that must pay in bits come about on real text, and what are they worth?

    LOCALIST_DATA=… python -m experiments.recruitment_llm

SmolLM2-135M begins with one block. It reads a corpus in order and recruits blocks (`localist recruit`). What it ends
with is compared on unseen text with one block, with K-means and with random blocks, as many and with as many open
pairs. A stopped study goes on where it was. Writes `recruitment_llm.md`, `.json` and pictures of the cases that were
run.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from experiments.localise.runner import run, selected
from experiments.recruitment_llm import cases, page
from localist_jax.errors import one_line
from localist_jax.parallel.compilation import keep_programs


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("recruitment_llm", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/recruitment_llm"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"), help="folder of the page")
    parser.add_argument("--cases", nargs="+", default=[], metavar="PATTERN", help="only these; * is anything")
    parser.add_argument("--rows", type=int, default=cases.ROWS, help="rows of each corpus to try blocks on")
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    arguments = parser.parse_args()
    with one_line():
        planned = cases.plan(arguments.rows)
        if arguments.list:
            print("\n".join(case.name for case in selected(planned, arguments.cases)))
            return
        if not arguments.page:
            keep_programs()
            bench = cases.Bench(arguments.workdir)
            run(selected(planned, arguments.cases), arguments.workdir, bench, bench.fingerprint)
        flags = [] if arguments.rows == cases.ROWS else [f"--rows={arguments.rows}"]
        command = shlex.join(["python", "-m", "experiments.recruitment_llm", *flags])
        print(page.write(planned, arguments.workdir, arguments.out, command))


if __name__ == "__main__":
    main()

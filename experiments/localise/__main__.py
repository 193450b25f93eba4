"""What does λ=1 cost a pretrained LLM that calibration made localist, beside a window and other controls?

    LOCALIST_DATA=… python -m experiments.localise

It runs as cases with a result file each, the most valuable first; stop it whenever you like, and start it again.
Writes `localise.md`, `.json` and pictures from what is there.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
from pathlib import Path

from experiments.localise import page
from experiments.localise.cases import QUICK, Bench, Extent, plan
from experiments.localise.runner import run, selected
from localist_jax.errors import StoppedRun, one_line
from localist_jax.parallel.compilation import keep_programs

CHECKPOINT = "smollm2"


class Missing(StoppedRun):
    """The model or a corpus is not here."""

    status = 2


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("localise", description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, default=Path("runs/localise"))
    parser.add_argument(
        "--out", type=Path, help="of the page; docs/measurements, or the workdir of a --quick study"
    )
    parser.add_argument("--quick", action="store_true", help="a small study, to see that everything works")
    parser.add_argument(
        "--cases", nargs="+", default=[], metavar="PATTERN", help="only these; `*` is anything"
    )
    parser.add_argument("--minutes", type=float, default=0.0, help="begin no other case after so many")
    parser.add_argument("--rows", type=int, help="unseen rows of each corpus")
    parser.add_argument("--list", action="store_true", help="say what the cases are")
    parser.add_argument("--page", action="store_true", help="only write the page from what is there")
    arguments = parser.parse_args()
    extent = QUICK if arguments.quick else Extent()
    if arguments.rows:
        extent = dataclasses.replace(
            extent, rows=arguments.rows, control_rows=min(arguments.rows, extent.control_rows)
        )
    out = arguments.out or (arguments.workdir if arguments.quick else Path("docs/measurements"))
    with one_line():
        cases = plan(extent)
        if arguments.list:
            print("\n".join(case.name for case in selected(cases, arguments.cases)))
            return
        if not arguments.page:
            measure(extent, arguments)
        flags = ["--quick"] * arguments.quick + [f"--rows={arguments.rows}"] * bool(arguments.rows)
        command = shlex.join(["python", "-m", "experiments.localise", *flags])
        print(page.write(cases, extent, arguments.workdir, out, command))


def measure(extent: Extent, arguments: argparse.Namespace) -> None:
    """Run the cases that were asked for.

    Raises:
      Missing: the model or a corpus that all cases need is not here.
    """
    keep_programs()
    cases = selected(plan(extent), arguments.cases)
    try:
        bench = Bench(CHECKPOINT, arguments.workdir, extent)
        fingerprint = bench.subject.fingerprint
    except ValueError as error:
        raise Missing(str(error)) from error
    run(cases, arguments.workdir, bench, fingerprint, arguments.minutes)


if __name__ == "__main__":
    main()

"""Checks the theorems and prints one line for each.

    python -m proofs_check                            all of them, a million instances where a formula is checked
    python -m proofs_check T3 T7 --cases 100000
    python -m proofs_check --checkpoint runs/quickstart --html proofs.html --json docs/measurements/proofs.json

Exit status: 0 all hold; 1 a violation, a bound that is not attained where it should be, or a wrong twin that
was not caught; 2 a claim whose assumptions never held (a vacuous check proves nothing).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from localist_jax.errors import one_line
from localist_jax.training.progress import human_count, human_time
from proofs_check import page
from proofs_check.check import Result, check, double_precision
from proofs_check.theorem import Theorem
from proofs_check.theorems import MODULES, load


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(
        "proofs_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="T1 … T18", help="theorems; default: all")
    parser.add_argument(
        "--cases", type=int, default=1_000_000, help="instances of a formula; others take their share"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, metavar="RUN", help="also check on this trained run")
    parser.add_argument("--json", type=Path, help="write the figures here, and a page beside it")
    parser.add_argument("--html", type=Path, help="write a self-contained report here")
    arguments = parser.parse_args(argv)
    command = shlex.join(["python", "-m", "proofs_check", *(sys.argv[1:] if argv is None else argv)])
    with double_precision():
        return status(_run(arguments, command))


def _run(arguments: argparse.Namespace, command: str) -> list[Result]:
    with one_line():
        chosen = [load(name.upper().replace("′", "'")) for name in arguments.names or MODULES]
        if arguments.cases < 1:
            raise ValueError(f"proofs_check: --cases must be at least 1, got {arguments.cases}")
        run = _open(arguments.checkpoint)
    results = [_checked(theorem, arguments, run) for theorem in chosen]
    print(page.text(results))
    if arguments.json:
        print(page.write_json(results, arguments.json, command, arguments.seed))
    if arguments.html:
        print(page.write_html(results, arguments.html, command))
    return results


def status(results: Sequence[Result]) -> int:
    """1 for violations, bounds that are not attained as they should, and missed twins; 2 for vacuous claims; else 0."""
    if any(r.total.violations or r.loose or not r.twin_caught for r in results):
        return 1
    return 2 if any(r.vacuous for r in results) else 0


def _open(workdir: Path | None):
    if workdir is None:
        return None
    from localist_jax.training.run import Run

    with jax.enable_x64(False):  # as it was trained
        run = Run.open(workdir)
        assert run.valid  # a corpus that is missing is told now, not in the middle
        return run


def _checked(theorem: Theorem, arguments: argparse.Namespace, run) -> Result:
    begun, terminal = time.monotonic(), sys.stderr.isatty()

    def progress(done: int, of: int) -> None:
        spent = time.monotonic() - begun
        left = human_time(spent / done * (of - done))
        if terminal:
            print(
                f"\r{theorem.name} {human_count(done)}/{human_count(of)}  {left} left   ",
                end="",
                file=sys.stderr,
            )

    key = jax.random.fold_in(jax.random.key(arguments.seed), list(MODULES).index(theorem.name))
    result = check(theorem, arguments.cases, key, run, progress)
    print(
        f"\r{theorem.name} {theorem.title}: {human_time(result.seconds)}".ljust(60),
        file=sys.stderr,
        flush=True,
    )
    return result


if __name__ == "__main__":
    sys.exit(main())

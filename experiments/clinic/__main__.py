"""Which members does an ensemble recruit from the stream of a generated clinic, and what do they save?

    python -m experiments.clinic

Everything it needs is generated. Runs that were finished before are read from the work folder. Writes `clinic.md`,
`clinic.json` and pictures. With --notes it only writes the stream of the first seed as a corpus, from which the
configuration experiments/configs/clinic.py makes an ensemble.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from experiments.clinic import measure, page
from experiments.clinic.setting import NULL, PHASES, clinic, write_notes
from localist_jax.errors import one_line
from localist_jax.report import study

TITLE = "One LLM becomes a clinic's three"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("clinic", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="of the ensemble")
    parser.add_argument("--controls", type=int, default=5, help="seeds of the one LLM of as many parameters")
    parser.add_argument("--nulls", type=int, default=3, help="seeds of the stream without domains")
    parser.add_argument("--workdir", type=Path, default=Path("runs/clinic"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    parser.add_argument("--notes", type=Path, metavar="FILE.jsonl", help="write the stream there, and stop")
    arguments = parser.parse_args()
    with one_line(OSError):
        if arguments.notes:
            write_notes(clinic(0), arguments.notes)
            print(arguments.notes)
            return
        ensembles = [
            measure.run("ensemble", s, 32, arguments.workdir, PHASES) for s in range(arguments.seeds)
        ]
        wide = measure.width_of(3 * measure.parameters(32))
        controls = [measure.run("one", s, wide, arguments.workdir, PHASES) for s in range(arguments.controls)]
        nulls = [measure.run("null", s, 32, arguments.workdir, NULL) for s in range(arguments.nulls)]
        figures = page.summary(ensembles, controls, nulls)
        command = shlex.join(["python", "-m", "experiments.clinic", *sys.argv[1:]])
        pictures = {"tree": page.growth(ensembles[0]), "curves": page.curves(ensembles[0], controls[0])}
        print(
            study.write(
                arguments.out, "clinic", title=TITLE, body=page.body(figures), command=command,
                seeds=range(arguments.seeds), figures=figures, pictures=pictures,
            )
        )  # fmt: skip


if __name__ == "__main__":
    main()

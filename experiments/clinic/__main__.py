"""Which members does an ensemble recruit from the stream of a generated clinic, and what do they save?

    python -m experiments.clinic

Everything it needs is generated. Runs that were finished before are read from the work folder. Writes `clinic.md`,
`clinic.json` and pictures. With --notes it only writes the stream of the first seed as a corpus, from which the
configuration experiments/configs/clinic.py makes an ensemble.
"""

from __future__ import annotations

from pathlib import Path

from experiments.cases import Case, Results
from experiments.clinic import measure
from experiments.clinic.page import page_of
from experiments.clinic.setting import NULL, PHASES, clinic, write_notes
from experiments.study import Options, Page, Study, number
from localist_jax.errors import one_line


def planned(options: Options) -> tuple[list[Case], list[Case], list[Case]]:
    """Return the cases of the ensemble, of the one LLM of as many parameters, and of the stream without domains."""
    wide = measure.width_of(3 * measure.parameters(32))
    return (
        [measure.case_of("ensemble", seed, 32, PHASES) for seed in options.seeds],
        [measure.case_of("one", seed, wide, PHASES) for seed in options.seeds[: options.controls]],
        [measure.case_of("null", seed, 32, NULL) for seed in options.seeds[: options.nulls]],
    )


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    ensembles, controls, nulls = ([found[case.name] for case in part] for part in planned(options))
    return page_of(ensembles, controls, nulls, options.seeds)


STUDY = Study(
    "clinic",
    __doc__,
    cases=lambda options: [case for part in planned(options) for case in part],
    page=page,
    options={
        "--controls": number(5, "seeds of the one LLM of as many parameters"),
        "--nulls": number(3, "seeds of the stream without domains"),
        "--notes": {"type": Path, "metavar": "FILE.jsonl", "help": "write the stream there, and stop"},
    },
    seeds=range(10),
)


def main() -> None:
    """Entry point."""
    options = STUDY.parsed()
    if not options.notes:
        return STUDY.main()
    with one_line(OSError):
        write_notes(clinic(0), options.notes)
        print(options.notes)


if __name__ == "__main__":
    main()

"""How much does λ=1 cost a pretrained LLM that calibration made localist, beside a window and other controls?

    LOCALIST_DATA=… python -m experiments.localise

It runs as cases with a result file each, the most valuable first; stop it whenever you like, and start it again.
Writes `localise.md`, `.json` and pictures from what is there.
"""

from __future__ import annotations

import dataclasses

from experiments.localise.cases import QUICK, Bench, Extent, plan
from experiments.localise.page import page_of
from experiments.localise.results import Results
from experiments.study import Options, Study
from localist_jax.errors import StoppedRun

CHECKPOINT = "smollm2"


class Missing(StoppedRun):
    """The model or a corpus is not here."""

    status = 2


def extent_of(options: Options) -> Extent:
    """Return how much is measured."""
    extent, rows = QUICK if options.quick else Extent(), options.rows
    if not rows:
        return extent
    return dataclasses.replace(extent, rows=rows, control_rows=min(rows, extent.control_rows))


def bench(options: Options) -> Bench:
    """Return what cases are measured with.

    Raises:
      Missing: the model or a corpus that all cases need is not here.
    """
    try:
        made = Bench(CHECKPOINT, options.workdir, extent_of(options))
        assert made.subject.fingerprint
    except ValueError as error:
        raise Missing(str(error)) from error
    return made


STUDY = Study(
    "localise",
    __doc__,
    cases=lambda options: plan(extent_of(options)),
    page=lambda options, found: page_of(Results(found, extent_of(options)), options.out),
    options={"--rows": {"type": int, "help": "unseen rows of each corpus"}},
    quick={},
    bench=bench,
    data=lambda bench, case: bench.subject.fingerprint,
    partial=True,
)

if __name__ == "__main__":
    STUDY.main()

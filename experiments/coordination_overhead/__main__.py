"""Measure what it costs to have many LLMs, as their number M grows from 1 to 64.

    python -m experiments.coordination_overhead

Routing time, tokens/s at equal batch per call, memory, coordination bits against T13's log₂ M, and quality with
shortlists of 1, 2 and 4. Everything it needs is generated. Writes `coordination_overhead.md`, `.json` and a picture.
"""

from __future__ import annotations

from experiments.cases import Case, Results
from experiments.coordination_overhead.measure import case_of
from experiments.coordination_overhead.page import page_of
from experiments.study import Options, Page, Study, number


def cases(options: Options) -> list[Case]:
    """Return a case for each seed."""
    return [case_of(seed, options.most, options.steps, options.rounds) for seed in options.seeds]


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    rows = [found[case.name]["by_llms"] for case in cases(options)]
    return page_of([{int(M): figures for M, figures in row.items()} for row in rows], options.seeds)


STUDY = Study(
    "coordination_overhead",
    __doc__,
    cases=cases,
    page=page,
    options={
        "--most": number(64, "LLMs"),
        "--steps": number(30, "of training each LLM"),
        "--rounds": number(1, "of timing, each over all M"),
    },
    seeds=(0, 1),
    quick={"seeds": [0], "most": 2, "steps": 2},
)

if __name__ == "__main__":
    STUDY.main()

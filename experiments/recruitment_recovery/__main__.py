"""Does recruitment find the fields of a stream one by one, and nothing else, where the truth is known?

    python -m experiments.recruitment_recovery

Everything it needs is generated. Writes `recruitment_recovery.md`, `.json` and pictures. Runs are kept in --workdir:
what was trained is not trained again, what was interrupted goes on.
"""

from __future__ import annotations

from experiments.cases import Case, Results
from experiments.recruitment_recovery import costs, nulls, runs
from experiments.recruitment_recovery.page import page_of
from experiments.study import Options, Page, Study, number
from experiments.workers import Pool


def worlds(options: Options) -> dict[int, list[int]]:
    """Return the seeds of each world, by its number of fields K*; `K*:S` asks for the first S seeds alone."""
    asked = (text.partition(":") for text in options.fields)
    return {int(k): options.seeds[: int(count) if count else None] for k, _, count in sorted(asked)}


def cases(options: Options) -> list[Case]:
    """Return the runs, those of the largest worlds first, the streams with nothing to find, and the timings."""
    asked = sorted(worlds(options).items(), reverse=True)
    made = [runs.case(c, k, seed) for k, seeds in asked for c in runs.CONDITIONS for seed in seeds]
    return [*made, nulls.case(0, options.streams), costs.case()]


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    results = {
        (condition, k): [found[runs.case(condition, k, seed).name] for seed in seeds]
        for k, seeds in sorted(worlds(options).items())
        for condition in runs.CONDITIONS
    }
    rest = {
        name: value
        for case in (nulls.case(0, options.streams), costs.case())
        for name, value in found[case.name].items()
        if name not in ("seconds", "made_on")
    }
    return page_of(results, rest, options.seeds)


STUDY = Study(
    "recruitment_recovery",
    __doc__,
    cases=cases,
    page=page,
    options={
        "--fields": {
            "nargs": "+",
            "default": ["2", "4", "8"],
            "metavar": "K*[:S]",
            "help": "S: the first S seeds",
        },
        "--streams": number(100, "with nothing to find"),
    },
    seeds=(2, 3),
    pool=lambda options: Pool(options.workers),
)

if __name__ == "__main__":
    STUDY.main()

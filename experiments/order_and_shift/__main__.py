"""Does an ensemble find the domains of textbooks and statute law, in any order and as they shift?

    LOCALIST_DATA=~/corpora python -m experiments.order_and_shift

Streams: the seven domains in random orders; the health books one after another; abrupt, gradual and recurring changes
between two domains; and, as nulls, streams without sessions and without domains. Runs are kept in --workdir: what was
done before is not done again. Writes `order_and_shift.md`, `.json` and pictures.
"""

from __future__ import annotations

from experiments.cases import Case, Results
from experiments.order_and_shift import base, runs, texts
from experiments.order_and_shift.page import page_of
from experiments.study import Options, Page, Study, number
from experiments.workers import Pool


def planned(options: Options) -> dict[tuple[str, str, int], Case]:
    """Return the runs by stream, condition and seed, those of the ensembles first."""
    first = base.case_of(runs.WIDTH)
    wanted = [
        (name, condition, seed)
        for name in runs.STREAMS
        for condition in runs.conditions(name)
        for seed in (range(options.orders) if name == "order" else options.seeds)
    ]
    wanted.sort(key=lambda which: (runs.CONDITIONS.index(which[1]), which[2]))
    return {which: runs.case_of(*which, first) for which in wanted}


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    results: dict[tuple[str, str], list[dict]] = {}
    for (name, condition, _), case in sorted(planned(options).items()):
        results.setdefault((name, condition), []).append(found[case.name])
    return page_of(results, sorted({*range(options.orders), *options.seeds}))


STUDY = Study(
    "order_and_shift",
    __doc__,
    cases=lambda options: [base.case_of(runs.WIDTH), *planned(options).values()],
    page=page,
    options={"--orders": number(6, "random orders of the seven domains")},
    seeds=(0, 1),  # of the other streams
    pool=lambda options: Pool(options.workers),
    data=lambda bench, case: texts.fingerprint(),
)

if __name__ == "__main__":
    STUDY.main()

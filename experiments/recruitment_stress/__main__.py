"""How does a recruiter fare with streams that try to mislead it?

    python -m experiments.recruitment_stress

Everything it needs is generated. Writes `recruitment_stress.md`, `.json` and a picture. Runs are kept in --workdir.
"""

from __future__ import annotations

from experiments.cases import Results
from experiments.recruitment_stress import runs, streams
from experiments.recruitment_stress.page import page_of
from experiments.study import Options, Page, Study, some_of
from experiments.workers import Pool


def page(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    results = {s: [found[runs.case(s, seed).name] for seed in options.seeds] for s in options.streams}
    return page_of(results, options.seeds)


STUDY = Study(
    "recruitment_stress",
    __doc__,
    cases=lambda options: [runs.case(name, seed) for seed in options.seeds for name in options.streams],
    page=page,
    options={"--streams": some_of(streams.SAID)},
    seeds=(0, 1),
    pool=lambda options: Pool(options.workers),
)

if __name__ == "__main__":
    STUDY.main()

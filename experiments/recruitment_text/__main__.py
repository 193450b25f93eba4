"""Does recruitment find the books in a stream of real text, and what does it save?

    LOCALIST_DATA=~/corpora python -m experiments.recruitment_text

Reads `openstax` and `dc_code` from the folder of corpora; one that is missing is left out, with a line that says so.
Writes `recruitment_text.md`, `.json` and pictures. Runs are kept in --workdir: what was trained is not trained again,
what was interrupted goes on.
"""

from __future__ import annotations

from experiments.cases import Case, Results
from experiments.recruitment_text import books, runs
from experiments.recruitment_text.page import page_of
from experiments.study import Options, Page, Study, some_of
from experiments.workers import Pool

ALL = (*runs.CONDITIONS, *runs.NULLS)


def cases(options: Options) -> list[Case]:
    """Return the runs, seed by seed."""
    return [runs.case(*which, seed) for seed in options.seeds for which in _streams(options.corpora)]


def page(options: Options, found: Results) -> Page:
    """Return the page of the corpora of which every run was measured.

    Raises:
      ValueError: there is no such corpus.
    """
    lost = {name.split("/")[0] for name in found.missing}
    there = [corpus for corpus in options.corpora if corpus not in lost]
    if not there:
        raise ValueError(f"recruitment_text: no corpus is whole; {found.missing[0]} is missing, for one")
    results = {
        which: [found[runs.case(*which, seed).name] for seed in options.seeds] for which in _streams(there)
    }
    return page_of(results, options.seeds)


def _streams(corpora: list[str]) -> list[tuple[str, str]]:
    return [(corpus, condition) for corpus in corpora for condition in ALL]


STUDY = Study(
    "recruitment_text",
    __doc__,
    cases=cases,
    page=page,
    options={"--corpora": some_of(books.SHELVES)},
    seeds=(0, 1),  # each is another order of the books
    pool=lambda options: Pool(options.workers),
    data=lambda bench, case: books.fingerprint(case.settings["corpus"]),
    partial=True,
)

if __name__ == "__main__":
    STUDY.main()

"""Do blocks of a pretrained LLM that must pay in bits come about on real text, and what are they worth?

    LOCALIST_DATA=… python -m experiments.recruitment_llm

SmolLM2-135M begins with one block. It reads a corpus in order and recruits blocks (`localist recruit`). What it ends
with is compared on unseen text with one block, with K-means and with random blocks, as many and with as many open
pairs. A stopped study goes on where it was. Writes `recruitment_llm.md`, `.json` and pictures of the cases that were
run.
"""

from __future__ import annotations

from experiments.recruitment_llm import cases, page
from experiments.study import Study

STUDY = Study(
    name="recruitment_llm",
    about=__doc__,
    cases=lambda options: cases.plan(options.rows),
    page=lambda options, results: page.page_of(results),
    options={"--rows": {"type": int, "default": cases.ROWS, "help": "rows of each corpus to try blocks on"}},
    quick={"rows": 2},
    bench=lambda options: cases.Bench(options.workdir),
    data=lambda bench, case: bench.fingerprint,
    partial=True,
)

if __name__ == "__main__":
    STUDY.main()

"""The page, the figures and the pictures of the study."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.recruitment_text.books import SHELVES
from experiments.recruitment_text.runs import CONDITIONS, NULLS, PHASE
from experiments.study import Page
from localist_jax.recruitment import chronicle
from localist_jax.report import study

TITLE = "Which books are in a stream of text, and what does it save to know?"
SAID = {
    "recruits": "one block, recruitment on",
    "none": "one block, recruitment off",
    "from start": "a block per book from the start",
    "told": "a block per book from the start, the router told the book",
    "dense": "λ=0, as many parameters as a block per book",
}
Results = dict[tuple[str, str], list[dict[str, Any]]]  # by corpus and condition: one for each seed


def page_of(results: Results, seeds: Sequence[int]) -> Page:
    """Return the page.

    Args:
      results: the figures of each seed, by corpus and condition.
      seeds: of the runs.
    """
    corpora = sorted({corpus for corpus, _ in results}, reverse=True)
    figures = _figures(results, corpora)
    pictures = {"blocks": blocks(results, corpora), "stream": stream(results, corpora[0])}
    return Page(TITLE, _body(results, figures, corpora), seeds, figures, pictures)


def _figures(results: Results, corpora: Sequence[str]) -> dict[str, Any]:
    def saved(corpus: str, other: str) -> list[float]:
        pairs = zip(results[corpus, "recruits"], results[corpus, other], strict=True)
        return [theirs["code_bits"] - mine["code_bits"] for mine, theirs in pairs]

    def born(null: str) -> list[int]:
        return [r["blocks"] - 1 for corpus in corpora for r in results[corpus, null]]

    return {
        "bits_saved_over_none": {c: saved(c, "none") for c in corpora},
        "bits_saved_over_all_from_start": {c: saved(c, "from start") for c in corpora},
        "bits_saved_over_told": {c: saved(c, "told") for c in corpora},
        "bits_saved_over_dense_same_params": {c: saved(c, "dense") for c in corpora},
        "forgetting_bits": {
            f"{c}: {condition}": [forgotten(r) for r in results[c, condition]]
            for c in corpora
            for condition in CONDITIONS
        },
        "null_one_book_recruits": born("one book"),
        "null_shuffled_recruits": born("shuffled"),
        "runs": {
            f"{c}: {condition}": [
                {k: v for k, v in r.items() if k not in ("moves", "bits_per_token")} | {"moves": _told(r["moves"])}
                for r in results[c, condition]
            ]
            for c in corpora
            for condition in (*CONDITIONS, *NULLS)
        },
    }  # fmt: skip


def _told(moves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was decided, without curves and surveys that proposed nothing."""
    kept = ("step", "kind", "reason", "trial", "block", "parent", "share", "llr_bits", "threshold_bits", "placebo_bits",
            "surprise_bits", "surprise_threshold_bits")  # fmt: skip
    return [{k: m[k] for k in kept if k in m} for m in moves if m["kind"] != "quiet"]


def forgotten(result: dict[str, Any]) -> float:
    """By how many bits per token the worst of the earlier books is worse at the end than it once was."""
    *before, last = result["exams"]
    known = [book for book in result["order"][:-1] if book in last]
    lows = {book: min(e[book] for e in before[result["order"].index(book) :]) for book in known}
    return max((last[book] - lows[book] for book in known), default=0.0)


def _body(results: Results, figures: dict[str, Any], corpora: Sequence[str]) -> str:
    head = (
        "stream",
        "blocks",
        "NMI with books",
        "with chapters",
        "kbit in all",
        "bits/token at the end",
        "forgotten",
    )
    rows = []
    for corpus in corpora:
        for condition in CONDITIONS:
            seeds = results[corpus, condition]
            rows.append((
                f"{corpus}: {SAID[condition]}",
                ", ".join(str(r["blocks"]) for r in seeds),
                *(study.spread([r[name] for r in seeds]) for name in ("nmi_book", "nmi_chapter")),
                study.spread([r["code_bits"] / 1000 for r in seeds], ".1f"),
                study.spread([float(np.mean(list(r["exams"][-1].values()))) for r in seeds]),
                study.spread([forgotten(r) for r in seeds]),
            ))  # fmt: skip
    about = "; ".join(f"`{c}`, {SHELVES[c]}, in {len(results[c, 'recruits'])} orders" for c in corpora)
    born = {null: figures[f"null_{null.replace(' ', '_')}_recruits"] for null in NULLS}
    nulls = "; ".join(f"{null}: {sum(counts)} in {len(counts)} streams" for null, counts in born.items())
    repeated = max(r["repeated"] for c in corpora for r in results[c, "recruits"])
    return f"""
Real text: {about}. Every {PHASE} steps a new book fills half of the stream and the older ones share the rest, a piece
of 64 tokens to a row; books that were at their end began again (at most {100 * repeated:.0f} % of the rows). A model of
3 layers and width 64 starts with one block. Code length is that of the whole stream, each batch coded before it is
learned from; bits per token at the end are the mean over the books' held-out pieces; *forgotten* is by how much the
worst earlier book is worse at the end than it was at the end of some phase (negative: better than ever). Every router
pays for switching, as in [recruitment_recovery.md](recruitment_recovery.md), and every run learns at a constant rate.
For blocks that are there from the start the former is dear: without it, and at a rate that decays, they took 0.3 and
0.5 % more bits than one block, in runs of the same day with two orders each.

{study.table(head, rows)}
{{blocks}}

Where each book's held-out positions are, seed {0}: rows are books in the order in which they came.

{{stream}}

- **Nothing to find**: recruited in streams of one book, or of all books' sentences in random order: {nulls}.
- **Bits saved by recruiting**, over the whole stream: {_saved(figures, corpora)}.
- **Supersenses** (WordNet; content words that are one token): {_senses(results, corpora)}.

{_moves(results, corpora)}
"""


def _saved(figures: dict[str, Any], corpora: Sequence[str]) -> str:
    names = {"none": "over one block", "all_from_start": "over a block per book from the start",
             "told": "over one that is told the book", "dense_same_params": "over the dense model"}  # fmt: skip
    return "; ".join(
        f"{c}, {said}: " + ", ".join(f"{x:+,.0f}" for x in figures[f"bits_saved_over_{name}"][c])
        for c in corpora
        for name, said in names.items()
    )


def _senses(results: Results, corpora: Sequence[str]) -> str:
    said = []
    for corpus in corpora:
        for condition in ("recruits", "from start"):
            found = [r["senses"] for r in results[corpus, condition] if r["senses"]]
            if found:
                each = {k: study.spread([f[k] for f in found]) for k in ("blocks", "kmeans", "permuted")}
                said.append(
                    f"{corpus}, {SAID[condition]}: NMI of blocks {each['blocks']}, of K-means of the embeddings in as "
                    f"many clusters {each['kmeans']}, of blocks permuted {each['permuted']}"
                )
    return "; ".join(said) or "the table was not there"


def _moves(results: Results, corpora: Sequence[str]) -> str:
    """Every birth, with what paid for it."""
    head = (
        "stream",
        "step",
        "from block",
        "share",
        "bits gathered",
        "best placebo",
        "threshold",
        "surprise",
        "asked",
    )
    born = [
        (f"{c} {nth}", m)
        for c in corpora
        for nth, r in enumerate(results[c, "recruits"])
        for m in r["moves"]
        if m["kind"] == "recruited"
    ]
    rows = [
        (name, str(m["step"]), str(m["parent"]), f"{m['share']:.2f}", f"{m['llr_bits']:.0f}",
         f"{max(m['placebo_bits']):.0f}", f"{m['threshold_bits']:.1f}", f"{m['surprise_bits']:.1f}",
         f"{m['surprise_threshold_bits']:.1f}")
        for name, m in born
    ]  # fmt: skip
    moves = [m for c in corpora for r in results[c, "recruits"] for m in r["moves"]]
    pilots, trials = len(chronicle.tried(moves)), len(chronicle.trials(moves))
    told = f"Of {pilots} divisions that were tried {trials} went beyond a pilot"
    if not rows:
        return f"{told}, and none ended in a birth.\n"
    return f"{told}, and {len(rows)} ended in a birth, in bits:\n\n" + study.table(head, rows)


def blocks(results: Results, corpora: Sequence[str]) -> Figure:
    """Share of each book's positions that each block has; the first seed of each corpus."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(corpora)))
    for axis, corpus in zip(axes, corpora, strict=True):
        first = results[corpus, "recruits"][0]
        table = np.array([first["table"][book] for book in first["order"]], float)
        used = table.sum(0) > 0
        shares = table[:, used] / table.sum(1, keepdims=True)
        axis.imshow(shares, vmin=0, vmax=1, cmap="Blues", aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            axis.text(
                column,
                row,
                f"{share:.2f}",
                ha="center",
                va="center",
                color="w" if share > 0.6 else "k",
                fontsize=8,
            )
        axis.set_yticks(range(len(first["order"])), [b.replace("_", " ") for b in first["order"]], fontsize=8)
        axis.set_xticks(range(int(used.sum())), np.flatnonzero(used))
        axis.set(xlabel="block", title=corpus)
    return figure


def stream(results: Results, corpus: str) -> Figure:
    """Code length along the stream, of each condition, less that of one block; mean over seeds."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axis = figure.subplots()
    curves = {c: np.mean([r["bits_per_token"] for r in results[corpus, c]], 0) for c in CONDITIONS}
    steps = np.linspace(0, PHASE * len(results[corpus, "none"][0]["order"]), len(curves["none"]))
    for condition in ("recruits", "from start", "told", "dense"):
        axis.plot(steps, curves[condition] - curves["none"], label=SAID[condition])
    axis.axhline(0, color="0.6", lw=1)
    for begin in np.arange(PHASE, steps[-1], PHASE):
        axis.axvline(begin, color="0.9", lw=1, zorder=0)
    axis.set(xlabel="step (a line where a book begins)", ylabel="bits/token beyond one block", title=corpus)
    axis.legend(frameon=False, fontsize=8)
    return figure

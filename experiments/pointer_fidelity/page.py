"""The study's page: tables by task, and fidelity against the dial."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from experiments.pointer_fidelity.measure import DIALS, QUESTIONS, WANTED
from experiments.pointer_fidelity.models import COPIES
from experiments.study import Page
from localist_jax.report import study
from localist_jax.report.study import spread

Results = dict[int, list[dict[str, Any]]]  # by task, one for each seed
TITLE = "Does attention point to the facts?"
NAMES = {1: "one supporting fact", 2: "two supporting facts", 16: "basic induction"}
ANSWERED = 0.9  # accuracy below which a model has not learnt its task, and where it looks proves little


def page_of(results: Results, seeds: Sequence[int]) -> Page:
    """Return the page."""
    by_task = {
        task: {f"{dial:g}": at(found, dial, "best_head") for dial in DIALS} for task, found in results.items()
    }
    named = {
        task: {f"{dial:g}": at(found, dial, "named") for dial in DIALS} for task, found in results.items()
    }
    figures = {
        "fidelity_supporting_lines": by_task,
        "fidelity_supporting_lines_named": named,
        "uniform_baseline": {t: [x["baselines"]["uniform"] for x in found] for t, found in results.items()},
        "recency_baseline": {t: [x["baselines"]["recency"] for x in found] for t, found in results.items()},
        "by_task": results,
    }
    return Page(TITLE, _body(results), seeds, figures, {"dial": _picture(results)})


def at(found: Sequence[dict[str, Any]], dial: float, name: str) -> list[float]:
    """A figure at a dial, of each seed."""
    return [x["by_dial"][f"{dial:g}"][name] for x in found]


def _body(results: Results) -> str:
    promises, kept = (
        sum(sum(at(found, dial, name)) for found in results.values() for dial in DIALS)
        for name in ("promises", "promises_kept")
    )
    return f"""
Models of three layers learn bAbI tasks at any dial, from {COPIES} versions of each training story with names, places,
things and kinds in other roles. They are never told which line an answer rests on; the labels are used here only. Each
of {QUESTIONS} test questions is read with the statements before it, and attention is looked at where the answer is
predicted. *Best head*: the head of the localist layers that had most on the supporting lines in one half of the
questions, on the other half. It stands beside four that know nothing of the question: an even spread, all on the last
statement, that very head's own mean attention by distance, and the best head of the same model untrained; and beside
what it puts on as many other statements.

{{dial}}

{"".join(_section(task, found) for task, found in results.items())}
## What rules promised

A rule `attend: {{to: [fact], fidelity: {WANTED}}}` is in force from the answer on. T3 and T5 promise each head a share
of its attention on the anchors beyond the window. Of {promises:,} such promises {kept:,} were kept.

What this is not: an explanation of the answers. Attention on a line says where a head looked; the missing lines above
say what the answer rests on.
"""


def _section(task: int, found: Sequence[dict[str, Any]]) -> str:
    uniform, recency = ([x["baselines"][name] for x in found] for name in ("uniform", "recency"))
    learnt = max(min(at(found, dial, "accuracy")) for dial in DIALS) >= ANSWERED
    caveat = (
        ""
        if learnt
        else f"**Not every seed answers {ANSWERED:.0%} at any dial: where these models look proves little.**\n\n"
    )
    return f"""## Task {task}: {NAMES[task]}

{caveat}An even spread puts {spread(uniform)} on the supporting lines, the last statement alone {spread(recency)}.
Answers *changed* are those that were right and became others when the supporting lines, or as many other statements,
were taken out of the text.

{_table(found, LOOKED)}
A rule that names the supporting lines to every head of the localist layers, and one that names as many others:

{_table(found, RULED)}
"""


LOOKED = {
    "accuracy": "accuracy",
    "best head": "best_head",
    "mean head": "mean_head",
    "by distance": "by_distance",
    "other lines": "other_line",
    "untrained": "untrained",
    "changed: facts gone": "fact_gone",
    "changed: others gone": "other_gone",
}
RULED = {
    "accuracy, no rule": "accuracy",
    "right lines named": "accuracy_named",
    "wrong lines named": "accuracy_misnamed",
    "fidelity, named": "named",
    "promised": "named_promised",
}


def _table(found: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    rows = [[f"{dial:g}", *(spread(at(found, dial, name)) for name in columns.values())] for dial in DIALS]
    return study.table(["λ", *columns], rows)


def _picture(results: Results) -> Figure:
    figure = Figure(figsize=(3.1 * len(results), 3.2), layout="constrained")
    places = range(len(DIALS))
    for nth, (task, found) in enumerate(results.items()):
        axes = figure.add_subplot(1, len(results), nth + 1)
        for name, label, style in (
            ("named", "rule names the facts", "s-"),
            ("best_head", "best head", "o-"),
            ("mean_head", "mean head", "o-"),
            ("by_distance", "that head by distance", "--"),
            ("untrained", "untrained, best head", ":"),
        ):
            values = [at(found, dial, name) for dial in DIALS]
            (line,) = axes.plot(places, [sum(v) / len(v) for v in values], style, label=label, markersize=4)
            low, high = list(map(min, values)), list(map(max, values))
            axes.fill_between(places, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        for name, words in (("uniform", "even"), ("recency", "last statement")):
            value = sum(x["baselines"][name] for x in found) / len(found)
            axes.axhline(value, color="0.5", linewidth=0.8)
            axes.annotate(words, (0, value), fontsize=7, color="0.4", va="bottom")
        axes.set_title(f"task {task}: {NAMES[task]}", fontsize=9)
        axes.set_xticks(places, [f"{dial:g}" for dial in DIALS])
        axes.set_xlabel("λ")
        axes.set_ylim(0, 1.02)
        if nth == 0:
            axes.set_ylabel("attention on the supporting lines")
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=5, frameon=False, fontsize=8)
    return figure

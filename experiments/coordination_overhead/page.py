"""The study's figures, page and picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.coordination_overhead.measure import OPENING, SHORTLISTS
from experiments.study import Page
from localist_jax.report import figures as drawing
from localist_jax.report import study

COSTS = (
    "LLMs", "tokens/CPU s", "… per full call", "calls", "routing, ms", "MB", "coordination, bits", "most", "log₂M"
)  # fmt: skip
TITLE = "What many LLMs cost"


def page_of(results: Sequence[Mapping[int, Mapping[str, float]]], seeds: Sequence[int]) -> Page:
    """Return the page of the figures of each seed, by the number of LLMs."""
    figures = summary(results)
    return Page(TITLE, body(figures), seeds, figures, {"curves": picture(figures)})


def summary(results: Sequence[Mapping[int, Mapping[str, float]]]) -> dict[str, Any]:
    """Return the figures by name and M, over seeds."""
    sizes = list(results[0])
    table = {name: {str(M): [r[M][name] for r in results] for M in sizes} for name in results[0][sizes[0]]}
    last = str(sizes[-1])
    ratio = [b / a for a, b in zip(*(table["tokens_per_cpu_second"][M] for M in ("1", last)), strict=True)]
    full = [
        b / a
        for a, b in zip(*(table["tokens_per_cpu_second_full_calls"][M] for M in ("1", last)), strict=True)
    ]
    most = max(
        v / b for M in sizes[1:] for v, b in
        zip(table["coordination_bits_most"][str(M)], table["bound_bits"][str(M)], strict=True)
    )  # fmt: skip
    return {
        f"tokens_per_second_ratio_{last}": ratio, f"tokens_per_second_ratio_{last}_full_calls": full,
        "coordination_bits_over_bound": most, "recompiles": max(table["recompiles"][last]), "by_llms": table,
    }  # fmt: skip


def body(f: dict[str, Any]) -> str:
    """Return the text of the page."""
    by, sizes = f["by_llms"], list(f["by_llms"]["bound_bits"])
    last = sizes[-1]
    cost = [
        (M, *(study.spread(by[name][M], form) for name, form in (
            ("tokens_per_cpu_second", ".0f"), ("tokens_per_cpu_second_full_calls", ".0f"), ("calls", ".0f"),
            ("routing_ms", ".2f"), ("megabytes", ".1f"), ("coordination_bits", ".2f"),
            ("coordination_bits_most", ".2f"), ("bound_bits", ".0f"),
        )))
        for M in sizes
    ]  # fmt: skip
    names = ("own", "full", *(f"shortlist{s}" for s in SHORTLISTS))
    good = [
        (M, *(study.spread(by[f"{name}_bits_per_token"][M]) for name in names),
         study.spread([100 * x for x in by["routing_accuracy"][M]], ".1f"),
         *(study.spread([100 * x for x in by[f"listed{s}"][M]], ".1f") for s in SHORTLISTS))
        for M in sizes
    ]  # fmt: skip
    ratio, full = f[f"tokens_per_second_ratio_{last}"], f[f"tokens_per_second_ratio_{last}_full_calls"]
    return f"""
Domains are Markov chains of three successors over sets of 48 of the same 160 words; one small LLM is trained on each.
For every M the same number of requests, eight to a call, is routed by signature and answered; all M take turns in each
round, and speeds are medians per second of processor time, since other programs run on the machine.

{study.table(COSTS, cost)}
- **Speed**: at {last} LLMs {study.spread([100 * x for x in ratio], ".0f")} % of the tokens per second of one
  (target: at least 90). Where requests are sent astray, calls are not full; counting what those calls could have
  carried, it is {study.spread([100 * x for x in full], ".0f")} %.
- **Nothing is compiled** while LLMs join and leave inside the capacity: {f["recompiles"]:.0f} compilations.
- **Coordination**: the full mixture never took more than {f["coordination_bits_over_bound"]:.3f} of its bound, log₂M
  bits for a whole document of 40 tokens.

Bits per token after the first {OPENING}, by which the shortlist is fixed: the LLM of the document's own domain, the
mixture of all, and of shortlists of 1, 2 and 4; how often a document's own LLM codes it best, and how often it is on
the list, %:

{study.table(("LLMs", "own", "all", "list of 1", "of 2", "of 4", "best", "on 1", "on 2", "on 4"), good)}
{{curves}}

{verdict(f)}

What fell short: tiny LLMs, and one machine that others use too; memory is that of the states (parameters and moments),
and a stack's whole capacity is allocated at once. T13 has no bound for a list that depends on the text: its excess is
measured.
"""


def verdict(f: dict[str, Any]) -> str:
    """Return where it breaks down, from the figures."""
    by, last = f["by_llms"], list(f["by_llms"]["bound_bits"])[-1]
    mean = {name: float(np.mean(values[last])) for name, values in by.items()}
    excess = [mean[f"shortlist{s}_bits_per_token"] - mean["full_bits_per_token"] for s in SHORTLISTS]
    return f"""Where it breaks down: reading a text with all {last} LLMs costs {last} readings, so a shortlist has to
do, and it is chosen by {OPENING} tokens' signature. The right LLM is on a list of {SHORTLISTS[0]} for
{100 * mean["listed1"]:.0f} % of the documents, on one of {SHORTLISTS[-1]} for {100 * mean["listed4"]:.0f} %; lists of
{", ".join(map(str, SHORTLISTS))} take {", ".join(f"{x:.3f}" for x in excess)} bits per token more than the mixture
of all.
Memory grows in proportion to M."""


def picture(f: dict[str, Any]) -> Figure:
    """Return the picture: coordination against log₂M, quality by shortlist, speed."""
    by, sizes = f["by_llms"], list(f["by_llms"]["bound_bits"])
    x = np.log2([int(M) for M in sizes])
    mean = {name: np.asarray([np.mean(values[M]) for M in sizes]) for name, values in by.items()}
    with matplotlib.rc_context(drawing.STYLE):
        figure = Figure(figsize=(10.5, 2.8), layout="constrained")
        bits, quality_, speed_ = figure.subplots(1, 3)
        bits.set_title("coordination, bits per document")
        bits.plot(x, x, color=drawing.MUTED, ls="--", label="T13: log₂M")
        bits.plot(x, mean["coordination_bits_most"], color=drawing.RED, marker="o", ms=3, label="most")
        bits.plot(x, mean["coordination_bits"], color=drawing.BLUE, marker="o", ms=3, label="mean")
        quality_.set_title("bits per token beyond the own LLM")
        for name, colour in (
            ("shortlist1", drawing.RED),
            ("shortlist2", drawing.ORANGE),
            ("shortlist4", drawing.GREEN),
            ("full", drawing.BLUE),
        ):
            gap = mean[f"{name}_bits_per_token"] - mean["own_bits_per_token"]
            quality_.plot(x, gap, color=colour, marker="o", ms=3, label=name)
        speed_.set_title("speed, relative to one LLM")
        for name, colour in (
            ("tokens_per_cpu_second", drawing.BLUE),
            ("tokens_per_cpu_second_full_calls", drawing.PURPLE),
        ):
            speed_.plot(
                x, mean[name] / mean[name][0], color=colour, marker="o", ms=3, label=name.replace("_", " ")
            )
        speed_.set_ylim(0, 1.2)
        for axes in (bits, quality_, speed_):
            axes.set_xticks(x, sizes)
            axes.set_xlabel("LLMs")
            axes.legend()
        return figure

"""The study's figures, page and pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.agreement import normalised_information
from experiments.clinic.page import growth
from experiments.clinic.setting import BATCH, CONTEXT
from experiments.order_and_shift import runs
from experiments.order_and_shift.base import STEPS
from experiments.order_and_shift.texts import DOMAINS, SESSION
from experiments.study import Page
from localist_jax.report import figures as drawing
from localist_jax.report import study

Result = Mapping[str, Any]
Results = Mapping[tuple[str, str], Sequence[Result]]  # by stream and condition: one for each seed
TITLE = "In which order domains come, and how"
COLOURS = dict(zip(
    DOMAINS,
    (drawing.BLUE, drawing.GREEN, drawing.ORANGE, drawing.PURPLE, drawing.RED, drawing.INK, "#00838f"),
    strict=True,
))  # fmt: skip


def page_of(results: Results, seeds: Sequence[int]) -> Page:
    """Return the page."""
    figures = summary(results)
    pictures = {"tree": tree(results["order", "recruits"][shown(figures)]), "saved": saved(results)}
    return Page(TITLE, body(figures), seeds, figures, pictures)


def summary(results: Results) -> dict[str, Any]:
    """All figures, by kind of stream; a list has one entry for each seed."""
    table = {name: _of_stream(name, results) for name in runs.STREAMS if (name, "recruits") in results}
    everything = [r for (_, condition), rows in results.items() for r in rows if condition == "recruits"]
    return {
        "streams": table,
        "random_split_recruits": sum(m - 1 for m in table[runs.NULL]["members"]),
        "random_split_trials": sum(sum(table[runs.NULL][k]) for k in ("recruited", "rejected", "abandoned")),
        "random_split_streams": len(table[runs.NULL]["members"]),
        "coordination_bits_over_bound": max(map(_coordination, everything)),
        "late_births": [runs.late_births(r) for r in results["recurring", "recruits"]],
        "returns": sum(sum(row["returns"]) for row in table.values()),
        "returns_to_own": sum(sum(row["returns_to_own"]) for row in table.values()),
        "worse_at_birth_bits": [x for r in everything for x in _worse_at_births(r)],
    }


def _of_stream(name: str, results: Results) -> dict[str, Any]:
    rows = results[name, "recruits"]
    back = [runs.returns(r) for r in rows]
    decided = {
        kind: [_count(r, kind) for r in rows] for kind in ("recruited", "rejected", "abandoned", "retired")
    }
    found: dict[str, Any] = {
        "members": [len(r["members"]) for r in rows], **decided,
        "nmi": [agreement(r["served"]) for r in rows],
        "returns": [n for n, _ in back], "returns_to_own": [n for _, n in back],
        "served": [r["served"] for r in rows], "first_comings": [list(dict.fromkeys(r["sessions"])) for r in rows],
        "births": [
            [{k: d[k] for k in ("step", "name", "parent", "llr_bits", "threshold_bits", "placebo_bits")}
             for d in r["decisions"] if d["kind"] == "recruited"]
            for r in rows
        ],
    }  # fmt: skip
    for condition in runs.conditions(name):
        if (name, condition) not in results:
            continue
        found[f"bits_per_token_{condition}"] = [_rate(r) for r in results[name, condition]]
        found[f"last_quarter_{condition}"] = [_rate(r, 0.75) for r in results[name, condition]]
    return found


def _count(result: Result, kind: str) -> int:
    return sum(d["kind"] == kind for d in result["decisions"])


def _rate(result: Result, begin: float = 0.0) -> float:
    """Bits per token of a stream as it came, from some part of it on."""
    curve = result["curve"][int(begin * len(result["curve"])) :]
    return sum(row[2] * row[5] for row in curve) / sum(row[5] for row in curve)


def _coordination(result: Result) -> float:
    over, bound = (
        sum(f(row) * row[5] for row in result["curve"]) for f in (lambda r: r[2] - r[3], lambda r: r[4])
    )
    return over / bound if bound else 0.0


def _worse_at_births(result: Result) -> list[float]:
    """For every birth, by how many bits per token the worst of the domains that had come is worse than just before."""
    births = [c for c in result["checks"] if c["what"] == "birth" and c["before"]]
    return [
        max(c[d]["bits_per_token"] - c["before"][d]["bits_per_token"] for d in runs.seen(result, c["batch"]))
        for c in births
        if "mixed" not in result["sessions"]
    ]


def agreement(served: Mapping[str, Sequence[int]]) -> float:
    """Return the NMI of domain and LLM over held-out pieces; 0 where there is one of either."""
    return normalised_information(np.asarray(list(served.values())))


def body(f: Mapping[str, Any]) -> str:
    """The page."""
    streams = f["streams"]
    recruited = [
        (f"{name}: {runs.STREAMS[name]}", ", ".join(map(str, row["members"])),
         "/".join(str(sum(row[k])) for k in ("recruited", "rejected", "abandoned", "retired")),
         study.spread(row["nmi"], ".2f"), f"{sum(row['returns_to_own'])} of {sum(row['returns'])}")
        for name, row in streams.items()
    ]  # fmt: skip
    rates = [
        (name, *(study.spread(row[f"{part}_{condition}"]) if f"{part}_{condition}" in row else "–"
                 for part in ("bits_per_token", "last_quarter") for condition in ("one", "recruits", "told")))
        for name, row in streams.items()
    ]  # fmt: skip
    lists = "\n".join(
        f"- {name} {seed}, first comings in this order: "
        + "; ".join(
            f"{domain} {' '.join(map(str, _taken(row['served'][seed], domain)))}" for domain in comings
        )
        for name, row in streams.items()
        for seed, comings in enumerate(row["first_comings"])
        if row["members"][seed] > 1 and "mixed" not in comings
    )
    worse = f["worse_at_birth_bits"]
    head = ("stream", "LLMs at the end", "recruited/rejected/abandoned/retired", "NMI", "returns to its LLM")
    return f"""
Pieces of {CONTEXT} tokens of six textbooks and four titles of statute law, in sessions of {SESSION * BATCH} pieces of
one domain; one tokenizer for all. The base LLM of 58 thousand parameters has read {STEPS} batches of WikiText-2;
whatever else there is at the end was recruited by the rule, which is told nothing of domains or sessions. Beside it, on
the same streams: the base alone, learning from everything (*one*), and an LLM for each domain, chosen by its name and
copied from the first domain's when it comes for the first time (*told*).

{{tree}}

*Order {shown(f)}. Each line is an LLM, with the domains whose held-out pieces it codes best at the end.*

{study.table(head, recruited)}
- **Null**: {f["random_split_recruits"]} LLMs recruited in {f["random_split_streams"]} streams with
  {f["random_split_trials"]} trials of divisions at random (target 0).
- **A domain that returns** after another went to the LLM that it had had last in {f["returns_to_own"]} of
  {f["returns"]} cases, all streams together, counted from the first birth on. In the recurring streams, after both
  domains had come twice, {", ".join(map(str, f["late_births"]))} LLMs were recruited.
- **At a birth** the domains that had come before changed by at most {f"{max(worse):+.3f}" if worse else "–"} bits per
  token ({len(worse)} births).
- **Coordination** took at most {f["coordination_bits_over_bound"]:.3f} of T13's bound, log₂M bits for each piece.

Bits per token, each batch before it is learned from: over the whole stream, and over its last quarter:

{study.table(("stream", "one", "recruits", "told", "last: one", "recruits", "told"), rates)}
{{saved}}

*Bits saved against one LLM since the beginning of the stream; each line is a stream.*

Held-out pieces by LLM, by place (NMI above is of these), where there is more than one:

{lists or "- none"}

{verdict(f)}
"""


def shown(f: Mapping[str, Any]) -> int:
    """The first of the orders that ended with the most LLMs: the picture is of it."""
    return int(np.argmax(f["streams"]["order"]["members"]))


def verdict(f: Mapping[str, Any]) -> str:
    """Return what fell short, from the figures."""
    worth = [
        (name, np.mean(row["bits_per_token_one"]), np.mean(row["bits_per_token_recruits"]),
         np.mean(row["bits_per_token_told"]))
        for name, row in f["streams"].items()
        if "bits_per_token_told" in row
    ]  # fmt: skip
    shares = "; ".join(
        f"{name} {100 * (one - recruits) / (one - told):.0f} % of {one - told:.3f}"
        if told < one
        else f"{name} –"
        for name, one, recruits, told in worth
    )
    orders = f["streams"]["order"]["members"]
    book = f["streams"]["one book"]["members"]
    return f"""What fell short. Where an LLM for each domain saves bits, the rule finds little of it, bits per token:
{shares}. Of seven domains it ended with {min(orders)} to {max(orders)} LLMs. Its trials open while a domain is new,
when a copy learns what the incumbent learns and saves nothing; what specialists save comes when domains return, and by
then the trial is over. And on these streams two LLMs that learn from pieces at random save bits too, so the bar is
high. In pieces of one book at random it recruited {sum(m - 1 for m in book)} LLMs in {len(book)} streams: there are
kinds of text within a book too, so this is counted neither as a false alarm nor as a find.

One base for all streams, so seeds differ in the order and in the pieces alone; {runs.WIDTH} wide LLMs; the learning
rate (10⁻²) is the one at which telling the domains apart is worth most, and at 5·10⁻³ one LLM takes fewer bits than one
here (seen on an order that is not reported: 6.545 against 6.627 bits per token; *told* 6.527 and 6.482)."""


def _taken(served: Mapping[str, Sequence[int]], domain: str) -> list[int]:
    """Pieces of a domain by LLM; places that nobody has are left out."""
    taken = np.asarray(list(served.values())).sum(0) > 0
    return np.asarray(served[domain])[taken].tolist()


def tree(result: Result) -> Figure:
    """Return the tree of the LLMs of one stream."""
    return growth(result, {d: COLOURS[d] for d in dict.fromkeys(result["sessions"])})


def saved(results: Results) -> Figure:
    """Bits saved against one LLM as the streams go: by the recruiter, and by an LLM for each domain."""
    with matplotlib.rc_context(drawing.STYLE):
        names = [name for name in runs.STREAMS if len(runs.conditions(name)) > 1]
        figure = Figure(figsize=(10.5, 2.6), layout="constrained")
        for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
            for condition, colour in (("told", drawing.MUTED), ("recruits", drawing.BLUE)):
                for nth, (one, other) in enumerate(
                    zip(results[name, "one"], results[name, condition], strict=True)
                ):
                    each = [a[5] * (a[2] - b[2]) for a, b in zip(one["curve"], other["curve"], strict=True)]
                    axes.plot(np.cumsum(each) / 1000, color=colour, lw=1.2, label="" if nth else condition)
            axes.axhline(0, color=drawing.INK, lw=0.6)
            axes.set_title(name)
            axes.set_xlabel("batch")
        figure.axes[0].set_ylabel("thousand bits saved")
        figure.axes[0].legend()
        return figure

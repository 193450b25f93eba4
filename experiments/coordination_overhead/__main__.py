"""Measure what it costs to have many LLMs, as their number M grows from 1 to 64.

    python -m experiments.coordination_overhead

Routing time, tokens/s at equal batch per call, memory, coordination bits against T13's log₂ M, and quality with
shortlists of 1, 2 and 4. Everything it needs is generated. Writes `coordination_overhead.md`, `.json` and a picture.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.coordination_overhead.house import BATCH, Domains, settings, trained, with_members
from experiments.pool import measured_once
from localist_jax.errors import one_line
from localist_jax.hierarchy import signature
from localist_jax.hierarchy.answer import answer, route
from localist_jax.hierarchy.coding import mixed
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.model.generate import read_tokens
from localist_jax.report import figures as drawing
from localist_jax.report import study

VERSION = 1  # raised when a run would measure something else
SHORTLISTS = (1, 2, 4)
COSTS = (
    "LLMs", "tokens/CPU s", "… per full call", "calls", "routing, ms", "MB", "coordination, bits", "most", "log₂M"
)  # fmt: skip
OPENING = 8  # tokens of a document by which its shortlist is fixed
CALL, NEW = 8, 8  # requests of one call, tokens generated for each
TITLE = "What many LLMs cost"


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("coordination_overhead", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--most", type=int, default=64, help="LLMs")
    parser.add_argument("--steps", type=int, default=30, help="of training each LLM")
    parser.add_argument("--rounds", type=int, default=1, help="of timing, each over all M")
    parser.add_argument("--workdir", type=Path, default=Path("runs/coordination_overhead"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    arguments = parser.parse_args()
    with one_line():
        results = [measured(seed, arguments) for seed in arguments.seeds]
        figures = summary(results)
        command = shlex.join(["python", "-m", "experiments.coordination_overhead", *sys.argv[1:]])
        print(
            study.write(
                arguments.out, "coordination_overhead", title=TITLE, body=page(figures), command=command,
                seeds=arguments.seeds, figures=figures, pictures={"curves": picture(figures)},
            )
        )  # fmt: skip


def measured(seed: int, arguments: argparse.Namespace) -> dict[int, dict[str, float]]:
    """Return all figures of one seed, by M; read from the work folder where the same was measured before."""
    asked = {name: getattr(arguments, name) for name in ("most", "steps", "rounds")}
    about = {**asked, "seed": seed, "settings": settings().to_dict(), "version": VERSION}
    found = measured_once(
        arguments.workdir / f"seed{seed}",
        about,
        lambda: {str(M): row for M, row in _measure(seed, **asked).items()},
    )
    return {int(M): row for M, row in found.items()}


def _measure(seed: int, most: int, steps: int, rounds: int) -> dict[int, dict[str, float]]:
    domains, engine, everyone = trained(seed, most, steps)
    sizes = [2**i for i in range(most.bit_length()) if 2**i <= most]
    found: dict[int, dict[str, float]] = {}
    for M in sizes:
        found[M] = quality(domains, engine, with_members(everyone, M), seed)
        print(f"coordination_overhead: seed {seed}, M={M}: {found[M]}", file=sys.stderr, flush=True)
    for M, row in speed(domains, engine, everyone, sizes, rounds).items():
        found[M] |= row
    return found


def quality(domains: Domains, engine: EnsembleEngine, ensemble: Ensemble, seed: int) -> dict[str, float]:
    """Coordination bits of the full mixture, and bits per token with shortlists, of documents of all M domains."""
    M, vocabulary = len(ensemble.active), ensemble.signatures.shape[1]
    rng = np.random.default_rng([seed, 99])
    bits: dict[str, list[float]] = {name: [] for name in ("full", "own", "over", "best")}
    bits |= {f"shortlist{s}": [] for s in SHORTLISTS} | {f"listed{s}": [] for s in SHORTLISTS}
    tokens = 0
    for domain in np.arange(max(M, 8)) % M:
        batch = domains.batch(int(domain), rng)
        losses = np.zeros((*batch.tokens.shape, ensemble.capacity + 1), np.float32)
        for at in ensemble.active:
            losses[..., at] = engine.losses(ensemble.state(at), batch, ensemble.dial(at))
        length, _ = mixed(losses, ensemble.active)
        later = np.asarray(batch.scored) & (batch.positions >= OPENING)
        totals = losses.sum(1)[:, list(ensemble.active)]
        bits["over"] += (length.sum(1) - totals.min(1)).tolist()
        bits["best"] += (totals.argmin(1) == domain).tolist()
        bits["full"] += np.where(later, length, 0).sum(1).tolist()
        bits["own"] += np.where(later, losses[..., domain], 0).sum(1).tolist()
        tokens += int(later.sum())
        opening = type(batch)(
            batch.tokens, batch.targets, batch.segments * (batch.positions < OPENING), batch.positions
        )
        listed = signature.shortlist(
            signature.counts(opening, vocabulary), ensemble.signatures, ensemble.active, max(SHORTLISTS)
        )
        for s in SHORTLISTS:
            for row in range(BATCH):
                short, _ = mixed(losses[row : row + 1], listed[row, :s].tolist())
                bits[f"shortlist{s}"].append(float(np.where(later[row], short[0], 0).sum()))
                bits[f"listed{s}"].append(float(domain in listed[row, :s]))
    per_token = {
        name: sum(bits[name]) / tokens for name in ("full", "own", *(f"shortlist{s}" for s in SHORTLISTS))
    }
    return {
        "coordination_bits": float(np.mean(bits["over"])), "coordination_bits_most": float(np.max(bits["over"])),
        "bound_bits": float(np.log2(M)), "routing_accuracy": float(np.mean(bits["best"])),
        **{f"{name}_bits_per_token": value for name, value in per_token.items()},
        **{f"listed{s}": float(np.mean(bits[f"listed{s}"])) for s in SHORTLISTS},
    }  # fmt: skip


def _compilations() -> int:
    """Return how often the function that generation reads with was compiled."""
    return read_tokens._cache_size()  # type: ignore[attr-defined]


def speed(
    domains: Domains, engine: EnsembleEngine, everyone: Ensemble, sizes: list[int], rounds: int
) -> dict[int, dict[str, float]]:
    """Tokens/s at CALL requests per call, and routing time, all M in turn in each round; recompilations.

    The same number of calls for every M. Speeds are of processor time: other programs run on the machine.
    """
    rng = np.random.default_rng(3)
    calls = max(sizes)
    found: dict[int, dict[str, list[float]]] = {M: {} for M in sizes}
    compiled = 0
    for turn in range(rounds + 1):  # the first one only compiles
        for M in sizes if turn else sizes[:1]:
            ensemble = with_members(everyone, M)
            prompts = [
                domains.tokenizer.decode(domains.document(int(d) % M, rng)[:16])
                for d in np.repeat(np.arange(calls), CALL)
            ]
            begun, wall = time.process_time(), time.perf_counter()
            answers = answer(
                ensemble,
                engine,
                domains.tokenizer,
                prompts,
                shortlist=1,
                batch=CALL,
                max_new=NEW,
                temperature=0.0,
                stats="open",
            )
            spent, passed = time.process_time() - begun, time.perf_counter() - wall
            batch = domains.batch(0, rng)
            begun = time.process_time()
            for _ in range(8):
                route(ensemble, engine, batch, shortlist=2)
            routing = (time.process_time() - begun) / 8 / BATCH
            groups = [a.route.member for a in answers]
            made = sum(-(-groups.count(at) // CALL) for at in set(groups))
            written = sum(len(a.generation.tokens) for a in answers)
            if turn == 0:
                compiled = engine.compile_count + _compilations()
                continue
            row = {
                "tokens_per_cpu_second": written / spent, "tokens_per_second": written / passed,
                "tokens_per_cpu_second_full_calls": made * CALL * NEW / spent, "calls": float(made),
                "routing_ms": 1e3 * routing,
            }  # fmt: skip
            for name, value in row.items():
                found[M].setdefault(name, []).append(value)
    recompiles = engine.compile_count + _compilations() - compiled
    size = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(everyone.state(0)) if hasattr(x.dtype, "itemsize")
    )
    return {
        M: {name: float(np.median(values)) for name, values in row.items()}
        | {"megabytes": M * size / 1e6, "recompiles": float(recompiles)}
        for M, row in found.items()
    }  # fmt: skip


def summary(results: list[dict[int, dict[str, float]]]) -> dict[str, Any]:
    """By name and M, over seeds."""
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


def page(f: dict[str, Any]) -> str:
    """The study's page."""
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
    """Where it breaks down, from the figures."""
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
    """Coordination against log₂M, quality by shortlist, speed."""
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


if __name__ == "__main__":
    main()

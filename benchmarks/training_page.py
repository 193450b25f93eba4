"""Figures, targets and the page made from the training benchmark's timings."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.plain import Sizes
from localist_jax.report.study import table

Seconds = Mapping[str, Sequence[float]]
TARGETS = {  # figure: (what must hold, bound)
    "step_over_flax_lambda0": ("at least", 1.0),
    "step_over_torch_lambda0": ("at least", 1.0),
    "recruitment_idle_overhead": ("at most", 0.02),
    "async_checkpoint_overhead": ("at most", 0.03),
}
STEPS = ("λ=0, step", "any-dial, step", "λ=1, step", "plain Flax, step", "PyTorch, step")


def ratio(seconds: Seconds, over: str, under: str, less: float = 0.0) -> dict[str, float]:
    """Median and quartiles over rounds of how many times longer `over` takes than `under`, less a constant."""
    return spread([a / b - less for a, b in zip(seconds[over], seconds[under], strict=True)])


def spread(values: Sequence[float]) -> dict[str, float]:
    """Their median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 4), "low": round(low, 4), "high": round(high, 4)}


def body(
    sizes: Sizes,
    seconds: Seconds,
    saving: Seconds,
    idle: Seconds,
    cadence: int,
    restarted: Mapping[str, Any],
) -> tuple[str, dict[str, Any]]:
    """The page's text, and all figures: speed ratios are tokens per second over tokens per second."""
    figures = _figures(sizes, seconds, saving, idle, cadence) | dict(restarted)
    speeds = [
        [name.removesuffix(", step"), f"{1e3 * statistics.median(seconds[name]):.1f}", *_speed(sizes, seconds, name)]
        for name in STEPS
        if name in seconds
    ]  # fmt: skip
    parts = [
        [part, *(_milliseconds(seconds, f"{who}, {part}") for who in ("λ=0", "plain Flax", "PyTorch"))]
        for part in ("forward", "gradient", "step")
    ]
    blocked = statistics.median(saving["blocked"])
    text = TEXT.format(
        sizes=f"{sizes.layers} layers, D={sizes.width}, F={sizes.hidden}, V={sizes.vocabulary}, "
        f"{sizes.batch}×{sizes.context} tokens, {sizes.dtype}, {sizes.parameters / 1e6:.2f} M parameters",
        rounds=len(seconds["λ=0, step"]),
        speeds=table(("step", "ms", "tokens/s", "share of the product rate", "times λ=0"), speeds),
        targets=table(("figure", "measured", "quartiles", "target", "met"), _targets(figures)),
        parts=table(("ms", "ours at λ=0", "plain Flax", "PyTorch"), parts),
        blocked=f"{1e3 * blocked:.0f}",
        cost=f"{1e3 * figures['checkpoint_seconds']:.0f}",
        cadence=cadence,
        hook=f"{1e6 * statistics.median(idle['hook']):.0f}",
        pairs=len(idle["with"]),
        difference=f"{restarted['restart_largest_difference']:g}",
        numbers=f"{restarted['restart_numbers']:,}",
        killed=restarted["restart_killed_at"],
        resumed=restarted["restart_resumed_from"],
    )
    return text, figures


def _figures(sizes, seconds, saving, idle, cadence) -> dict[str, Any]:
    step = statistics.median(seconds["any-dial, step"])
    extra = [a - b for a, b in zip(saving["with"], saving["without"], strict=True)]
    figures: dict[str, Any] = {
        "step_over_flax_lambda0": ratio(seconds, "plain Flax, step", "λ=0, step"),
        "step_any_over_dense": ratio(seconds, "λ=0, step", "any-dial, step"),
        "step_lambda1_over_dense": ratio(seconds, "λ=0, step", "λ=1, step"),
        "recruitment_idle_overhead": ratio(idle, "with", "without", less=1.0),
        "recruitment_idle_hook_seconds": round(statistics.median(idle["hook"]), 7),
        "checkpoint_seconds": round(statistics.median(extra), 4),
        "checkpoint_blocked_seconds": round(statistics.median(saving["blocked"]), 4),
        "async_checkpoint_overhead": spread([x / (cadence * step) for x in extra]),
        "milliseconds": {name: round(1e3 * statistics.median(v), 3) for name, v in seconds.items()},
        "parameters": sizes.parameters,
        "flops_per_step": sizes.flops,
    }
    if "PyTorch, step" in seconds:
        figures["step_over_torch_lambda0"] = ratio(seconds, "PyTorch, step", "λ=0, step")
        figures["flax_over_torch"] = ratio(seconds, "PyTorch, step", "plain Flax, step")
    return figures


def _speed(sizes: Sizes, seconds: Seconds, name: str) -> list[str]:
    taken = statistics.median(seconds[name])
    best = sizes.flops / 1e9 * statistics.median(seconds["matrix products"])
    speed = ratio(seconds, "λ=0, step", name)["median"]
    return [f"{sizes.tokens / taken:,.0f}", f"{best / taken:.2f}", f"{speed:.2f}"]


def _milliseconds(seconds: Seconds, name: str) -> str:
    return f"{1e3 * statistics.median(seconds[name]):.1f}" if name in seconds else "–"


def _targets(figures: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, (word, bound) in TARGETS.items():
        if name not in figures:
            rows.append([f"`{name}`", "not measured: no PyTorch here", "–", f"{word} {bound}", "–"])
            continue
        found = figures[name]
        value, quartiles = found["median"], f"{found['low']:.4f} … {found['high']:.4f}"
        met = value >= bound if word == "at least" else value <= bound
        rows.append([f"`{name}`", f"{value:.4f}", quartiles, f"{word} {bound}", "yes" if met else "**no**"])
    return rows


TEXT = """How fast is a training step of a localist model beside a plain Flax transformer and PyTorch's Llama class, and
what do checkpoints and a waiting recruiter cost? All have {sizes}; ours has a router, gates and localist
units on top. All use AdamW. At λ=1 a fifth of the gates are open.

{speeds}
Medians over {rounds} rounds in which the contenders took turns on the same cores. *Share of the product rate*: 6
operations per parameter and token and those of causal attention, over what the same cores do in one large matrix
product; all rows are charged the plain model's. *times λ=0*: how many times as fast as our step at λ=0, median of the
ratios within a round.

{targets}
Where the time goes (*forward*: the loss alone; *gradient*: forward and backward; *step*: with the optimizer, ours also
with pair counts, gates and metrics):

{parts}
A checkpoint costs {cost} ms of training in all (the difference between runs of steps with and without a save, while it
is written), of which the call blocks for {blocked} ms; the overhead is that of one every {cadence} steps, as in the
quickstart. Recruitment switched on but waiting was measured on {pairs} pairs of steps, with and without, in turn; by
its own clock the waiting call takes {hook} µs.

A run that was killed (SIGKILL) after step {killed} and started again went on from step {resumed}; the largest
difference between its curve and that of a run left alone is {difference}, over {numbers} logged numbers.

What fell short: no GPU or TPU was at hand, so the target of 45 % of the product rate at 350 M parameters in bfloat16 is
not measured. Only figures within a round are comparable."""

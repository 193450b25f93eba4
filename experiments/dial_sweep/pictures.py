"""Pictures of the dial study."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from experiments.dial_sweep.babi import TASKS as BABI_TASKS
from localist_jax.report.figures import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, STYLE, dial_axis

CURVES = (("any", BLUE, "any-dial"), ("localist", PURPLE, "trained at λ=1"))
LINES = (
    ("dense", 0.0, INK, "dense"),
    ("dense_above", 0.0, GREEN, "dense above local perception"),
    ("window", 1.0, ORANGE, "control: wider window"),
    ("neighbours", 1.0, RED, "control: blocks of neighbours"),
    ("always", 1.0, MUTED, "always-open set alone"),
)
PANELS = {
    "wikitext2": ("WikiText-2: bits per token", "bits_per_token"),
    "wikitext2_window": ("WikiText-2 with a window: bits", "bits_per_token"),
    "recall": ("recall: accuracy", "accuracy"),
    "babi": ("bAbI: accuracy", "accuracy"),
}


def main(tables: dict[str, Any]) -> Figure:
    """Quality against the dial, with dense and the controls as level lines; one panel per task."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(tables) + 1.6, 3.1), layout="constrained")
        axes = figure.subplots(1, len(tables), squeeze=False)[0]
        for ax, (task, table) in zip(axes, tables.items(), strict=True):
            title, name = PANELS[task]
            for condition, colour, label in CURVES:
                _curve(ax, table, condition, (name,), colour, label)
            for condition, locality, colour, label in LINES:
                value = np.mean(table(condition, locality, name))
                ax.axhline(
                    value,
                    color=colour,
                    lw=1.2,
                    ls="-" if condition.startswith("dense") else "--",
                    label=label,
                )
            ax.set_title(title)
            if name == "accuracy":
                ax.set_ylim(0, 1.02)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center")
    return figure


def babi(table: Any) -> Figure:
    """Attention on the labelled supporting lines against the dial, by task."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 2.9), layout="constrained")
        axes = figure.subplots(1, len(BABI_TASKS), sharey=True)
        for ax, task in zip(axes, BABI_TASKS, strict=True):
            for name, colour, label in (
                ("labelled_best", GREEN, "best head"),
                ("labelled", BLUE, "mean of heads"),
                ("labelled_even", MUTED, "evenly spread"),
            ):
                _curve(ax, table, "any", (f"babi_{task}", name), colour, label)
            ax.set_title(f"task {task}: attention on supporting lines")
            ax.set_ylim(0, None)
        axes[0].legend()
    return figure


def _curve(ax, table, condition: str, path: tuple[str, ...], colour: str, label: str) -> None:
    localities = [x for c, x in table.settings if c == condition]
    x = dial_axis(localities)
    values = np.array([table(condition, value, *path) for value in localities])
    ax.plot(x[:-1], values.mean(1)[:-1], marker="o", ms=3.5, color=colour, label=label)
    ax.plot(x[-2:], values.mean(1)[-2:], ls=":", color=colour, lw=1.2)
    ax.plot(x[-1:], values.mean(1)[-1:], marker="D", ms=5, ls="", color=colour)
    ax.fill_between(x, values.min(1), values.max(1), color=colour, alpha=0.15, lw=0)
    ax.set_xticks(x, [f"{value:g}" for value in localities], rotation=55, fontsize=7.5)
    ax.set_xlabel("λ")

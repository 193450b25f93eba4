"""The picture of the study: bits above the original against the open share."""

from __future__ import annotations

import matplotlib
from matplotlib.figure import Figure

from experiments.localise.results import Gap, Results
from experiments.localise.targets import TITLES
from experiments.localise.texts import CORPORA
from localist_jax.report.figures import BLUE, GREEN, MUTED, ORANGE, STYLE

Points = list[tuple[float, Gap]]


def shares(results: Results) -> Figure:
    """Return bits above the original against the open share that was measured; one panel per corpus."""
    extent = results.extent
    budgets = (*extent.shares, *extent.more_shares)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.6 * len(CORPORA) + 1.6, 3.1), layout="constrained")
        axes = figure.subplots(1, len(CORPORA), squeeze=False)[0]
        for ax, corpus in zip(axes, CORPORA, strict=True):
            lines = (
                (BLUE, "o-", "blocks", [results.blocks(x, corpus) for x in budgets]),
                (ORANGE, "s--", "window", [results.window(x, corpus) for x in budgets]),
                (
                    GREEN,
                    "D",
                    "blocks, distilled",
                    [results.distilled(x, corpus) for x in extent.distil_steps],
                ),
                (MUTED, "^", "best keys (a bound)", [results.control("best-keys", corpus)]),
            )
            for colour, form, label, codes in lines:
                points = [
                    (code.open_share, gap) for code in codes if code and (gap := results.excess(code, corpus))
                ]
                _drawn(ax, sorted(points, key=lambda point: point[0]), colour, form, label)
            ax.axhline(0.0, color=MUTED, lw=0.8)
            ax.set_title(TITLES[corpus])
            ax.set_xlabel("open share, all layers")
        axes[0].set_ylabel("bits above the original")
        by_label = {
            label: handle
            for ax in axes
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
        }
        figure.legend(by_label.values(), by_label.keys(), loc="outside right center")
    return figure


def _drawn(ax, points: Points, colour: str, form: str, label: str) -> None:
    if points:
        x, gaps = zip(*points, strict=True)
        errors = [gap.error or 0.0 for gap in gaps]
        ax.errorbar(
            x, [gap.mean for gap in gaps], errors, fmt=form, color=colour, ms=4, capsize=2, label=label
        )

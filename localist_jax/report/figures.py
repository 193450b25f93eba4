"""Figures of a run, as matplotlib figures without global state."""

from __future__ import annotations

import colorsys
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import BoundaryNorm, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure

from localist_jax.recruitment import chronicle

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, RED, PURPLE = "#2b6cb0", "#dd6b20", "#2f855a", "#c53030", "#6b46c1"
BY_DIAL = LinearSegmentedColormap.from_list("dial", [BLUE, "#805ad5", RED])
LAST_TICK = 3.1  # where λ=1 (β=∞) stands on the axis of √β
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.hashsalt": "localist_jax",
    "svg.fonttype": "path",
}


def svg(figure: Figure) -> str:
    """The figure as an inline SVG element; the same figure gives the same text."""
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
    text = buffer.getvalue()
    element = text[text.index("<svg") :]
    return re.sub(r' (width|height)="[0-9.]+pt"', "", element, count=2)  # the page sets the size


def block_colour(block: int, lightness: float) -> str:
    """A block's colour, the same wherever it is shown; grey for block 0."""
    hue = (block * 0.61803398875) % 1.0
    grey = lightness + (1 - lightness) / 2
    red, green, blue = colorsys.hls_to_rgb(hue, lightness if block else grey, 0.62 if block else 0.0)
    return f"#{int(red * 255):02x}{int(green * 255):02x}{int(blue * 255):02x}"


def dial_axis(localities: Sequence[float]) -> np.ndarray:
    """Where each λ stands: at the root of its log-odds β = −ln(1−λ), so that both ends are legible; λ=1 last."""
    with np.errstate(divide="ignore"):
        return np.minimum(np.sqrt(-np.log1p(-np.asarray(localities, float))), LAST_TICK)


def dial_curves(settings: Sequence[Mapping[str, float]]) -> Figure:
    """Code length, entropy, fidelity and price against the dial."""
    panels = (
        ("bits per token", (("bits_per_token", BLUE, "code length"),)),
        ("attention entropy, bits", (("entropy_bits", PURPLE, "entropy"),)),
        ("share of attention", (("fidelity", GREEN, "fidelity"), ("gated_mass", ORANGE, "through gates"))),
        ("price, attention bits", (("price_bits", RED, "price"),)),
    )
    x = dial_axis([row["locality"] for row in settings])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 2.7), layout="constrained")
        for axes, (title, curves) in zip(figure.subplots(1, 4), panels, strict=True):
            for name, colour, label in curves:
                y = [row[name] for row in settings]
                finite = x < LAST_TICK
                axes.plot(x[finite], np.asarray(y)[finite], marker="o", ms=3.5, color=colour, label=label)
                axes.plot(x[-2:], y[-2:], ls=":", color=colour, lw=1.2)
                axes.plot(x[~finite], np.asarray(y)[~finite], marker="D", ms=5, ls="", color=colour)
            axes.set_title(title)
            axes.set_xticks(x, [f"{row['locality']:g}" for row in settings], rotation=55, fontsize=7.5)
            axes.set_xlabel("λ")
            axes.set_ylim(bottom=0 if title != "bits per token" else None)
            if len(curves) > 1:
                axes.set_ylim(0, 1.02)
                axes.legend(loc="center right")
        return figure


def training_curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, gates, price and router during training; a dashed line marks the begin of the price phase."""
    train = [r for r in records if r["kind"] == "train"]
    evals = [r for r in records if r["kind"] == "eval"]
    opened = next((r["step"] for r in train if r.get("phase")), None)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.5, 5.0), layout="constrained")
        loss, share, price, routing = figure.subplots(2, 2, sharex=True).ravel()
        loss.set_title("code length, bits per token")
        loss.plot(*_series(train, "bits_per_token"), color=MUTED, lw=1, alpha=0.7, label="training")
        dials = sorted({k for r in evals for k in r if k.startswith("bits_per_token@")}, key=_dial_of)
        for name in dials:
            colour = BY_DIAL(_dial_of(name))
            loss.plot(
                *_series(evals, name),
                color=colour,
                marker="o",
                ms=3,
                label=f"validation, λ={_dial_of(name):g}",
            )
        loss.legend()
        share.set_title("gates")
        share.plot(*_series(train, "open_share"), color=BLUE, label="open share of causal pairs at λ=1")
        share.plot(*_series(train, "gates_closed"), color=ORANGE, label="share of gates exactly 0")
        share.set_ylim(0, 1.02)
        share.legend()
        price.set_title("price of a gate, nats per token")
        price.plot(*_series(train, "gate_price", positive=True), color=RED, label="price μ")
        price.plot(*_series(train, "kkt_residual", positive=True), color=PURPLE, label="mean KKT residual")
        if price.lines and any(line.get_xdata().size for line in price.lines):
            price.set_yscale("log")
        price.legend()
        routing.set_title("router, bits")
        routing.plot(*_series(train, "usage_entropy_bits"), color=GREEN, label="entropy of block usage")
        routing.plot(*_series(train, "router_doubt_bits"), color=ORANGE, label="doubt H(block | state)")
        routing.set_ylim(bottom=0)
        routing.legend()
        for axes in (loss, share, price, routing):
            if opened is not None:
                axes.axvline(opened, color=INK, lw=0.8, ls="--")
        for axes in (price, routing):
            axes.set_xlabel("step")
        return figure


def _dial_of(name: str) -> float:
    return float(name.rpartition("@")[2])


def _series(records, name: str, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    pairs = [
        (r["step"], r[name]) for r in records if r.get(name) is not None and (r[name] > 0 or not positive)
    ]
    return np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])


def gate_maps(gates: np.ndarray, active: np.ndarray, first_layer: int = 0) -> Figure:
    """One K×K map per localist layer and head; exact zeros are white, the open column 0 is hatched.

    Args:
      gates: [L, N, K, K].
      active: bool [K].
      first_layer: number of the first localist layer, for the labels.
    """
    gates, keep = np.asarray(gates), np.flatnonzero(np.asarray(active))
    shown = gates[..., keep[:, None], keep].copy()
    L, N = shown.shape[:2]
    colours = ["#ffffff", *matplotlib.colormaps["YlGnBu"](np.linspace(0.25, 1, 8))]
    bounds = [-1, 1e-12, *np.linspace(0, 1, 9)[1:]]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(1.35 * N + 1.2, 1.35 * L + 0.5), layout="constrained")
        grid = figure.subplots(L, N, squeeze=False)
        norm = BoundaryNorm(bounds, len(colours))
        for layer in range(L):
            for head in range(N):
                axes = grid[layer, head]
                image = axes.imshow(shown[layer, head], cmap=ListedColormap(colours), norm=norm)
                axes.axvspan(-0.5, 0.5, facecolor="none", edgecolor=MUTED, hatch="////", lw=0)
                axes.set_xticks([])
                axes.set_yticks([])
                if layer == 0:
                    axes.set_title(f"head {head}", fontsize=8)
                if head == 0:
                    axes.set_ylabel(f"layer {first_layer + layer}", fontsize=8)
        bar = figure.colorbar(
            image, ax=grid[: max(2, len(grid) // 6)], shrink=0.8, pad=0.02, spacing="uniform"
        )
        bar.set_ticks([np.mean(bounds[:2]), *bounds[2:]], labels=["0", *[f"{b:g}" for b in bounds[2:]]])
        bar.ax.tick_params(labelsize=7)
        return figure


def attention_by_block(attention: np.ndarray, blocks: Sequence[int], tokens: Sequence[str]) -> Figure:
    """Attention of a text with its positions sorted by block: what a block looks at is a tile.

    Args:
      attention: [T, T], rows sum to 1.
      blocks, tokens: of the T positions.
    """
    order = np.argsort(np.asarray(blocks), kind="stable")
    sorted_blocks = np.asarray(blocks)[order]
    borders = np.flatnonzero(np.diff(sorted_blocks)) + 0.5
    labels = [tokens[i].replace("$", r"\$") for i in order]
    side = float(np.clip(0.13 * len(tokens) + 1.5, 5.0, 12.0))
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side, side * 0.94), layout="constrained")
        axes = figure.subplots()
        picture = np.sqrt(np.asarray(attention)[np.ix_(order, order)])
        axes.imshow(picture, cmap="magma_r", vmin=0, vmax=max(0.05, float(picture.max())))
        for border in borders:
            axes.axhline(border, color=MUTED, lw=0.4)
            axes.axvline(border, color=MUTED, lw=0.4)
        size = float(np.clip(560 / len(tokens), 4.0, 9.0))
        axes.set_yticks(range(len(order)), labels, fontsize=size, fontfamily="monospace")
        starts = np.concatenate([[0], np.ceil(borders)]).astype(int)
        ends = np.append(starts[1:], len(order))
        named = [
            (f"block {sorted_blocks[s]}", (s + e - 1) / 2)
            for s, e in zip(starts, ends, strict=True)
            if e - s > 2
        ]
        axes.set_xticks([at for _, at in named], [n for n, _ in named], rotation=60, fontsize=8, ha="right")
        axes.tick_params(length=0)
        axes.set_title("attention (square root), positions sorted by block: rows look at columns")
        return figure


def recruitment(records: Sequence[chronicle.Record], steps: int, marks: Sequence[int] = ()) -> Figure:
    """Above the evidence of every trial beside its best placebo, below the lives of the blocks that they were about.

    Args:
      records: of a run's recruiter (`chronicle.read`).
      steps: of the run.
      marks: steps at which something happened in the stream, such as a field that appeared.
    """
    tried, lives = chronicle.tried(records), chronicle.lives(records)
    rows = {id(life): -at for at, life in enumerate(lives)}
    with matplotlib.rc_context(STYLE):
        height = 0.24 * max(2, len(lives)) + 0.5
        figure = Figure(figsize=(10.5, 2.9 + height), layout="constrained")
        evidence, timeline = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, height))
        for trial in tried:
            _evidence(evidence, trial)
        for trial in {
            r["step"]: r for r in sorted(tried, key=_won)
        }.values():  # candidates of a trial share its place
            row = next(rows[id(x)] for x in lives if x.block == trial["parent"] and _lives(x, trial["step"]))
            width = trial["step"] - chronicle.begun(trial)
            timeline.barh(row, width, 0.5, chronicle.begun(trial), color=_verdict(trial), alpha=0.35, lw=0)
        for life in lives:
            row, last = rows[id(life)], steps if life.ended is None else life.ended
            colour = GREEN if life.trial else MUTED
            timeline.plot([life.born, last], [row, row], color=colour, lw=2.2, solid_capstyle="butt")
            if life.trial:
                mother = next(x for x in lives if x.block == life.parent and _lives(x, life.born - 1))
                timeline.plot([life.born] * 2, [rows[id(mother)], row], color=GREEN, lw=1)
                timeline.plot(life.born, row, "o", ms=5, color=GREEN)
            if life.ended is not None:
                timeline.plot(life.ended, row, "X", ms=6, color=RED)
        quiet = [r["step"] for r in records if r["kind"] == "quiet"]
        timeline.plot(quiet, [-len(lives)] * len(quiet), "|", ms=7, color=MUTED)
        names = [f"block {life.block}" for life in lives] + ["surveys without a trial"] * bool(quiet)
        timeline.set_yticks([-at for at in range(len(names))], names)
        timeline.set_ylim(-len(names) + 0.4, 0.6)
        timeline.grid(axis="y", visible=False)
        timeline.set_xlim(0, steps)
        timeline.set_xlabel("step")
        evidence.axhline(0, color=MUTED, lw=0.8, zorder=1)
        evidence.set_title("evidence of trials, bits")
        for name, style in _LEGEND.items():
            evidence.plot([], [], label=name, **style)
        evidence.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
        for axes in (evidence, timeline):
            for mark in marks:
                axes.axvline(mark, color=INK, lw=0.8, ls="--", zorder=1)
        return figure


_LEGEND: dict[str, Any] = {
    "recruited": {"color": GREEN, "lw": 2},
    "rejected": {"color": RED},
    "best placebo": {"color": MUTED, "lw": 1.2},
    "needed at the end": {"color": INK, "marker": "_", "ls": "", "ms": 9, "mew": 1.6},
    "born": {"color": GREEN, "marker": "o", "ls": "", "ms": 5},
    "retired": {"color": RED, "marker": "X", "ls": "", "ms": 6},
}


def _evidence(axes, trial: chronicle.Record) -> None:
    """A trial, with its number, or a pilot: the candidate, its best placebo, and where the candidate had to end."""
    x = np.arange(
        chronicle.begun(trial), trial["step"] + 1
    )  # from no evidence at all; a trial may have one step
    mine, placebo = (np.array([0.0, *trial[name]]) for name in ("curve_bits", "best_placebo_curve_bits"))
    colour = _verdict(trial)
    axes.fill_between(x, placebo, mine, color=colour, alpha=0.12, lw=0)
    axes.plot(x, placebo, **_LEGEND["best placebo"])
    axes.plot(x, mine, **_LEGEND[trial["kind"]])
    needed = chronicle.best_placebo_bits(trial) + trial["threshold_bits"]
    axes.plot(trial["step"], needed, **_LEGEND["needed at the end"])
    axes.annotate(
        str(trial["trial"] or ""),
        (x[-1], mine[-1]),
        (4, 0),
        textcoords="offset points",
        fontsize=7,
        color=colour,
    )


def _won(trial: chronicle.Record) -> bool:
    return trial["kind"] == "recruited"


def _verdict(trial: chronicle.Record) -> str:
    return GREEN if _won(trial) else RED


def _lives(life: chronicle.Life, step: int) -> bool:
    return life.born <= step and (life.ended is None or step <= life.ended)


def router_map(places: np.ndarray, blocks: np.ndarray) -> Figure:
    """Positions of a text on a plane of the router's space, in the colours of their blocks.

    Args:
      places: [n, 2].
      blocks: [n].
    """
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(5.4, 4.8), layout="constrained")
        axes = figure.subplots()
        colours = [block_colour(int(block), 0.55) for block in blocks]
        axes.scatter(places[:, 0], places[:, 1], s=7, c=colours, lw=0, alpha=0.7)
        for block in np.unique(blocks):
            x, y = places[blocks == block].mean(0)
            box = {
                "boxstyle": "circle,pad=0.2",
                "fc": "white",
                "ec": block_colour(int(block), 0.4),
                "lw": 1.2,
            }
            axes.text(x, y, str(block), ha="center", va="center", fontsize=8, bbox=box)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.set_title("router's states, by block, where the blocks' means lie farthest apart")
        return figure

"""Pictures of the attention benchmark's timings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks.page import WAYS, Found
from localist_jax.report.figures import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, RED, STYLE


def pictures(found: Found) -> dict[str, Figure]:
    """By name; only of the parts that were measured."""
    d = found.blocks
    with matplotlib.rc_context(STYLE):
        drawn = {}
        curves = {
            "dial0": ("λ=0", BLUE), "dial1": (f"λ=1 at 1/{d}", RED), "jaxnn": ("jax.nn", MUTED),
            "cudnn": ("cuDNN", MUTED), "sdpa": ("SDPA", GREEN), "flex": (f"Flex at 1/{d}", ORANGE),
        }  # fmt: skip
        if "dense" in found.timings:
            panels = [
                (f"{words}, seconds", [(found.seconds("dense", f"{n}_{way}"), *c) for n, c in curves.items()])
                for way, words in WAYS.items()
            ]
            memory = [
                (_gib(found.bytes("dense", f"{n}_fwdbwd")), label, colour)
                for n, label, colour in (("dial0", "ours", BLUE), ("jaxnn", "jax.nn", MUTED))
            ]
            drawn["dense"] = _figure([*panels, ("memory, both ways, GiB", memory)], "tokens T")
        if "density" in found.timings:
            panels = []
            for way, words in WAYS.items():
                times = found.seconds("density", f"attend_{way}")
                ideal = {d: times[1] / d for d in times}
                lines = [(times, "ours", RED), (ideal, "time at λ=0 × density", MUTED)]
                lines.append((found.seconds("density", f"flex_{way}"), "Flex", ORANGE))
                panels.append((f"{words}, seconds", lines))
            memory = [
                (_gib(found.bytes("density", f"attend_{way}")), words, colour)
                for (way, words), colour in zip(WAYS.items(), (PURPLE, RED), strict=True)
            ]
            drawn["density"] = _figure([*panels, ("memory, GiB", memory)], "1 / density (1: λ=0)")
        if "decode" in found.timings:
            lines = [(found.seconds("decode", n), *c) for n, c in curves.items() if n != "flex"]
            drawn["decode"] = _figure([("seconds per token", lines)], "keys in the cache")
        return drawn


def _gib(by_size: Mapping[int, int]) -> dict[int, float]:
    return {size: x / 2**30 for size, x in by_size.items()}


Line = tuple[Mapping[int, float], str, str]


def _figure(panels: Sequence[tuple[str, Sequence[Line]]], below: str) -> Figure:
    figure = Figure(figsize=(3.7 * len(panels), 3.3), layout="constrained")
    for axes, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        shown = [line for line in lines if line[0]]
        for by_size, _, colour in shown:
            sizes = sorted(by_size)
            axes.plot(sizes, [by_size[size] for size in sizes], color=colour, marker="o", ms=3)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.margins(y=0.1)
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 50 * low else (1,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_title(title)
        axes.set_xlabel(below)
        axes.minorticks_off()
        every = sorted({size for by_size, _, _ in shown for size in by_size})
        axes.set_xticks(every, [f"{x // 1024}k" if x >= 1024 else f"{x}" for x in every], fontsize=7.5)
        _label(axes, shown)
    return figure


def _label(axes, lines: Sequence[Line]) -> None:
    """Names each line at its end, moved apart where two would touch."""
    (low, high), room = np.log(axes.get_ylim()), 0.065
    ends = sorted((np.log(by_size[max(by_size)]), max(by_size), name, c) for by_size, name, c in lines)
    lowest = -np.inf
    for y, x, name, colour in ends:
        at = max((y - low) / (high - low), lowest + room)
        lowest = at
        text = np.exp(low + at * (high - low))
        axes.annotate(
            name, (x, text), (5, 0), textcoords="offset points", color=colour if colour != MUTED else INK,
            fontsize=8, va="center", annotation_clip=False,
        )  # fmt: skip

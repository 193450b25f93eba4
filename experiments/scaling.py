"""Compute step time and memory of the pod configurations from 8 to 4,096 chips, on paper.

    python -m experiments.scaling

Starts from what was compiled (`docs/measurements/compile_for.json`, one specialist LLM on its share of the chips) and
published bandwidths, and names each assumption. Nothing is measured on a TPU.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.cases import Case, Figures, Results, fingerprint
from experiments.study import Options, Page, Study
from localist_jax.parallel import ahead
from localist_jax.report import study

CHIPS = tuple(1 << n for n in range(3, 13))
SLICE = {
    "v5e": 256,
    "v6e": 256,
    "v5p": 4096,
}  # chips of the largest slice that is a torus, as far as it matters here
GRADIENT = 4  # bytes of a parameter's gradient
SPLIT = ("all-gather", "reduce-scatter", "collective-permute", "all-to-all")


@dataclasses.dataclass(frozen=True)
class Point:
    """A training step of one LLM on so many chips.

    Attributes:
      chips, slices: where; each slice repeats the state.
      memory: bytes of each chip.
      fits: whether it has them.
      compute, links, network: seconds that each needs alone.
      tokens: of the step.
    """

    chips: int
    slices: int
    memory: float
    fits: bool
    compute: float
    links: float
    network: float
    tokens: float

    @property
    def best(self) -> float:
        """Seconds if everything overlaps."""
        return max(self.compute, self.links, self.network)

    @property
    def worst(self) -> float:
        """Seconds if nothing does."""
        return self.compute + self.links + self.network


def predict(one: dict[str, Any], kind: str, chips: int) -> Point:
    """The step that was compiled for `one`'s chips, on another number of them; rows of each chip stay what they are.

    Args:
      one: figures of a compiled training step.
      kind: of chip.
      chips: of one LLM.
    """
    chip, compiled = ahead.CHIPS[kind], one["devices"] // one["mesh"]["specialist"]
    slices = max(1, chips // SLICE[kind])
    inside, tensor = chips // slices, one["mesh"]["tensor"]

    def parts(n: int) -> float:  # of what is split over n chips, the share that comes from others
        groups = max(1, n // tensor)
        return (groups - 1) / groups

    sent = one["collective_bytes"]
    gathered = sum(sent.get(name, 0) for name in SPLIT) * parts(inside) / parts(compiled)
    summed = sent.get("all-reduce", 0)
    state = one["argument_bytes"] * compiled / inside
    far = 2 * (slices - 1) / slices * GRADIENT * one["parameters"] / inside
    memory = state + one["temporary_bytes"]
    return Point(
        chips=chips, slices=slices, memory=memory, fits=memory <= chip.memory,
        compute=one["flops"] / chip.flops, links=(gathered + summed) / chip.links, network=far / chip.network,
        tokens=one["tokens"] / one["devices"] * chips,
    )  # fmt: skip


def body(curves: dict[str, list[Point]]) -> str:
    """The page."""
    tables = []
    for name, points in curves.items():
        rows = [
            [
                f"{p.chips:,}", str(p.slices), f"{p.memory / ahead.GIB:.2f}", "yes" if p.fits else "no",
                f"{1e3 * p.compute:.0f}", f"{1e3 * p.links:.0f}", f"{1e3 * p.network:.0f}",
                f"{1e3 * p.best:.0f} … {1e3 * p.worst:.0f}", f"{p.tokens / p.worst:,.0f} … {p.tokens / p.best:,.0f}",
            ]
            for p in points
        ]  # fmt: skip
        head = (
            "chips",
            "slices",
            "GiB a chip",
            "fits",
            "compute, ms",
            "links, ms",
            "network, ms",
            "step, ms",
            "tokens/s",
        )
        tables.append(f"## {name}\n\n{study.table(head, rows)}")
    return TEXT.format(tables="\n".join(tables))


def picture(curves: dict[str, list[Point]]) -> Figure:
    """Tokens per second and chip over chips, between no overlap and all."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for name, points in curves.items():
        shown = [p for p in points if p.fits]
        if not shown:
            continue
        x = [p.chips for p in shown]
        band = [(p.tokens / p.worst / p.chips, p.tokens / p.best / p.chips) for p in shown]
        (line,) = axes.plot(x, [high for _, high in band], label=name)
        low, top = (np.array(edge) for edge in zip(*band, strict=True))
        axes.fill_between(x, low, top, color=line.get_color(), alpha=0.2)
    axes.set(xscale="log", xlabel="chips of one LLM", ylabel="tokens/s and chip, at most", ylim=(0, None))
    axes.set_xscale("log", base=2)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return figure


def source(options: Options) -> Path:
    """Return what was compiled.

    Raises:
      ValueError: nothing was.
    """
    path = options.out / "compile_for.json"
    if not path.exists():
        raise ValueError(
            f"{path}: is not there; python -m experiments.compile_for --out={options.out} makes it"
        )
    return path


def predicted(path: Path, case: Case) -> Figures:
    """Return the points of each training step that was compiled and fits, by configuration and kind of chip."""
    compiled = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return {
        f"{key.split()[0]} on {kind}": [
            dataclasses.asdict(predict(one, kind, n)) for n in case.settings["chips"]
        ]
        for key, one in compiled.items()
        if key.endswith("train") and one["fits"] and (kind := key.split()[1].partition(":")[0]) in SLICE
    }


def page(options: Options, found: Results) -> Page:
    """Return the page of what was predicted."""
    figures = {name: points for name, points in found["curves"].items() if name not in ("seconds", "made_on")}
    curves = {name: [Point(**point) for point in points] for name, points in figures.items()}
    return Page("Scaling on paper", body(curves), (), figures, {"tokens": picture(curves)})


TEXT = """How do step time and memory of one LLM go with the number of chips, if every chip keeps its rows? A prediction
from the collectives of the compiled training steps ([compile_for.md](compile_for.md)) and published bandwidths; no TPU
was used.

{{tokens}}

{tables}
*step* and *tokens/s* are ranges: from everything overlapping (the longest part alone) to nothing (the sum of all).

## What is assumed

1. Rows of each chip, and so its matrix products and its temporaries, are those of the compiled step; the batch grows
   with the chips. Whether so large a batch still trains well is another question.
2. Matrix products run at the published peak, attention as dense as at λ=0. Sparser attention only helps.
3. `fsdp` grows up to a slice: the state of a chip shrinks as 1/chips, and gathered or scattered bytes go as (n−1)/n,
   which is all that a ring needs. The tensor axis, and what is summed over it, stays as compiled.
4. A slice has at most 256 chips (v5e, v6e) or 4,096 (v5p). Further slices repeat the state; each chip then sums its
   share of the gradients, in float32, over the data-centre network, once a step.
5. All links of a chip carry collectives at the published rate, whatever the axis's place in the torus; an axis that
   lies along one dimension has only that dimension's links, half of v5e's and a third of v5p's.
6. No latency: at thousands of chips small collectives (norms, counts, the router) cost microseconds each that are left
   out.
7. The network's rate is a chip's share of its pod's, as published for v5e; those of the others are taken as twice that.
8. Input, logging and checkpoints cost nothing beside the step."""


STUDY = Study(
    "scaling",
    __doc__ or "",
    cases=lambda options: [Case("curves", {"chips": CHIPS}, predicted)],
    page=page,
    bench=source,
    data=lambda path, case: fingerprint([path]),
)

if __name__ == "__main__":
    STUDY.main()

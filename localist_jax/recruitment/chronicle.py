"""Read a recruiter's records: the lives of blocks, and every decision in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localist_jax.recruitment.record import FILE, REACHED_HORIZON
from localist_jax.training import journal

Record = Mapping[str, Any]
TRIED = ("recruited", "rejected")


@dataclasses.dataclass(frozen=True)
class Life:
    """A block's, as far as it was recruited, divided or retired.

    Attributes:
      block: its place; a place can be taken again.
      parent: from which it was born; its own number for one that was there from the start.
      born, ended: steps done by then; `ended` None while it lives.
      trial: the record of the trial that recruited it; None for one that was there from the start.
    """

    block: int
    parent: int
    born: int = 0
    ended: int | None = None
    trial: Record | None = None


def read(workdir: Path) -> list[Record]:
    """The records of a run, in their order; none where recruitment was off."""
    path = workdir / FILE
    return [*journal.read(path)] if path.is_file() else []


def tried(records: Iterable[Record]) -> list[Record]:
    """Return the records of candidates that a trial or its pilot decided about."""
    return [r for r in records if r["kind"] in TRIED]


def trials(records: Iterable[Record]) -> list[Record]:
    """Return the records of candidates whose pilot was promising; each of these spent a codeword."""
    return [r for r in tried(records) if r["trial"]]


def begun(trial: Record) -> int:
    """Steps done when the trial of this record was opened."""
    return trial["step"] - len(trial["curve_bits"])


def beyond_bits(trial: Record) -> float:
    """Evidence beyond the best placebo's, or the incumbent's where no placebo had any: what has to pay."""
    return trial["llr_bits"] - best_placebo_bits(trial)


def best_placebo_bits(trial: Record) -> float:
    """The evidence of the best placebo, at least 0."""
    return max([0.0, *trial["placebo_bits"]])


def lives(records: Iterable[Record]) -> list[Life]:
    """Return the lives of all blocks in the records, in order of first mention."""
    found: list[Life] = []

    def meet(block: int) -> int:
        """Where the present life of this place is in `found`."""
        for at in reversed(range(len(found))):
            if found[at].block == block and found[at].ended is None:
                return at
        found.append(Life(block, block))
        return len(found) - 1

    for r in records:
        if r["kind"] in TRIED:
            meet(r["parent"])
        if r["kind"] == "recruited":
            found.append(Life(r["block"], r["parent"], r["step"], None, r))
        elif r["kind"] == "retired":
            at = meet(r["block"])
            found[at] = dataclasses.replace(found[at], ended=r["step"])
    return found


def newcomers(records: Iterable[Record]) -> dict[int, Life]:
    """The recruited blocks that are there at the end, by place."""
    return {life.block: life for life in lives(records) if life.trial and life.ended is None}


def sentences(records: Sequence[Record]) -> list[str]:
    """One line for every decision, with the bits that decided it."""
    return [f"Step {r['step']}: {_WORDS[r['kind']](r)}." for r in records if r["kind"] in _WORDS]


def births(records: Sequence[Record]) -> list[str]:
    """The lines of `sentences` that tell of a birth."""
    return sentences([r for r in records if r["kind"] == "recruited"])


def _recruited(r: Record) -> str:
    born = (
        f"block {r['block']} is born of block {r['parent']}{_of(r)} and takes {r['share']:.0%} of its positions. On "
        f"{r['tokens']:,} tokens it saved {r['llr_bits']:,.1f} bits, {beyond_bits(r):,.1f} more than "
        f"{_rival(r)}; {r['threshold_bits']:.1f} were needed"
    )
    if "surprise_bits" not in r:  # a trial of fixed models, whose evidence is exact
        return born
    return (
        f"{born}. It stands out from its placebos by {r['surprise_bits']:.1f} bits of surprise; "
        f"{r['surprise_threshold_bits']:.1f} were needed"
    )


def _rejected(r: Record) -> str:
    ahead = beyond_bits(r)
    more = "more" if ahead > 0 else "fewer"
    said = (
        f"block {r['parent']} is not divided{_of(r)}. On {r['tokens']:,} tokens a newcomer with {r['share']:.0%} of "
        f"its positions would have saved {r['llr_bits']:,.1f} bits, {abs(ahead):,.1f} {more} than {_rival(r)}"
    )
    if r["reason"] != REACHED_HORIZON:
        return f"{said}; given up, {r['reason']}"
    wanting = []
    if ahead < r["threshold_bits"]:
        wanting.append(f"{r['threshold_bits']:.1f} more were needed")
    if r.get("surprise_bits", 0.0) < r.get("surprise_threshold_bits", 0.0):
        surprise, needed = r["surprise_bits"], r["surprise_threshold_bits"]
        wanting.append(f"it stands out by {surprise:.1f} bits of surprise, of {needed:.1f} needed")
    return f"{said}; {' and '.join(wanting) or 'another division had more'}"


def _of(r: Record) -> str:
    return f" for the concept {r['name']}" if r["name"] else ""


def _rival(r: Record) -> str:
    best = best_placebo_bits(r)
    return (
        f"the best of {len(r['placebo_bits'])} placebos ({best:,.1f})"
        if best
        else "the model, as no placebo saved any"
    )


def _retired(r: Record) -> str:
    change = -r["llr_bits"]
    return (
        f"block {r['block']} is retired and block {r['parent']} takes its positions back. Without it {r['tokens']:,} "
        f"tokens took {abs(change):,.1f} bits {'more' if change >= 0 else 'fewer'}; {r['description_bits']:.1f} bits "
        "describe it"
    )


_WORDS: dict[str, Callable[[Record], str]] = {
    "recruited": _recruited,
    "rejected": _rejected,
    "retired": _retired,
    "kept": lambda r: (
        f"block {r['block']} is kept. Without it {r['tokens']:,} tokens took {-r['llr_bits']:,.1f} bits more; "
        f"{r['description_bits']:.1f} bits describe it"
    ),
    "quiet": lambda r: (
        f"nothing is tried, {r['reason']} (the best might save {r['estimated_gain_bits']:,.1f} bits)"
    ),
    "full": lambda r: r["reason"],
    "enlarged": lambda r: f"all places are taken; there are {r['capacity']} now, after {r['seconds']:.1f} s",
}

"""The cases of the study in the order of their worth, and how each is measured."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.cases import Case, Figures
from experiments.localise import controls, retrieval, words
from experiments.localise.reading import Reader
from experiments.localise.subject import Condition, Sizes, Subject
from experiments.localise.texts import CORPORA, OTHER, batches

MAIN = 0.17  # the share that controls and questions are asked at
DISTILLED = 0.10


@dataclasses.dataclass(frozen=True)
class Extent:
    """How much is measured; what takes less time is `QUICK`.

    Attributes:
      sizes: of rows, calibration and blocks.
      rows, control_rows: unseen rows of each corpus, and those that controls read of them.
      shares, more_shares: open shares at the study's context; those that come late.
      seeds: of k-means; the first one has all shares, the others the two main ones.
      tries, recall_tries, length: needles, rows of pairs, and their tokens.
      distil_context, distil_steps: tokens of a row, and steps of each distilled model.
      lengths: other contexts with their rows and shares.
      grammar_pairs: of each paradigm of BLiMP.
    """

    sizes: Sizes = dataclasses.field(default_factory=Sizes)
    rows: int = 8
    control_rows: int = 3
    shares: tuple[float, ...] = (MAIN, DISTILLED, 0.08, 0.25)
    more_shares: tuple[float, ...] = (0.06, 0.3)
    seeds: tuple[int, ...] = (0, 1)
    tries: int = 24
    recall_tries: int = 8
    length: int = 1536
    distil_context: int = 1024
    distil_steps: tuple[int, ...] = (98, 977)
    lengths: tuple[tuple[int, int, tuple[float, ...]], ...] = (
        (512, 8, (MAIN, 0.25)),
        (4096, 3, (MAIN, DISTILLED)),
    )
    grammar_pairs: int = 10


QUICK = Extent(
    Sizes(context=1024, calibration_rows=1, blocks=32), rows=1, control_rows=1, shares=(MAIN,), more_shares=(),
    seeds=(0,), tries=2, recall_tries=1, length=512, distil_context=256, distil_steps=(2,), lengths=(), grammar_pairs=1,
)  # fmt: skip


class Bench:
    """The workbench that cases are measured with: the subject, a reader, and the condition that was made last."""

    def __init__(self, checkpoint: str | Path, folder: Path, extent: Extent):
        self.subject, self.reader, self.extent = Subject(checkpoint, folder, extent.sizes), Reader(), extent
        self._last: tuple[str, Condition] | None = None

    def condition(self, settings: dict[str, Any]) -> Condition:
        """Return the condition that a case's settings name."""
        named = json.dumps(settings, sort_keys=True)
        if self._last is None or self._last[0] != named:
            self._last = None  # before the next one takes memory
            self._last = named, made(self.subject, **settings)
        return self._last[1]


def made(
    subject: Subject, kind: str, share: float = 0.0, seed: int = 0, context: int = 0, **more: Any
) -> Condition:
    """Return a condition by its kind."""
    if kind == "original":
        return subject.original()
    if kind == "blocks":
        return subject.calibrated(share, context, seed, CORPORA)
    if kind == "window":
        return subject.window(share, context)
    if kind == "distilled":
        return subject.distilled(share, seed, context=context, names=CORPORA, **more)
    return controls.made(subject, kind, share, context, seed, CORPORA, OTHER)


def plan(extent: Extent) -> list[Case]:
    """Return all cases, the most valuable first."""
    T, (first, *others) = extent.sizes.context, extent.seeds
    looking = 150 * T * extent.sizes.calibration_rows / 6144
    at = {"context": T, "seed": first}
    original: dict[str, Any] = {"kind": "original"}

    def text(
        name: str, condition: dict[str, Any], context: int = T, rows: int = extent.rows, cost: float = 6.0
    ):
        every = tuple(range(rows))
        return _texts(
            f"text/{context}/{name}", condition, extent, context, rows, every, cost * context / 2048
        )

    def blocks(share: float, seed: int = first, context: int = T) -> dict[str, Any]:
        return {"kind": "blocks", "share": share, "seed": seed, "context": context}

    def window(share: float, context: int = T) -> dict[str, Any]:
        return {"kind": "window", "share": share, "context": context}

    def both(share: float, context: int = T, rows: int = extent.rows) -> list[Case]:
        return [
            *text(f"blocks-{share:g}/seed{first}", blocks(share, first, context), context, rows),
            *text(f"window-{share:g}", window(share, context), context, rows, 4.0),
        ]

    asked = {"original": original, f"blocks-{MAIN:g}": blocks(MAIN), f"window-{MAIN:g}": window(MAIN)}
    distilled = {"kind": "distilled", "share": DISTILLED, "seed": first, "context": extent.distil_context}

    def learned(steps: int) -> list[Case]:
        name, tokens = f"distilled-{DISTILLED:g}-{steps}", steps * extent.distil_context
        begin = Case(
            f"distil/{name}",
            {"condition": {**distilled, "steps": steps}, **_of(extent)},
            _distil,
            tokens / 200,
        )
        return [begin, *text(f"{name}/seed{first}", {**distilled, "steps": steps})]

    def ask(question: str, measure, cost: float) -> list[Case]:
        return [
            Case(
                f"{question}/{name}", {"condition": c, **_of(extent), "length": extent.length}, measure, cost
            )
            for name, c in asked.items()
        ]

    cases = [
        Case(f"calibration/{T}/seed{first}", {**at, **_of(extent)}, _calibration, looking),
        *text("original", original, cost=7.0),
        Case("exact/dial0", {"condition": blocks(MAIN), **_of(extent)}, _exact, 45),
    ]
    for share in extent.shares:
        cases += both(share)
    cases += ask("needle", _needle, extent.tries * 4.5)
    few, *many = extent.distil_steps
    cases += learned(few)
    for seed in others:
        cases.append(
            Case(
                f"calibration/{T}/seed{seed}", {"context": T, "seed": seed, **_of(extent)}, _calibration, 150
            )
        )
        for share in (DISTILLED, MAIN):
            cases += text(f"blocks-{share:g}/seed{seed}", blocks(share, seed))
    some = tuple(np.linspace(0, extent.rows - 1, extent.control_rows).round().astype(int).tolist())
    for kind, cost in controls.KINDS.items():
        condition = {"kind": kind, "share": MAIN, **at}
        cases += _texts(f"control/{kind}", condition, extent, T, extent.rows, some, cost)
    cases += ask("recall", _recall, extent.recall_tries * 5)
    cases += [
        Case(
            f"grammar/{dial}", {"condition": blocks(MAIN), "dial": dial, "pairs": extent.grammar_pairs, **_of(extent)},
            _grammar, 90,
        )
        for dial in (0, 1)
    ]  # fmt: skip
    cases.append(
        Case("names/supersenses", {"condition": blocks(MAIN), "rows": extent.rows, **_of(extent)}, _names, 60)
    )
    for share in extent.more_shares:
        cases += both(share)
    for context, rows, shares in extent.lengths:
        cases += text("original", original, context, rows, 7.0)
        for share in shares:
            cases += both(share, context, rows)
    for steps in many:
        cases += learned(steps)
    return cases


def _of(extent: Extent) -> dict[str, Any]:
    return {"sizes": dataclasses.asdict(extent.sizes)}


def _texts(
    name: str,
    condition: dict[str, Any],
    extent: Extent,
    context: int,
    rows: int,
    chosen: tuple[int, ...],
    cost: float,
) -> list[Case]:
    """Return the cases of a condition, one for each corpus; it reads the `chosen` of so many rows."""
    settings = {
        "condition": condition,
        "context": context,
        "rows": rows,
        "chosen": list(chosen),
        **_of(extent),
    }
    return [
        Case(f"{name}/{corpus}", {**settings, "corpus": corpus}, _code, cost * len(chosen))
        for corpus in CORPORA
    ]


def _code(bench: Bench, case: Case) -> Figures:
    """Bits per token and open share of each row."""
    s, subject = case.settings, bench.subject
    condition = bench.condition(s["condition"])
    rows = batches(subject.texts.rows(s["corpus"], "test", s["context"], s["rows"]))
    read = [bench.reader.code(condition, rows[i]) for i in s["chosen"]]
    return {
        "rows": s["chosen"],
        "bits": [float(code[0]) for code, _ in read],
        "open_share": [share for _, share in read],
        "about": condition.about,
    }


def _calibration(bench: Bench, case: Case) -> Figures:
    s = case.settings
    condition = bench.subject.calibrated(MAIN, s["context"], s["seed"], CORPORA)
    return dict(condition.about)


def _exact(bench: Bench, case: Case) -> Figures:
    """Whether the localist model at λ=0 gives the original's logits, bit for bit, on a row of each corpus."""
    localist = dataclasses.replace(bench.condition(case.settings["condition"]), dial=0.0)
    original, equal, gap = bench.subject.original(), True, 0.0
    for corpus in CORPORA:
        (row,) = batches(bench.subject.texts.rows(corpus, "test", bench.extent.sizes.context, 1))
        one, other = (bench.reader.logits(c, row) for c in (original, localist))
        equal &= one.tobytes() == other.tobytes()
        gap = max(gap, float(np.abs(one - other).max()))
    return {"bit_equal": equal, "largest_difference": gap}


def _needle(bench: Bench, case: Case) -> Figures:
    tries = retrieval.needles(bench.subject.texts, bench.extent.tries, bench.extent.length)
    return _answered(bench, case, tries)


def _recall(bench: Bench, case: Case) -> Figures:
    tries = retrieval.pairs(bench.subject.texts, bench.extent.recall_tries, bench.extent.length)
    return _answered(bench, case, tries)


def _answered(bench: Bench, case: Case, tries: list[retrieval.Try]) -> Figures:
    condition = bench.condition(case.settings["condition"])
    right = retrieval.right(bench.reader, condition, tries)
    return {
        "right": right,
        "share": float(np.mean([x for row in right for x in row])),
        "about": condition.about,
    }


def _distil(bench: Bench, case: Case) -> Figures:
    begun = time.monotonic()
    condition = bench.condition(case.settings["condition"])
    return {"seconds_here": time.monotonic() - begun, "about": condition.about}


def _grammar(bench: Bench, case: Case) -> Figures:
    condition = dataclasses.replace(
        bench.condition(case.settings["condition"]), dial=float(case.settings["dial"])
    )
    return words.grammar(bench.reader, condition, bench.subject.run.tokenizer, case.settings["pairs"])


def _names(bench: Bench, case: Case) -> Figures:
    condition, texts = bench.condition(case.settings["condition"]), bench.subject.texts
    rows = [
        row
        for corpus in CORPORA
        for row in batches(texts.rows(corpus, "test", bench.extent.sizes.context, case.settings["rows"]))
    ]
    return words.names(bench.reader, condition, bench.subject.run, rows)

"""The results of the cases that were run, and what is compared row by row."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from experiments import cases
from experiments.cases import Figures
from experiments.localise.cases import DISTILLED, Extent


@dataclasses.dataclass(frozen=True)
class Gap:
    """The mean difference of two conditions on the same rows, and its standard error (None of one row)."""

    mean: float
    error: float | None
    rows: int

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.3f}"
        return f"{self.mean:z.3f}{error}"


@dataclasses.dataclass(frozen=True, eq=False)
class Code:
    """Bits per token of some rows under a condition.

    Attributes:
      bits: by the number of the row.
      open_share: mean over the rows.
      about: further figures of the condition.
    """

    bits: dict[int, float]
    open_share: float
    about: dict[str, Any]

    @property
    def mean(self) -> float:
        """Bits per token over all rows."""
        return float(np.mean(list(self.bits.values())))

    def above(self, other: Code) -> Gap | None:
        """Return by how many bits this condition is worse on the rows that both read; None if there are none."""
        both = sorted(self.bits.keys() & other.bits.keys())
        if not both:
            return None
        gaps = np.array([self.bits[row] - other.bits[row] for row in both])
        error = float(gaps.std(ddof=1) / len(gaps) ** 0.5) if len(gaps) > 1 else None
        return Gap(float(gaps.mean()), error, len(gaps))


class Results:
    """The results by the names of the cases; `code` and its kin give None for what was not.

    Args:
      found: the figures.
      extent: of the study.

    Raises:
      ValueError: results of different models or texts.
    """

    def __init__(self, found: cases.Results, extent: Extent):
        self.extent, self._found = extent, found
        if len(set(found.data.values())) > 1:
            raise ValueError("localise: its cases read different models or texts; run all of them again")

    def __call__(self, name: str) -> Figures | None:
        """Return the figures of a case."""
        return self._found.get(name)

    @property
    def missing(self) -> list[str]:
        """The cases that were not run, in their order."""
        return self._found.missing

    @property
    def count(self) -> int:
        """How many cases the study has."""
        return len(self._found) + len(self.missing)

    @property
    def context(self) -> int:
        """The length of a row, where nothing else is said."""
        return self.extent.sizes.context

    def code(self, name: str) -> Code | None:
        """Return the bits of a case that reads rows."""
        figures = self(name)
        if figures is None:
            return None
        bits = dict(zip(figures["rows"], figures["bits"], strict=True))
        return Code(bits, float(np.mean(figures["open_share"])), figures["about"])

    def original(self, corpus: str, context: int = 0) -> Code | None:
        """Return the bits of the original."""
        return self.code(f"text/{context or self.context}/original/{corpus}")

    def blocks(self, share: float, corpus: str, context: int = 0, seed: int | None = None) -> Code | None:
        """Return the bits of the blocks at λ=1; of the first seed, if none is given."""
        seed = self.extent.seeds[0] if seed is None else seed
        return self.code(f"text/{context or self.context}/blocks-{share:g}/seed{seed}/{corpus}")

    def window(self, share: float, corpus: str, context: int = 0) -> Code | None:
        """Return the bits of the window with as large an open share."""
        return self.code(f"text/{context or self.context}/window-{share:g}/{corpus}")

    def distilled(self, steps: int, corpus: str) -> Code | None:
        """Return the bits of the blocks after so many steps of distilling."""
        seed = self.extent.seeds[0]
        return self.code(f"text/{self.context}/distilled-{DISTILLED:g}-{steps}/seed{seed}/{corpus}")

    def control(self, kind: str, corpus: str) -> Code | None:
        """Return the bits of a control."""
        return self.code(f"control/{kind}/{corpus}")

    def excess(self, code: Code | None, corpus: str, context: int = 0) -> Gap | None:
        """Return by how many bits a condition is above the original; None if one of both was not run."""
        original = self.original(corpus, context)
        return None if code is None or original is None else code.above(original)

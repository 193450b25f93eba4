"""The page of the study, made of the cases that were run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.localise.cases import Extent
from experiments.localise.runner import Case


def write(cases: Sequence[Case], extent: Extent, workdir: Path, out: Path, command: str) -> Path:
    """Return where the cases are; the page is to come."""
    return workdir / "cases"

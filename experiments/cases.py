"""Cases that are measured once each, and the store in which their results are found again."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from localist_jax.training.run import machine, versions, write_json

Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One thing to measure.

    Attributes:
      name: parts joined by slashes; the result's file is named after it.
      settings: all that the result depends on besides data and code, as JSON.
      measure: function of the study's bench (of the case's `Store`, where it has none) and the case; returns the
        figures. Workers import it, so it stands at the top of a module.
      cost: seconds, or any other unit that all cases of a study share; for the time left.
      after: cases that are measured before; this result depends on theirs.
      alone: whether it is measured when the workers have stopped; for timings.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Any, Case], Figures]
    cost: float = 1.0
    after: tuple[Case, ...] = ()
    alone: bool = False


@dataclasses.dataclass(frozen=True)
class Store:
    """The results of a study, a file each, and a folder for each case.

    Attributes:
      folder: of the study.
      version: of the study's code.
      data: fingerprint of the data that is read; None: whatever a result was measured on.
    """

    folder: Path
    version: str = "1"
    data: str | None = None

    def key(self, case: Case) -> str:
        """Tell the result of this case from those of other settings, data or code."""
        about = [self.version, case.name, case.settings, self.data or ""]
        if case.after:
            about.append([self.key(before) for before in case.after])
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]

    def path(self, case: Case) -> Path:
        """Return the file of the result."""
        return self.folder / "cases" / f"{case.name.replace('/', '-')}.json"

    def own(self, case: Case) -> Path:
        """Return the folder for what a case keeps while it runs; with another key it is another folder."""
        return self.folder / "runs" / case.name / self.key(case)

    def record(self, case: Case) -> dict[str, Any] | None:
        """Return what is on file of a case; None if nothing is, or with other settings, data or code."""
        path = self.path(case)
        if not path.is_file():
            return None
        record = json.loads(path.read_text(encoding="utf-8"))
        data = record["fingerprint"] if self.data is None else self.data
        return record if record["key"] == dataclasses.replace(self, data=data).key(case) else None

    def figures(self, case: Case) -> Figures | None:
        """Return the figures of a case, with `seconds` and `made_on`; None if it was not measured."""
        record = self.record(case)
        return record and record["figures"] | {name: record[name] for name in ("seconds", "made_on")}

    def keep(self, case: Case, figures: Figures, seconds: float) -> None:
        """Write the result of a case."""
        today = datetime.date.today().isoformat()
        record = {
            "name": case.name, "key": self.key(case), "fingerprint": self.data or "", "version": self.version,
            "settings": case.settings, "figures": figures, "seconds": round(seconds, 2),
            "made_on": {"machine": machine(), "versions": versions(), "date": today},
        }  # fmt: skip
        self.path(case).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path(case), record)


class Results(dict[str, Figures]):
    """The figures of the cases that were measured, by name, in the order of the plan.

    Attributes:
      missing: names of the cases that were not.
      data: by name, the fingerprint of the data that a case was measured on.
    """

    def __init__(self, store: Store, cases: Sequence[Case]):
        found = {case.name: store.figures(case) for case in cases}
        super().__init__({name: figures for name, figures in found.items() if figures is not None})
        self.missing = [name for name in found if name not in self]
        self.data = {c.name: r["fingerprint"] for c in cases if (r := store.record(c)) is not None}


def fingerprint(files: Iterable[Path]) -> str:
    """Return 16 hex digits that identify some files by name and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]

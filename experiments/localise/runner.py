"""Cases with a result file each: one that is there with the same key is not run again."""

from __future__ import annotations

import dataclasses
import datetime
import fnmatch
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from localist_jax.data import CorpusError
from localist_jax.training.progress import human_time
from localist_jax.training.run import machine, versions, write_json

VERSION = "1"  # of the study's code: raised when a case would measure something else
Figures = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One thing to measure.

    Attributes:
      name: parts joined by slashes; the result's file is named after it.
      settings: all that the result depends on, besides the data and the code.
      measure: of a case and the study's workbench, its figures.
      cost: seconds on two cores, about; for the time left.
    """

    name: str
    settings: dict[str, Any]
    measure: Callable[[Any, Case], Figures]
    cost: float

    def path(self, folder: Path) -> Path:
        """Where the result lies."""
        return folder / "cases" / f"{self.name.replace('/', '-')}.json"

    def key(self, fingerprint: str) -> str:
        """Tell the result of this case from those of other settings, data or code."""
        about = json.dumps([VERSION, self.name, self.settings, fingerprint], sort_keys=True)
        return hashlib.sha256(about.encode()).hexdigest()[:16]


def stored(case: Case, folder: Path, fingerprint: str | None = None) -> Figures | None:
    """Return the figures of a case that was run; None if it was not, or with other settings, data or code.

    Args:
      case: which.
      folder: of the study.
      fingerprint: of the data; None: whatever it was measured on.
    """
    path = case.path(folder)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    same = case.key(found["fingerprint"] if fingerprint is None else fingerprint) == found["key"]
    return found["figures"] | {"seconds": found["seconds"], "made_on": found["made_on"]} if same else None


def fingerprint_of(case: Case, folder: Path) -> str:
    """Return the fingerprint of the data that a case was measured on."""
    return json.loads(case.path(folder).read_text(encoding="utf-8"))["fingerprint"]


def selected(cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
    """Return the cases whose names fit one of the patterns (`*` stands for anything); all without patterns.

    Raises:
      ValueError: a pattern that fits none.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatch(case.name, pattern) for case in cases):
            names = ", ".join(sorted({case.name.split("/")[0] for case in cases}))
            raise ValueError(f"localise: no case fits {pattern!r}; they begin with {names}")
    return [c for c in cases if not patterns or any(fnmatch.fnmatch(c.name, p) for p in patterns)]


def run(cases: Sequence[Case], folder: Path, bench: Any, fingerprint: str, minutes: float = 0.0) -> bool:
    """Measure the cases that are not there yet, in their order; progress goes to standard error.

    Args:
      cases: to run.
      folder: of the study.
      bench: what `Case.measure` gets.
      fingerprint: of the data.
      minutes: after which no other case is begun; 0: none.

    Returns:
      whether all are there now.
    """
    waiting = [case for case in cases if stored(case, folder, fingerprint) is None]
    complete = True
    there, begun, spent = len(cases) - len(waiting), time.monotonic(), 0.0
    for nth, case in enumerate(waiting):
        if minutes and time.monotonic() - begun > 60 * minutes:
            print(
                f"localise: {minutes:g} minutes are over, {len(waiting) - nth} cases are left",
                file=sys.stderr,
            )
            return False
        start = time.monotonic()
        try:
            figures = case.measure(bench, case)
        except CorpusError as missing:  # other cases can do without
            print(f"localise: {case.name} is left out: {missing}", file=sys.stderr, flush=True)
            complete = False
            continue
        seconds = time.monotonic() - start
        case.path(folder).parent.mkdir(parents=True, exist_ok=True)
        write_json(case.path(folder), _record(case, figures, fingerprint, seconds))
        spent += case.cost
        left = sum(c.cost for c in waiting[nth + 1 :]) * (time.monotonic() - begun) / spent
        done = f"localise {there + nth + 1}/{len(cases)}  {case.name}  {human_time(seconds)}"
        print(f"{done}  {human_time(left)} left", file=sys.stderr, flush=True)
    return complete


def _record(case: Case, figures: Figures, fingerprint: str, seconds: float) -> dict[str, Any]:
    today = datetime.date.today().isoformat()
    return {
        "name": case.name,
        "key": case.key(fingerprint),
        "fingerprint": fingerprint,
        "version": VERSION,
        "settings": case.settings,
        "figures": figures,
        "seconds": round(seconds, 2),
        "made_on": {"machine": machine(), "versions": versions(), "date": today},
    }

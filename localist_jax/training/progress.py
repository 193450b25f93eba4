"""The progress line of a run: steps done, metrics, speed, and time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TextIO

RECENT_UPDATES = 20  # number of updates that the speed is computed from
TERMINAL_PERIOD, FILE_PERIOD = 0.2, 5.0  # seconds between lines


def human_count(value: float) -> str:
    """Return a number with three significant digits and a letter.

    >>> [human_count(x) for x in (7, 950, 12_345, 3_200_000)]
    ['7', '950', '12.3k', '3.2M']
    """
    for scale, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def human_time(seconds: float) -> str:
    """Return a duration in its two largest units of hours, minutes and seconds.

    >>> [human_time(x) for x in (5, 130, 7380)]
    ['5s', '2m10s', '2h03m']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Progress:
    """Printer of the progress of a loop; speed excludes compilation and pauses.

    Args:
      total: number of steps.
      start: number of steps done before.
      tokens: tokens per step.
      label: word that begins the line.
      stream: file to print to; default: standard error.
      clock: function that returns seconds.
      silent: whether to print nothing.
    """

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        tokens: int = 0,
        label: str = "train",
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        silent: bool = False,
    ):
        self._total, self._tokens, self._label = total, tokens, label
        self._stream, self._clock = stream or sys.stderr, clock
        self._terminal, self._silent = self._stream.isatty(), silent
        self._begun = clock()
        self._paused = 0.0
        self._seen: deque[tuple[int, float]] = deque(maxlen=RECENT_UPDATES)
        self._printed = float("-inf")
        self._step = start

    def _now(self) -> float:
        return self._clock() - self._paused

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the time in this context from training time."""
        begun = self._clock()
        try:
            yield
        finally:
            self._paused += self._clock() - begun

    def started(self, step: int) -> None:
        """Start measuring speed; to be called when the first step (and its compilation) is done."""
        self._seen.append((step, self._now()))

    @property
    def steps_per_second(self) -> float:
        """Steps per second over the recent updates; 0 before there are two."""
        if len(self._seen) < 2:
            return 0.0
        (first, begun), (last, now) = self._seen[0], self._seen[-1]
        return (last - first) / max(now - begun, 1e-9)

    @property
    def tokens_per_second(self) -> float:
        """Training tokens per second over the recent updates."""
        return self.steps_per_second * self._tokens

    def update(self, step: int, figures: str) -> None:
        """Note that `step` steps are done, and print if the last line is old enough."""
        self._step = step
        self._seen.append((step, self._now()))
        due = TERMINAL_PERIOD if self._terminal else FILE_PERIOD
        if self._clock() - self._printed >= due or step == self._total:
            self._printed = self._clock()
            self._print(self.line(figures))

    def line(self, figures: str) -> str:
        """Return the line for the current state."""
        parts = [
            f"{self._label} {self._step}/{self._total}",
            f"{100 * self._step // self._total:3d}%",
            figures,
        ]
        if speed := self.steps_per_second:
            parts.append(f"{human_count(self.tokens_per_second)} tok/s")
            parts.append(f"{human_time((self._total - self._step) / speed)} left")
        return "  ".join(parts)

    def done(self) -> None:
        """End the line and print the total time."""
        if self._silent:
            return
        if self._terminal:
            self._stream.write("\n")
        self._stream.write(
            f"{self._label}: {self._step} steps in {human_time(self._clock() - self._begun)}\n"
        )
        self._stream.flush()

    def _print(self, line: str) -> None:
        if self._silent:
            return
        self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()


class Stages:
    """Progress through stages that follow one another, each with a line of its own.

    Args:
      tokens: per step.
    """

    def __init__(self, tokens: int):
        self._tokens, self._bars = tokens, dict[str, Progress]()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Say how many steps of a stage are done; the first call begins it."""
        if stage not in self._bars:
            self._bars[stage] = Progress(total, tokens=self._tokens, label=stage)
            self._bars[stage].started(done)
        self._bars[stage].update(done, "")
        if done == total:
            self._bars[stage].done()

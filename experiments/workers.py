"""Measuring cases in worker processes or in this one: order, progress, failures."""

from __future__ import annotations

import concurrent.futures as futures
import contextlib
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.cases import Case, Store
from localist_jax.data import CorpusError
from localist_jax.parallel.compilation import keep_programs
from localist_jax.training.progress import human_time


class Pool:
    """Processes that keep what they compiled for one another.

    Args:
      workers: how many; 0: one per core.
      own_cores: whether each keeps to its own share of the processor's cores, one at the least: small models
        hardly gain from several.
    """

    def __init__(self, workers: int = 0, own_cores: bool = True):
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.count = workers or cores
        context = multiprocessing.get_context("spawn")
        slots = context.Queue()
        for slot in range(self.count):
            slots.put(slot)
        self._executor = futures.ProcessPoolExecutor(
            self.count, context, _settle, (slots, self.count, own_cores)
        )

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def submit(self, case: Case, store: Store, bench: Any) -> futures.Future[float]:
        """Measure a case when a worker is free; what is printed meanwhile goes to a file beside its result."""
        return self._executor.submit(_measured, case, store, bench, store.path(case).with_suffix(".log"))


class Here(contextlib.nullcontext):
    """This process, which measures one case after another."""

    count = 1

    def submit(self, case: Case, store: Store, bench: Any) -> futures.Future[float]:
        """Measure a case at once."""
        future: futures.Future[float] = futures.Future()
        try:
            future.set_result(_measured(case, store, bench))
        except Exception as error:
            future.set_exception(error)
        return future


class Progress:
    """The state of some cases: those that are left, and what became of the others.

    Args:
      label: of the lines on standard error.
      cases: to measure, each with its store, in their order.
      there: how many others were measured before.
      minutes: after which no other case is begun; 0: none.
    """

    def __init__(self, label: str, cases: Sequence[tuple[Case, Store]], there: int = 0, minutes: float = 0.0):
        self.failures: list[Exception] = []
        self._label, self._minutes, self._begun = label, minutes, time.monotonic()
        self._there, self._done, self._total, self._spent = there, 0, there + len(cases), 0.0
        self._left, self._without = {case.name: case.cost for case, _ in cases}, set[str]()

    def say(self, what: str) -> None:
        """Print a line of progress."""
        print(f"{self._label}: {what}", file=sys.stderr, flush=True)

    def leave_out(self, cases: Sequence[Case], why: object) -> None:
        """Give some cases up, and with them those that wait for them."""
        for case in cases:
            self._left.pop(case.name, None)
            self._without.add(case.name)
        others = f" and {len(cases) - 1} others are" if len(cases) > 1 else " is"
        self.say(f"{cases[0].name}{others} left out: {why}")

    def run(self, cases: Sequence[tuple[Case, Store]], workers: Pool | Here, bench: Any = None) -> None:
        """Measure some of the cases; a failure is said at once, and the others go on."""
        waiting, running = list(cases), dict[futures.Future[float], Case]()
        while waiting or running:
            for case, store in self._ready(waiting):
                if len(running) < workers.count:
                    waiting.remove((case, store))
                    running[workers.submit(case, store, bench)] = case
            assert running or not waiting, "a case waits for one that another kind of worker measures"
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                self._ended(running.pop(future), future)

    def _ready(self, waiting: list[tuple[Case, Store]]) -> Iterator[tuple[Case, Store]]:
        """Yield the cases that may begin now; empties the list when the minutes are over."""
        if self._minutes and time.monotonic() - self._begun > 60 * self._minutes and waiting:
            self.say(f"{self._minutes:g} minutes are over, {len(waiting)} cases are left")
            waiting.clear()
        for one in list(waiting):
            if lost := [before.name for before in one[0].after if before.name in self._without]:
                waiting.remove(one)
                self.leave_out([one[0]], f"it needs {lost[0]}")
            elif not any(before.name in self._left for before in one[0].after):
                yield one

    def _ended(self, case: Case, future: futures.Future[float]) -> None:
        error, cost = future.exception(), self._left.pop(case.name)
        self._spent += cost
        if isinstance(error, CorpusError):  # other cases can do without
            self.leave_out([case], error)
        elif isinstance(error, Exception):
            self._without.add(case.name)
            self.failures.append(error)
            self.say(f"{case.name} failed: {type(error).__name__}: {error}")
        else:
            self._done += 1
            left = sum(self._left.values()) * (time.monotonic() - self._begun) / max(self._spent, 1e-9)
            took = f"{case.name}  {human_time(future.result())}"
            self.say(f"{self._there + self._done}/{self._total}  {took}  {human_time(left)} left")


def _measured(case: Case, store: Store, bench: Any, log: Path | None = None) -> float:
    """Measure a case and keep its result; return the seconds."""
    begun = time.monotonic()
    with _printing_to(log) if log else contextlib.nullcontext():
        figures = case.measure(store if bench is None else bench, case)
    seconds = time.monotonic() - begun
    store.keep(case, figures, seconds)
    return seconds


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Send standard error, of libraries written in C too, to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)


def _settle(slots: Any, workers: int, own_cores: bool) -> None:
    """Make a worker ready: the programs that others compiled, and its share of the cores (where the platform can)."""
    keep_programs()
    slot = slots.get()
    if own_cores and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[slot % len(cores) :: workers])

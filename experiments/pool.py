"""Runs in worker processes: each trained and measured once, kept in its folder, taken up where it stopped."""

from __future__ import annotations

import concurrent.futures as futures
import datetime
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from localist_jax.config import Config, resolve
from localist_jax.parallel.compilation import keep_programs
from localist_jax.training.progress import human_time
from localist_jax.training.run import Run, machine, versions, write_json

RESULT = "result.json"


def kept(folder: Path, settings: Config) -> dict[str, Any] | None:
    """Return what an earlier call measured in this folder with these settings; None if there is nothing."""
    path = folder / RESULT
    if not path.is_file():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored["figures"] if _same(stored["settings"], settings) else None


def _same(stored: dict[str, Any], settings: Config) -> bool:
    """Whether a stored configuration is this one; fields that were added since have their defaults."""
    try:
        return resolve(stored) == settings
    except ValueError:  # a field that is no more
        return False


def train_and_measure(
    folder: Path,
    settings: Config,
    train: Callable[[Config, Path], Run],
    measure: Callable[[Run], dict[str, Any]],
) -> dict[str, Any]:
    """Figures of one run, which is trained (or resumed) first unless it is there already.

    Beside what was measured they hold `seconds`, and `made_on`: the machine, versions and date. A folder with a run of
    other settings is emptied. What is printed meanwhile goes to `train.log`.
    """
    if (found := kept(folder, settings)) is not None:
        return found
    about = folder / "config.json"
    if about.is_file() and not _same(json.loads(about.read_text(encoding="utf-8"))["config"], settings):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with open(folder / "train.log", "a", encoding="utf-8") as log, _printing_to(log):
        run = train(settings, folder)
        figures = measure(run) | {"seconds": round(time.monotonic() - begun)}
    today = datetime.date.today().isoformat()
    figures["made_on"] = {"machine": machine(), "versions": versions(), "date": today}
    write_json(folder / RESULT, {"settings": settings.to_dict(), "figures": figures})
    return figures


class _printing_to:
    """Sends standard error, of libraries written in C too, to a file."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        sys.stderr.flush()
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)

    def __exit__(self, *_):
        sys.stderr.flush()
        os.dup2(self._saved, 2)
        os.close(self._saved)


Job = tuple[Any, Callable[..., Any], tuple[Any, ...]]  # what it is, function, arguments


class Pool:
    """Workers that keep what they compiled for one another.

    Args:
      workers: how many.
      own_cores: whether each keeps to its own share of the processor's cores, one at the least: small models
        hardly gain from several.
    """

    def __init__(self, workers: int, own_cores: bool = True):
        context = multiprocessing.get_context("spawn")
        self._workers = workers
        slots = context.Queue()
        for slot in range(workers):
            slots.put(slot)
        self._executor = futures.ProcessPoolExecutor(workers, context, _settle, (slots, workers, own_cores))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def results(
        self, jobs: Sequence[Job], label: str, then: Callable[[Any, Any], Sequence[Job]] = lambda *_: ()
    ) -> Iterator[tuple[Any, Any]]:
        """(what it is, result) of each job as it is done; progress goes to standard error.

        Args:
          jobs: begun in their order.
          label: of the lines of progress.
          then: (what it was, result) → jobs that had to wait for it, which go before those that are left.

        Raises:
          Exception: the first failure of a job, said at once and raised when the other jobs are done.
        """
        begun, done, failure = time.monotonic(), 0, None
        waiting = deque(jobs)
        running: dict[futures.Future, Any] = {}
        while waiting or running:
            while waiting and len(running) < self._workers:
                name, function, arguments = waiting.popleft()
                running[self._executor.submit(function, *arguments)] = name
            finished, _ = futures.wait(running, return_when=futures.FIRST_COMPLETED)
            for future in finished:
                name, done = running.pop(future), done + 1
                said = "/".join(map(str, name)) if isinstance(name, tuple) else name
                if error := future.exception():
                    print(f"{label} failed  {said}  {error}", file=sys.stderr, flush=True)
                    failure = failure or error
                    continue
                result = future.result()
                waiting.extendleft(reversed(then(name, result)))
                total = done + len(running) + len(waiting)
                left = (time.monotonic() - begun) / done * (total - done)
                print(f"{label} {done}/{total}  {said}  {human_time(left)} left", file=sys.stderr, flush=True)
                yield name, result
        if failure:
            raise failure


def _settle(slots, workers: int, own_cores: bool) -> None:
    """Makes a worker ready: the programs that others compiled, and its share of the cores (where the platform can)."""
    keep_programs()
    slot = slots.get()
    if own_cores and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, cores[slot % len(cores) :: workers])

"""SIGTERM, by which clusters take machines back: noticed between two steps, by all processes at the same step."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context manager in which SIGTERM does not end the process, but makes `due` true.

    Of many processes one that gets the signal is enough: JAX's coordination service tells the others, and they agree
    on a step. Signals reach the main thread only; elsewhere this does nothing for a process alone.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: signal.Handlers | object = None

    def __enter__(self) -> Preemption:
        # With many processes JAX has a handler of its own, which must stay.
        if jax.process_count() == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)  # type: ignore[arg-type]
            self._before = None

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True

    def due(self, step: int) -> bool:
        """Whether to save and stop after this step; all processes must ask at each step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

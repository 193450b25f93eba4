"""SIGTERM, by which clusters reclaim machines: all processes notice it between the same two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax
from jax.experimental import multihost_utils


class Preemption:
    """A context manager in which SIGTERM does not end the process, but makes `due` return true.

    With many processes it is enough that one gets the signal: JAX's coordination service informs the others, and they
    agree on a step. Python delivers signals to the main thread only; in other threads a single process ignores this.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: signal.Handlers | object = None

    def __enter__(self) -> Preemption:
        # With many processes JAX has its own handler, which must stay.
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
        """Return whether to save and stop after this step; every process must call it at every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._asked

"""Errors as a user should meet them: one line on standard error that says what to do."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


class StoppedRun(RuntimeError):
    """A run that stopped for a reason its user must know; `status` is the command's exit status."""

    status = 1


@contextlib.contextmanager
def one_line(*more: type[BaseException]) -> Iterator[None]:
    """Turns a ValueError, a `StoppedRun` (or one of `more`) into one line and its exit status, or 1.

    Set the environment variable LOCALIST_TRACEBACK=1 to see where it came from.
    """
    try:
        yield
    except (ValueError, FileNotFoundError, StoppedRun, *more) as error:  # type: ignore[misc]
        if os.environ.get("LOCALIST_TRACEBACK"):
            raise
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"error: {message}", file=sys.stderr, flush=True)
        raise SystemExit(getattr(error, "status", 1)) from None

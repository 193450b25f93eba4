"""Errors as a user should meet them: one line on standard error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

# What the system refuses, and what mends it.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "free some space and start it again: a run goes on from its last whole checkpoint",
    ),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "choose another folder, or change its permissions"
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST), "a file stands where a folder is wanted; choose another folder"
    ),
    errno.EISDIR: "a folder stands where a file is wanted",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class StoppedRun(RuntimeError):
    """A run that stopped for a reason its user must know; `status` is the command's exit status."""

    status = 1


@contextlib.contextmanager
def one_line(*more: type[BaseException]) -> Iterator[None]:
    """Turns what a user can mend into one line and the error's exit status, or 1.

    That is a ValueError, what the system refuses (OSError), a number or nesting beyond all bounds, a `StoppedRun`, or
    one of `more`. Set the environment variable LOCALIST_TRACEBACK=1 to see where it came from.
    """
    try:
        yield
    except (ValueError, OSError, OverflowError, RecursionError, StoppedRun, *more) as error:  # type: ignore[misc]
        if os.environ.get("LOCALIST_TRACEBACK"):
            raise
        print(f"error: {message(error)}", file=sys.stderr, flush=True)
        raise SystemExit(getattr(error, "status", 1)) from None


def message(error: BaseException) -> str:
    """An error in one line.

    >>> message(OSError(errno.ENAMETOOLONG, "File name too long", "a"))
    'a: File name too long; choose a shorter name'
    """
    if isinstance(error, RecursionError):
        return "the input is nested too deeply; give it fewer levels"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        remedy = REMEDIES.get(error.errno or 0)
        return f"{where}{error.strerror}" + (f"; {remedy}" if remedy else "")
    return " ".join(str(error).split()) or type(error).__name__

"""Error messages for users: one line on standard error that says what was wrong and what to do."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

# Advice for each operating-system error.
REMEDIES = {
    **dict.fromkeys(
        (errno.ENOSPC, errno.EDQUOT, errno.EFBIG),
        "free some space and start it again: a run continues from its last complete checkpoint",
    ),
    **dict.fromkeys(
        (errno.EROFS, errno.EACCES, errno.EPERM), "choose another folder, or change its permissions"
    ),
    **dict.fromkeys(
        (errno.ENOTDIR, errno.EEXIST), "a file is where a folder is needed; choose another folder"
    ),
    errno.EISDIR: "a folder is where a file is needed; choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
}


class StoppedRun(RuntimeError):
    """A run that stopped for a reason its user has to know; `status` is the command's exit status."""

    status = 1


@contextlib.contextmanager
def one_line(*more: type[BaseException]) -> Iterator[None]:
    """Print errors that a user can fix as one line, and exit with the error's status, or 1.

    These are ValueError, OSError, OverflowError, RecursionError, `StoppedRun`, and the types in `more`. Set the
    environment variable LOCALIST_TRACEBACK=1 to see the traceback instead.
    """
    try:
        yield
    except (ValueError, OSError, OverflowError, RecursionError, StoppedRun, *more) as error:  # type: ignore[misc]
        if os.environ.get("LOCALIST_TRACEBACK"):
            raise
        print(f"error: {message(error)}", file=sys.stderr, flush=True)
        raise SystemExit(getattr(error, "status", 1)) from None


def message(error: BaseException) -> str:
    """Return an error as one line.

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

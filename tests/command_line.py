"""The command `localist`, called in the tests' own process."""

import contextlib
import io

from localist_jax import __main__ as localist


def command(*arguments):
    """`localist …`: exit status, standard output, standard error."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            localist.main([str(a) for a in arguments])
        except SystemExit as stop:
            status = stop.code
    return status, out.getvalue(), err.getvalue()

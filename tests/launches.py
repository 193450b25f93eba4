"""Runs `python -m experiments.launch` with each of several lists of arguments, in processes of their own.

python launches.py < LISTS_JSON; prints [[exit status, standard output, standard error], …] as JSON.

The libraries are imported once, here; each launch is a fork, made before JAX starts a thread. So what is tested is
the launcher as users start it, at a tenth of the time.
"""

import json
import os
import sys
import tempfile
import traceback

from experiments import launch


def launched(arguments):
    """The launcher in a child: exit status, standard output, standard error."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if not child:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = [launch.__file__, *arguments]
            status = 1
            try:
                launch.main()
            except SystemExit as stop:
                status = stop.code or 0
            except BaseException:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        for file in (out, err):
            file.seek(0)
        return status, out.read(), err.read()


if __name__ == "__main__":
    print(json.dumps([launched(arguments) for arguments in json.load(sys.stdin)]))

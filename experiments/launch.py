"""Launch an experiment from a configuration file.

    python -m experiments.launch --config=experiments/configs/quickstart.py --workdir=runs/quickstart
    python -m experiments.launch --config=experiments/configs/quickstart.py:tiny \\
        --workdir=runs/tiny --config.model.layers=4

Trains, or resumes what is in the work folder, measures the dial, and writes a report, whose path is the
last line printed. A job of many processes (--hosts, see docs/tpu.md) only trains; `localist report` then measures it.

Exit status: 0 done; 75 stopped by SIGTERM and saved, start it again to go on; 1 an error, in one line; 2 one that not
all processes of the job have, or things that they were given and that differ, in one line too; anything else: the
process was killed, start it again to go on from the last whole checkpoint.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

from localist_jax import config
from localist_jax.errors import one_line
from localist_jax.parallel import hosts
from localist_jax.report.job import run_job

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with an optional :variant.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_HOSTS = flags.DEFINE_string("hosts", "", "Of many processes: auto, or ADDRESS:PORT,COUNT,INDEX.")
_FRESH = flags.DEFINE_bool("fresh", False, "Throw away an earlier run in the work folder.")


def _parse(argv: list[str]) -> list[str]:
    with one_line(AttributeError, KeyError, TypeError, flags.Error):
        rest = flags.FLAGS(argv)
        for name in ("config", "workdir"):
            if flags.FLAGS[name].value is None:
                raise ValueError(f"launch: --{name} is missing; see python -m experiments.launch --help")
        return rest


def _main(_: list[str]) -> None:
    command = shlex.join(["python", "-m", "experiments.launch", *sys.argv[1:]])
    with one_line():
        hosts.start(str(_HOSTS.value))
        settings = hosts.together(lambda: config.resolve(_CONFIG.value.to_dict()))
        done = run_job(settings, Path(str(_WORKDIR.value)), command=command, fresh=_FRESH.value)
        if hosts.is_first():
            print(done)


def main() -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    app.run(_main, flags_parser=_parse)


if __name__ == "__main__":
    main()

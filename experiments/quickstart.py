"""Make a pretrained LLM localist in minutes, on text that every machine has: `make quickstart`.

    python -m experiments.quickstart

It adopts SmolLM2-135M-Instruct, finds 128 semantic blocks in the reference prose of the running Python, opens 15 % of
the query–key pairs, measures the dial beside a plain window, and prints the path of its report. Where the model's
package is not installed, one line says so and a small model is trained from scratch instead.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from experiments.configs import quickstart as from_scratch
from localist_jax import config
from localist_jax.adopt import adopt, sources
from localist_jax.adopt.localise import localise, settings_of
from localist_jax.errors import one_line
from localist_jax.parallel.compilation import keep_programs
from localist_jax.report.job import measure, run_job

COMMAND = "make quickstart"
CONTEXT = 1024  # tokens of a row: half of the model's habit, a third of the time


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of the runs that it makes")
    with one_line():
        print(quickstart(parser.parse_args(argv).out))


def quickstart(out: Path) -> Path:
    """Make the runs anew; return the path of the report."""
    keep_programs()
    adopted, made = out / "smollm2", out / "smollm2-localist"
    for folder in (adopted, made):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        sources.located("smollm2")
    except ValueError as error:
        print(
            f"quickstart: {error}; a small model is trained from scratch instead", file=sys.stderr, flush=True
        )
        settings = config.resolve(from_scratch.get_config())
        return run_job(settings, out / "quickstart", command=COMMAND, fresh=True)
    print("quickstart: adopting SmolLM2-135M-Instruct", file=sys.stderr, flush=True)
    run = adopt("smollm2", adopted, context=CONTEXT, command=COMMAND)
    print("quickstart: finding blocks, filing and gates", file=sys.stderr, flush=True)
    return measure(localise(run, settings_of(run), made, command=COMMAND))


if __name__ == "__main__":
    main()

"""The adoption study: what a foreign model keeps when it is made localist, against the steps that takes.

    LOCALIST_DATA=… python -m experiments.localise

Pretrains a model on WikiText-2 and openstax, exports it, adopts the export as if it were foreign, localises it with
a frozen and with a lightly tuned trunk, and writes `adopt.md`, `.json` and a picture.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from localist_jax.errors import one_line


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("localise", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--pretrain", type=int, default=400, help="steps")
    parser.add_argument("--budgets", nargs="+", type=int, default=[40, 160], help="steps of localising")
    parser.add_argument("--workdir", type=Path, default=Path("runs/localise"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    arguments = parser.parse_args()
    with one_line():
        from experiments.localise import page
        from experiments.localise.study import Study, measured

        study = Study(arguments.workdir, arguments.pretrain, tuple(arguments.budgets))
        results = {seed: measured(study, seed) for seed in arguments.seeds}
        command = shlex.join(["python", "-m", "experiments.localise", *sys.argv[1:]])
        print(page.write(study, results, arguments.out, command))


if __name__ == "__main__":
    main()

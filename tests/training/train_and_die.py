"""A child process that trains and kills itself with SIGKILL: in the middle of training, or of a save.

python train_and_die.py WORKDIR SETTINGS_JSON training|save STEP
"""

import json
import os
import signal
import sys
from pathlib import Path

from localist_jax import config
from localist_jax.training import loop
from localist_jax.training.checkpoint import Checkpoints


def die():
    os.kill(os.getpid(), signal.SIGKILL)


class DieAt(loop.Hook):
    """A hook that kills the process at a step."""

    def __init__(self, every):
        self.every = every

    def __call__(self, step, state, batch):
        die()


def main(workdir, settings, where, step):
    hooks = [DieAt(step)] if where == "training" else []
    if where == "save":
        whole_save = Checkpoints.save

        def torn_save(self, at, *args, **kwargs):
            whole_save(self, at, *args, **kwargs)  # returns while the arrays are still being written
            if at == step:
                die()

        Checkpoints.save = torn_save
    loop.train(config.resolve(json.loads(settings)), Path(workdir), hooks=hooks)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))

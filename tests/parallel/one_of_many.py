"""A child process: one of several that train together over loopback. It may kill itself.

python one_of_many.py WORKDIR SETTINGS_JSON DEVICES HOSTS [training|save STEP]

HOSTS is that of `--hosts`, or empty; DEVICES are simulated by each process. At step 6 the model grows by a block, as
recruitment would make it, and at step 10 beyond its capacity. Exit status as of the launcher.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={sys.argv[3]}"
)

import jax
import jax.numpy as jnp

from localist_jax import config
from localist_jax.errors import one_line
from localist_jax.parallel import hosts
from localist_jax.recruitment import growth
from localist_jax.training import loop
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import boxed_state


class Grow(loop.Hook):
    """Splits block 2 at step 6, within the capacity."""

    every = 6

    def start(self, run, journal, step):
        self.run = run

    def __call__(self, step, state, batch):
        if step != self.every:
            return state
        width = self.run.settings.model.width
        birth = growth.Birth(
            child=jnp.int32(6), parent=jnp.int32(2), number=jnp.int32(1), share=jnp.float32(0.5),
            direction=0.1 * jnp.cos(jnp.arange(width, dtype=jnp.float32)),
        )  # fmt: skip
        boxed = boxed_state(self.run.model, self.run.settings)
        state, report = growth.grow(state, [birth], boxed, self.run.mesh)
        assert report.births == ((6, 2),)
        return state


def die(signal_=signal.SIGKILL):
    os.kill(os.getpid(), signal_)


class DieAt(loop.Hook):
    def __init__(self, every, signal_):
        self.every, self.signal = every, signal_

    def __call__(self, step, state, batch):
        if step == self.every:
            die(self.signal)
        return state


def main(workdir, settings, devices, where, doom="", step=0):
    hosts.start(where)
    hooks = [Grow()]
    if doom in ("killed", "terminated"):
        hooks.append(DieAt(int(step), signal.SIGKILL if doom == "killed" else signal.SIGTERM))
    if doom == "torn":
        whole_save = Checkpoints.save

        def torn_save(self, at, *args, **kwargs):
            whole_save(self, at, *args, **kwargs)  # returns while the arrays are still being written
            if at == int(step):
                die()

        Checkpoints.save = torn_save
    with one_line():
        run = loop.train(config.resolve(json.loads(settings)), Path(workdir), hooks=hooks)
        if hosts.is_first():
            print(json.dumps({"devices": len(jax.devices()), "local": jax.local_device_count(), "step": int(run.state.step)}))


if __name__ == "__main__":
    main(*sys.argv[1:])

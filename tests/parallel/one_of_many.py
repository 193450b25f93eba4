"""A child process: one of several that train together over loopback, run after run. It may kill itself.

python one_of_many.py SETTINGS_JSON DEVICES HOSTS RUN_JSON …

HOSTS is that of `--hosts`; DEVICES are simulated by each process. A run is {"workdir": …} and, if it ends badly,
{"doom": killed | terminated | torn, "step": …, "process": …}. At step 6 the model grows by a block, as recruitment
would make it. Exit status as of the launcher.
"""

import json
import os
import signal
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={sys.argv[2]}"
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
    """Splits block 2, within the capacity."""

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


class Signal(loop.Hook):
    """Sends this process a signal before a step."""

    def __init__(self, every, number):
        self.every, self.number = every, number

    def __call__(self, step, state, batch):
        if step == self.every:
            os.kill(os.getpid(), self.number)
        return state


WHOLE_SAVE = Checkpoints.save


def torn_at(step):
    """A save that starts, and kills the process while the arrays are still being written."""

    def save(self, at, *args, **kwargs):
        WHOLE_SAVE(self, at, *args, **kwargs)
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return save


def train(settings, workdir, doom="", step=0, process=0):
    hooks, mine = [Grow()], jax.process_index() == process
    if mine and doom in ("killed", "terminated"):
        hooks.append(Signal(step, signal.SIGKILL if doom == "killed" else signal.SIGTERM))
    Checkpoints.save = torn_at(step) if mine and doom == "torn" else WHOLE_SAVE
    run = loop.train(settings, Path(workdir), hooks=hooks)
    share = hosts.share(loop.rules.batch_sharding(run.mesh), settings.data.batch)
    split = run.state.params["localist"]["attention"]["query"].addressable_shards[0].data.size
    told = {
        "devices": jax.device_count(), "here": jax.local_device_count(), "share": share,
        "step": int(run.state.step), "blocks": int(run.state.blocks.active.sum()), "split": split,
    }  # fmt: skip
    (Path(workdir) / f"process_{jax.process_index()}.json").write_text(json.dumps(told))


def main(settings, _, where, *runs):
    hosts.start(where)
    with one_line():
        for run in runs:
            train(config.resolve(json.loads(settings)), **json.loads(run))


if __name__ == "__main__":
    main(*sys.argv[1:])

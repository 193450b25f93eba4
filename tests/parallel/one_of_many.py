"""A child process: one of several that train together over loopback, run after run. It may kill itself.

python one_of_many.py SETTINGS_JSON DEVICES HOSTS RUN_JSON …

HOSTS is that of `--hosts`; DEVICES are simulated by each process. A run is {"workdir": …} and, if it ends badly,
{"doom": killed | terminated | torn, "step": …, "process": …}; a block has its pilot in steps 3 and 4 and its trial in
steps 5 to 8, and at step 9 it is recruited. {"stream": folder} lets an ensemble recruit an LLM, with the tokenizer of
the run before, and {"consult": folder} asks it. "changes" are settings, and "environment" variables, that one process
alone has; what it says of them is told in the run's folder, and with "last" it ends there. Exit status as of the
launcher.
"""

import dataclasses
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
from localist_jax.recruitment.policy import Policy
from localist_jax.recruitment.recruiter import Recruiter
from localist_jax.training import loop
from localist_jax.training.checkpoint import Checkpoints

sys.path.insert(0, str(Path(__file__).parent))
import stream_of_many


class Persistent(Policy):
    """Tries whatever is proposed, up to the horizon."""

    def is_worth_a_trial(self, seen, proposal, placebos):
        return True

    def is_promising(self, pilot, candidates):
        return True

    def is_hopeless(self, llr_bits):
        return False


class Convinced(Recruiter):
    """A recruiter whose candidates get evidence as a gift."""

    def _decide(self, step, state, reason, said=None):
        evidence = self._trial.evidence
        given = dataclasses.replace(evidence, llr_bits=evidence.llr_bits + jnp.float32(1e4))
        self._trial = dataclasses.replace(self._trial, evidence=given)
        return super()._decide(step, state, reason, said)


class Signal(loop.Hook):
    """A hook that sends this process a signal before a step."""

    def __init__(self, every, number):
        self.every, self.number = every, number

    def __call__(self, step, state, batch):
        if step == self.every:
            os.kill(os.getpid(), self.number)
        return state


WHOLE_SAVE = Checkpoints.save


def torn_at(step):
    """Return a save that starts, and kills the process while arrays are still being written."""

    def save(self, at, *args, **kwargs):
        WHOLE_SAVE(self, at, *args, **kwargs)
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return save


def train(settings, workdir, doom="", step=0, process=0, changes=None, environment=None, last=False):
    if jax.process_index() == process:
        settings = settings.replace(**(changes or {}))
        os.environ.update(environment or {})
    try:
        return _train(settings, workdir, doom, step, process)
    except hosts.HostsDiffer as error:
        if last:
            raise
        told = Path(workdir).with_name(f"{Path(workdir).name}_{jax.process_index()}.txt")
        told.write_text(str(error))


def _train(settings, workdir, doom, step, process):
    hooks, mine = [Convinced(policy=Persistent())], jax.process_index() == process
    if mine and doom in ("killed", "terminated"):
        hooks.append(Signal(step, signal.SIGKILL if doom == "killed" else signal.SIGTERM))
    Checkpoints.save = torn_at(step) if mine and doom == "torn" else WHOLE_SAVE
    run = loop.train(settings, Path(workdir), hooks=hooks)
    share = hosts.share(loop.sharding.batch_sharding(run.mesh), settings.data.batch)
    split = run.state.params["localist"]["attention"]["query"].addressable_shards[0].data.size
    told = {
        "devices": jax.device_count(),
        "here": jax.local_device_count(),
        "share": share,
        "step": int(run.state.step),
        "blocks": int(run.state.blocks.active.sum()),
        "split": split,
    }
    (Path(workdir) / f"process_{jax.process_index()}.json").write_text(json.dumps(told))
    return run.tokenizer


def main(settings, _, where, *runs):
    hosts.start(where)
    settings, tokenizer = config.resolve(json.loads(settings)), None
    with one_line():
        for run in map(json.loads, runs):
            if "stream" in run:
                stream_of_many.recruit(settings, tokenizer, Path(run["stream"]))
            elif "consult" in run:
                stream_of_many.consult(settings, Path(run["consult"]))
            else:
                tokenizer = train(settings, **run)


if __name__ == "__main__":
    main(*sys.argv[1:])

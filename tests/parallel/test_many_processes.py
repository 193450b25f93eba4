"""Many processes for real, over loopback: they train as one, and what is killed goes on as if nothing had been.

Survivors of a killed process would wait for JAX's heartbeat; here, as a cluster would, the test ends them at once.
"""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from localist_jax import config
from localist_jax.training import journal
from localist_jax.training.checkpoint import Checkpoints

SCRIPT = Path(__file__).with_name("one_of_many.py")
TIMING = ("time", "tokens_per_second")
SHARDED = config.Mesh(data=1, fsdp=2, tensor=2)  # two processes of two devices: parameters lie across both


@pytest.fixture(scope="module")
def settings(tiny_settings):
    return tiny_settings.replace(
        model={"layers": 2}, optimizer={"kind": "adamw"}, train={"eval_every": 12, "save_every": 4}
    )


def launch(settings, mesh, processes, devices, *runs):
    """Starts the processes, waits, and ends all when one has died; their exit statuses and standard errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = json.dumps({**settings.to_dict(), "mesh": mesh.__dict__})
    children = [
        subprocess.Popen(
            [sys.executable, SCRIPT, text, str(devices), f"127.0.0.1:{port},{processes},{i}", *map(json.dumps, runs)],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for i in range(processes)
    ]  # fmt: skip
    try:
        while all(child.poll() in (None, 0, 75) for child in children) and None in [
            c.poll() for c in children
        ]:
            time.sleep(0.1)
        time.sleep(0.5)
    finally:
        for child in children:
            child.kill()
    errors = [child.communicate()[1] for child in children]
    return [child.returncode for child in children], "\n".join(errors)


def curve(workdir):
    return [{k: v for k, v in r.items() if k not in TIMING} for r in journal.read(workdir / "metrics.jsonl")]


def losses(workdir):
    return [r["bits_per_token"] for r in curve(workdir) if r["kind"] == "train"]


def saved(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps()


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """A run of two processes to its end; then another, of which one process is killed in the middle of step 7."""
    folder = tmp_path_factory.mktemp("many")
    whole, killed = folder / "whole", folder / "killed"
    doomed = {"workdir": str(killed), "doom": "killed", "step": 7, "process": 1}
    statuses, errors = launch(settings, SHARDED, 2, 2, {"workdir": str(whole)}, doomed)
    assert statuses[1] == -9, errors[-3000:]
    return whole, killed


def test_two_processes_train_as_one_and_grow(trained, settings):
    whole, _ = trained
    told = [json.loads((whole / f"process_{i}.json").read_text()) for i in range(2)]
    for i, one in enumerate(told):
        assert (one["devices"], one["here"], one["step"]) == (4, 2, 12)
        assert one["share"] == [i, 2]
        assert one["blocks"] == settings.model.blocks + 1
        assert one["split"] == settings.model.width * settings.model.heads * settings.model.head_size // 4
    assert len(losses(whole)) == 12
    assert losses(whole)[-1] < losses(whole)[0]


def test_a_killed_process_costs_nothing_but_time(trained, settings):
    whole, killed = trained
    assert saved(killed) == [4]
    statuses, errors = launch(settings, SHARDED, 2, 2, {"workdir": str(killed)})
    assert statuses == [0, 0], errors[-3000:]
    assert curve(killed)[:4] == curve(whole)[:4]
    for one, other in zip(curve(killed), curve(whole), strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-5), "float32 rounding, after it was compiled anew"


@pytest.mark.slow
def test_a_torn_save_is_not_there_and_others_take_over_on_another_mesh(trained, settings, tmp_path):
    whole, _ = trained
    doomed = {"workdir": str(tmp_path), "doom": "torn", "step": 8, "process": 1}
    statuses, errors = launch(settings, SHARDED, 2, 2, doomed)
    assert statuses[1] == -9, errors[-3000:]
    assert saved(tmp_path) == [4]
    statuses, errors = launch(settings, config.Mesh(data=4), 4, 1, {"workdir": str(tmp_path)})
    assert statuses == [0] * 4, errors[-3000:]
    assert losses(tmp_path)[:4] == losses(whole)[:4]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    assert [json.loads((tmp_path / f"process_{i}.json").read_text())["share"] for i in range(4)] == [
        [i, 4] for i in range(4)
    ]


@pytest.mark.slow
def test_sigterm_at_one_process_saves_and_stops_all_at_the_same_step(trained, settings, tmp_path):
    whole, _ = trained
    doomed = {"workdir": str(tmp_path), "doom": "terminated", "step": 6, "process": 1}
    statuses, errors = launch(settings, SHARDED, 2, 2, doomed)
    assert statuses == [75, 75], errors[-3000:]
    last = saved(tmp_path)[-1]
    assert 6 <= last < 12, "the step at which all of them heard of it"
    assert f"stopped by SIGTERM after step {last}" in errors
    statuses, errors = launch(settings, SHARDED, 2, 2, {"workdir": str(tmp_path)})
    assert statuses == [0, 0], errors[-3000:]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-5)

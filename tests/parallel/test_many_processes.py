"""Many processes for real, over loopback: they train and recruit as one, and what is killed goes on as if nothing had
been.

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
from localist_jax.hierarchy.recruiter import FILE
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.recruitment import record
from localist_jax.training import journal
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import Run
from tests.parallel import stream_of_many

SCRIPT = Path(__file__).with_name("one_of_many.py")
TIMING = ("time", "tokens_per_second")
TRIAL = {"every": 20, "start": 0.0, "stop": 1.0, "horizon": 4, "candidates": 1, "placebos": 2, "survey": 2}
SHARDED = config.Mesh(
    data=1, fsdp=2, tensor=2
)  # two processes with two devices: parameters are split over both


@pytest.fixture(scope="module")
def settings(tiny_settings):
    return tiny_settings.replace(
        data={"batch": 8},
        model={"layers": 2, "generations": 2},
        optimizer={"kind": "adamw"},
        recruitment=TRIAL,
        train={"eval_every": 12, "save_every": 4},
    )


def launch(settings, mesh, processes, devices, *runs):
    """Run the processes, ending all when one dies; return their exit statuses and standard errors."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    text = json.dumps({**settings.to_dict(), "mesh": mesh.__dict__})
    children = [
        subprocess.Popen(
            [
                sys.executable,
                SCRIPT,
                text,
                str(devices),
                f"127.0.0.1:{port},{processes},{i}",
                *map(json.dumps, runs),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    try:
        while all(child.poll() in (None, 0, 2, 75) for child in children) and None in [
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


def decided(workdir):
    """Return the recruiter's record, without fields that may differ in the last digits or in time."""
    found = journal.read(workdir / record.FILE)
    return [{k: v for k, v in r.items() if not isinstance(v, float | list)} for r in found]


def told(workdir, processes=2):
    return [json.loads((workdir / f"process_{i}.json").read_text()) for i in range(processes)]


def saved(workdir):
    with Checkpoints(workdir / "checkpoints") as checkpoints:
        return checkpoints.steps()


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """Run two processes: a complete run, a stream with an ensemble, and a run that is killed during step 7."""
    folder = tmp_path_factory.mktemp("many")
    whole, stream, killed = folder / "whole", folder / "stream", folder / "killed"
    doomed = {"workdir": str(killed), "doom": "killed", "step": 7, "process": 1}
    runs = {"workdir": str(whole)}, {"stream": str(stream)}, doomed
    statuses, errors = launch(settings, SHARDED, 2, 2, *runs)
    assert statuses[1] == -9, errors[-3000:]
    return whole, stream, killed


def test_two_processes_train_as_one_and_recruit_a_block(trained, settings):
    whole, _, _ = trained
    kinds = [r["kind"] for r in decided(whole)]
    assert kinds[:3] == ["promising", "recruited", "born"]
    for i, one in enumerate(told(whole)):
        assert (one["devices"], one["here"], one["step"]) == (4, 2, 12)
        assert one["share"] == [i, 2]
        assert one["blocks"] == settings.model.blocks + 1 - kinds.count("retired")
        assert one["split"] == settings.model.width * settings.model.heads * settings.model.head_size // 4
    assert len(losses(whole)) == 12
    assert losses(whole)[-1] < losses(whole)[0]
    (born,) = [r for r in decided(whole) if r["kind"] == "born"]
    alone = Run.open(whole).state.blocks  # by one process, on one device
    assert int(alone.parent[born["block"]]) == born["parent"]
    assert int(alone.active.sum()) == told(whole)[0]["blocks"]


def test_two_processes_recruit_a_specialist_and_one_finds_it(trained, settings):
    _, stream, _ = trained
    one, other = told(stream)
    assert one == other
    assert one["names"] == ["base", "llm1"]
    assert [r["kind"] for r in journal.read(stream / FILE)] == ["opened", "recruited"]
    stream_of_many.consult(settings, stream)  # on one device
    alone, _ = told(stream)
    assert (alone["names"], alone["members"]) == (one["names"], one["members"])
    np.testing.assert_allclose(alone["bits"], one["bits"], rtol=1e-4)
    tables = np.asarray(EnsembleRun.open(stream).ensemble.states.params["embedding"])
    assert not np.array_equal(tables[0], tables[1]), "each has learned from its own documents"


@pytest.mark.slow
def test_a_killed_process_costs_nothing_but_time(trained, settings):
    """Check a run whose last checkpoint is at the end of the block's pilot."""
    whole, _, killed = trained
    assert saved(killed) == [4]
    statuses, errors = launch(settings, SHARDED, 2, 2, {"workdir": str(killed)})
    assert statuses == [0, 0], errors[-3000:]
    assert curve(killed)[:4] == curve(whole)[:4]
    for one, other in zip(curve(killed), curve(whole), strict=True):
        assert one.pop("kind") == other.pop("kind")
        assert one == pytest.approx(other, rel=1e-5), "float32 rounding, after it was compiled anew"
    assert decided(killed) == decided(whole)


def test_processes_that_were_given_different_things_say_so_and_build_nothing(settings, tmp_path):
    for root, text in (("left", "the cat sat on the mat"), ("right", "a dog lay on the rug")):
        (tmp_path / root / "mine").mkdir(parents=True)
        (tmp_path / root / "mine" / "a.txt").write_text(f"{text} and said so\n" * 200)
    mine = settings.replace(data={"corpus": "mine", "vocab_size": 300}, recruitment={"every": 0})
    cases = {
        "seed": {"changes": {"train": {"seed": 7}}},
        "text": {"environment": {"LOCALIST_DATA": str(tmp_path / "right")}},
        "nowhere": {"environment": {"LOCALIST_DATA": str(tmp_path / "nowhere")}},
        "again": {"changes": {"model": {"width": 64}}, "last": True},
    }
    runs = [{"workdir": str(tmp_path / name), "process": 1, **case} for name, case in cases.items()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALIST_DATA", str(tmp_path / "left"))
        statuses, errors = launch(mine, config.Mesh(data=2), 2, 1, *runs)
    assert statuses == [2, 2], errors[-3000:]
    told = {
        name: {(tmp_path / f"{name}_{i}.txt").read_text() for i in range(2)}
        for name in ("seed", "text", "nowhere")
    }
    assert told["seed"] == {
        "config.train.seed: process 1 has 7, process 0 has 0; give all processes the same value, "
        "and start the job again"
    }
    (text,), (nowhere,) = told["text"], told["nowhere"]
    assert text.startswith("data.text: process 1 has ")
    assert nowhere.startswith("process 1: config.data.corpus: no corpus, file or folder 'mine'")
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 2
    assert all("config.model.width: process 1 has 64, process 0 has 32" in line for line in said)
    assert not list(tmp_path.glob("*/checkpoints")), "nothing was built"
    assert not list(tmp_path.glob("*/config.json"))


@pytest.mark.slow
def test_a_torn_save_is_not_there_and_others_take_over_on_another_mesh(trained, settings, tmp_path):
    whole, stream, _ = trained
    doomed = {"workdir": str(tmp_path), "doom": "torn", "step": 8, "process": 1}
    statuses, errors = launch(settings, SHARDED, 2, 2, doomed)
    assert statuses[1] == -9, errors[-3000:]
    assert saved(tmp_path) == [4]
    before = told(stream)[1]
    runs = {"workdir": str(tmp_path)}, {"consult": str(stream)}
    statuses, errors = launch(settings, config.Mesh(data=4), 4, 1, *runs)
    assert statuses == [0] * 4, errors[-3000:]
    assert losses(tmp_path)[:4] == losses(whole)[:4]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-4)
    assert [one["share"] for one in told(tmp_path, 4)] == [[i, 4] for i in range(4)]
    assert decided(tmp_path) == decided(whole)
    for one in told(stream, 4):
        assert (one["names"], one["members"]) == (before["names"], before["members"])
        np.testing.assert_allclose(one["bits"], before["bits"], rtol=1e-4)


@pytest.mark.slow
def test_sigterm_at_one_process_saves_and_stops_all_at_the_same_step(trained, settings, tmp_path):
    whole, _, _ = trained
    doomed = {"workdir": str(tmp_path), "doom": "terminated", "step": 6, "process": 1}
    statuses, errors = launch(settings, SHARDED, 2, 2, doomed)
    assert statuses == [75, 75], errors[-3000:]
    last = saved(tmp_path)[-1]
    assert 6 <= last < 12, "the step at which all of them heard of it"
    assert f"stopped by SIGTERM after step {last}" in errors
    statuses, errors = launch(settings, SHARDED, 2, 2, {"workdir": str(tmp_path)})
    assert statuses == [0, 0], errors[-3000:]
    np.testing.assert_allclose(losses(tmp_path), losses(whole), rtol=1e-5)

"""The launch scripts: what they start again and what not, and which commands they would give."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
COUNTING = """
n=$(cat {0} 2>/dev/null || echo 0); echo $((n + 1)) > {0}
set -- {1}; shift $n; exit ${{1:-0}}
"""


def until_done(tmp_path, statuses, **environment):
    """Runs a command that ends with one status after the other; the script's own status and the number of starts."""
    counter = tmp_path / "starts"
    command = ["bash", "-c", COUNTING.format(counter, " ".join(map(str, statuses)))]
    done = subprocess.run(
        [LAUNCH / "until_done.sh", *command], capture_output=True, timeout=60,
        env={**os.environ, "PAUSE": "0", **environment},
    )  # fmt: skip
    return done.returncode, int(counter.read_text())


@pytest.mark.parametrize(
    ("statuses", "status", "starts"),
    [
        ([0], 0, 1),
        ([75, 0], 0, 2),  # saved at SIGTERM
        ([134, 137, 75, 0], 0, 4),  # aborted, killed
        ([1], 1, 1),  # an error stays one
        ([75, 1, 0], 1, 2),
    ],
)
def test_what_can_go_on_is_started_again(tmp_path, statuses, status, starts):
    assert until_done(tmp_path, statuses) == (status, starts)


def test_starts_are_bounded(tmp_path):
    assert until_done(tmp_path, [137] * 9, ATTEMPTS="3") == (137, 3)


def test_sigterm_is_handed_on_and_ends_it(tmp_path):
    ready = tmp_path / "ready"
    command = f"trap 'sleep 0.3; exit 75' TERM; touch {ready}; while :; do sleep 0.05; done"
    script = subprocess.Popen([LAUNCH / "until_done.sh", "bash", "-c", command])
    while not ready.exists():
        time.sleep(0.02)
    script.send_signal(signal.SIGTERM)
    assert script.wait(timeout=30) == 75


@pytest.mark.parametrize("name", ["until_done.sh", "tpu.sh", "slurm.sbatch"])
def test_scripts_parse(name):
    subprocess.run(["bash", "-n", LAUNCH / name], check=True)


@pytest.fixture
def gcloud(tmp_path):
    """A `gcloud` that writes down how it was called."""
    fake = tmp_path / "bin" / "gcloud"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho ACTIVE\n')
    fake.chmod(0o755)

    def call(*arguments, **environment):
        done = subprocess.run(
            [LAUNCH / "tpu.sh", *arguments], capture_output=True, text=True, timeout=60,
            env={"PATH": f"{fake.parent}:{os.environ['PATH']}", "NAME": "pod", "ZONE": "z1", **environment},
        )  # fmt: skip
        calls = tmp_path / "calls"
        return done, sorted(calls.read_text().splitlines()) if calls.exists() else []

    return call


@pytest.mark.parametrize(
    ("kind", "image"),
    [("v5litepod-256", "v2-alpha-tpuv5-lite"), ("v5p-512", "v2-alpha-tpuv5"), ("v6e-256", "v2-alpha-tpuv6e")],
)
def test_a_slice_is_requested(gcloud, kind, image):
    done, calls = gcloud("request", TYPE=kind, SPOT="yes")
    assert done.returncode == 0, done.stderr
    assert calls == [
        f"compute tpus queued-resources create pod --zone=z1 --accelerator-type={kind} --runtime-version={image} "
        "--node-id=pod --spot"
    ]


def test_several_slices_are_requested_waited_for_and_started_together(gcloud):
    several = {"SLICES": "2", "WORKDIR": "/nfs/run", "CONFIG": "c.py"}
    assert "--node-count=2 --node-prefix=pod" in gcloud("request", **several)[1][0]
    assert gcloud("wait", **several)[0].returncode == 0
    done, calls = gcloud("train", "--config.mesh.slice=2", **several)
    assert done.returncode == 0, done.stderr
    started = [call for call in calls if "experiments.launch" in call or "tpu-vm ssh" in call]
    assert [call.split("ssh ")[1].split()[0] for call in started] == ["pod-0", "pod-1"]
    text = "\n".join(calls)
    assert text.count("--hosts=auto --config=c.py --workdir=/nfs/run") == 2
    assert text.count("--config.mesh.slice=2") == 2


@pytest.mark.parametrize(
    ("arguments", "environment", "status"),
    [((), {}, 2), (("request",), {"TYPE": "v2-8"}, 1), (("train",), {}, 1), (("request",), {"NAME": ""}, 1)],
)
def test_what_is_missing_is_said_before_anything_is_called(gcloud, arguments, environment, status):
    done, calls = gcloud(*arguments, **environment)
    assert done.returncode == status
    assert done.stderr
    assert not calls

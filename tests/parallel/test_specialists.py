"""Specialists side by side in one program, and its ahead-of-time compilation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from localist_jax.parallel import ahead


@pytest.fixture(scope="module")
def seen(tiny_settings):
    settings = tiny_settings.replace(
        model={"layers": 2},
        optimizer={"kind": "adamw"},
        mesh={"specialist": 2, "data": 1, "fsdp": 2, "tensor": 2},
    )
    script = Path(__file__).with_name("specialists_on_eight_devices.py")
    child = subprocess.run(
        [sys.executable, script, json.dumps(settings.to_dict())], capture_output=True, text=True, timeout=500
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_nothing_is_told_from_one_specialist_to_another(seen):
    assert seen["between"] == 0
    assert seen["figures"]["collectives"] > 0  # within a specialist there are some


def test_a_specialist_does_not_depend_on_the_others(seen):
    (first, second), (again, other) = seen["losses"]
    assert first == again
    assert second != other
    assert seen["first is the same"]
    assert not seen["second is the same"]


def test_what_was_compiled_is_told_per_device(seen, tiny_settings):
    figures = seen["figures"]
    assert figures["fits"]
    assert figures["error"] is None
    assert (figures["devices"], figures["mesh"]["specialist"]) == (8, 2)
    assert figures["tokens"] == 2 * tiny_settings.data.batch * tiny_settings.data.context
    # Three float32 copies of the parameters, which are split over four devices or replicated, and the batch.
    assert 3 * 4 * figures["parameters"] / 4 < figures["argument_bytes"] < 3 * 4 * figures["parameters"]
    assert figures["flops"] > figures["model_flops"] / 2 > 0
    assert figures["collective_bytes"]["all-reduce"] > 0
    assert "capacity_bytes" not in figures  # simulated devices have no published capacity


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ("v9x:2x2", "unknown kind of TPU 'v9x'; known: v5e, v5p, v6e, and cpu"),
        ("cpu:5", r"cpu:5: found 1 device\(s\); set XLA_FLAGS"),
    ],
)
def test_unknown_topologies_are_refused(topology, words):
    with pytest.raises(ValueError, match=words):
        ahead.devices(topology)

"""Specialists on eight simulated devices: each on its own slice, and nothing between them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from localist_jax.hierarchy.parallel import mesh_of, placed

pytestmark = pytest.mark.slow  # a process of its own, and two compilations in it


@pytest.fixture(scope="module")
def seen(house_settings):
    script = Path(__file__).with_name("on_eight_devices.py")
    arguments = [sys.executable, str(script), json.dumps(house_settings.to_dict())]
    child = subprocess.run(arguments, capture_output=True, text=True, timeout=500)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_training_in_parallel_has_no_collectives(seen):
    assert seen["devices"] == 8
    assert seen["a sharded sum has some"], "the search would not have found any"
    assert seen["collectives"] == []


def test_each_specialist_lives_on_its_own_slice(seen):
    assert seen["slices"] == [[i, i] for i in range(8)]


def test_each_learns_from_its_own_batch_as_if_alone(seen):
    assert seen["moved"] == [i != 3 for i in range(8)]
    assert seen["who does not learn is bit-identical"]
    assert seen["as alone"] < 1e-4


def test_slices_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="3 slices do not divide 1 device"):
        mesh_of(3, jax.devices()[:1])
    mesh = jax.sharding.AbstractMesh((2, 1), ("specialist", "data"))
    with pytest.raises(ValueError, match="2 slices do not divide 3 specialists"):
        placed(jnp.ones(3), mesh)

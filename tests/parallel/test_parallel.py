"""Meshes and logical axes: equal losses on 1 and 8 devices, real shards, checkpoints across meshes, errors."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import config
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.parallel.sharding import AXIS_SHARDING, state_shardings
from localist_jax.training.run import abstract_state

# Another mesh sums in another order; five optimizer steps amplify the rounding of float32.
TOLERANCE = 2e-4  # relative, bits per token


@pytest.fixture(scope="module")
def seen(tiny_settings, tmp_path_factory):
    settings = tiny_settings.replace(data={"batch": 8})
    script = Path(__file__).with_name("on_eight_devices.py")
    arguments = [str(tmp_path_factory.mktemp("eight")), json.dumps(settings.to_dict())]
    child = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=500
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


def test_losses_do_not_depend_on_the_mesh(seen):
    assert seen["devices"] == 8
    alone = seen["losses"]["1"]
    assert len(set(alone)) == len(alone)
    np.testing.assert_allclose(seen["losses"]["all"], alone, rtol=TOLERANCE)


def test_parameters_are_really_split(seen):
    shards = seen["shards"]["all"]  # fsdp splits the width, tensor the rest
    for name in (
        "embedding",
        "localist/attention/query",
        "localist/units/in",
        "localist/feed_forward/up",
        "perception/attention/out",
    ):
        assert shards[name] == 4, name
    assert shards["localist/attention/gates"] == 2
    assert shards["router/kernel"] == 2
    assert set(seen["shards"]["1"].values()) == {1}


@pytest.mark.parametrize(("saved", "read"), [("all", "1"), ("1", "all")])
def test_checkpoints_travel_between_meshes(seen, saved, read):
    assert seen[f"{saved} read on {read}"]
    assert seen[f"shardings of {read}"]


def test_sharded_parameters_generate_the_same_text(seen):
    alone, sharded = seen["generated"]
    assert alone == sharded
    assert all(len(tokens) == 6 for tokens in alone)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"data": 3, "tensor": 1}, "data=3, fsdp=1, tensor=1 does not fit 1 device"),
        ({"data": -1, "tensor": 2}, "does not fit 1 device"),
        ({"data": -1, "tensor": -1}, "only one axis may be -1, got data, tensor"),
    ],
)
def test_meshes_that_do_not_fit_are_refused(sizes, words):
    with pytest.raises(ValueError, match=words):
        make_mesh(config.Mesh(**sizes), jax.devices()[:1])


def abstract_mesh(**sizes):
    return jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes))


def test_a_size_that_does_not_divide_is_named(small):
    model = Transformer(dataclasses.replace(small, heads=3, kv_heads=3), 60)
    with pytest.raises(
        ValueError,
        match=r"axis 'kv_heads' of .* has size 3, which 2 shards of mesh axis 'tensor' do not divide",
    ):
        abstract_state(model, config.Config(model=model.config), abstract_mesh(data=1, tensor=2))


def test_an_axis_without_a_rule_is_named():
    box = {"w": nn.LogicallyPartitioned(jnp.zeros((2, 2)), ("embed", "colour"))}
    with pytest.raises(ValueError, match="w has the axis 'colour', which is not in"):
        state_shardings(box, make_mesh(config.Mesh(), jax.devices()[:1]))


def test_no_axis_is_mapped_twice():
    names = [name for name, _ in AXIS_SHARDING]
    assert len(set(names)) == len(names)

"""Configuration: one place for defaults, unknown keys and values out of range named in one line."""

import dataclasses

import pytest

from localist_jax import config
from localist_jax.config import Config, default, resolve


def test_defaults_survive_the_round_trip():
    assert resolve(default()) == Config()
    assert resolve({}) == Config()
    assert resolve(Config().to_dict()) == Config()


def test_changes_are_taken_and_integers_become_floats():
    found = resolve({"optimizer": {"learning_rate": 1}, "model": {"layers": 6}})
    assert found.optimizer.learning_rate == 1.0
    assert isinstance(found.optimizer.learning_rate, float)
    assert found == Config().replace(optimizer={"learning_rate": 1.0}, model={"layers": 6})


def test_the_default_is_locked():
    with pytest.raises((KeyError, AttributeError)):
        default().model.layerz = 3


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ({"modle": {}}, "config.modle: unknown key; did you mean 'model'"),
        ({"model": {"layer": 3}}, "config.model.layer: unknown key; did you mean 'layers'"),
        ({"model": {"xyzzy": 3}}, "config.model.xyzzy: unknown key; known keys: layers, "),
        ({"model": 3}, "config.model: expected a section with keys, got 3"),
        ({"model": {"layers": "six"}}, "config.model.layers: expected int, got 'six'"),
        ({"model": {"layers": 2.5}}, "config.model.layers: expected int, got 2.5"),
        ({"model": {"qk_norm": 1}}, "config.model.qk_norm: expected bool"),
        ({"model": {"layers": True}}, "config.model.layers: expected int, got True"),
        ({"model": {"layers": 0}}, "config.model.layers: expected at least 1"),
        ({"model": {"router_layer": 4}}, "config.model.router_layer"),
        ({"model": {"kv_heads": 4}}, "config.model.kv_heads: expected a divisor of heads = 6"),
        ({"model": {"head_size": 7}}, "head_size: expected an even number"),
        ({"model": {"blocks": 99}}, "config.model.blocks: expected 2 … block_capacity = 16"),
        ({"model": {"dtype": "float16"}}, "bfloat16, float32 or"),
        ({"data": {"vocab_size": 100}}, "config.data.vocab_size: expected at least 260"),
        ({"dial": {"mode": "all"}}, "config.dial.mode: expected any, fixed or schedule"),
        ({"dial": {"locality": 1.5}}, r"config.dial.locality: expected λ in \[0, 1\], got 1.5"),
        ({"dial": {"share_localist": 0.9}}, "shares with a sum"),
        ({"gates": {"gate_bits": 5.0}}, "exactly one of open_share_target and gate_bits"),
        ({"gates": {"open_share_target": 0.0}}, "exactly one of"),
        ({"train": {"steps": 0}}, "config.train.steps: expected at least 1"),
        ({"mesh": {"tensor": 0}}, "config.mesh.tensor"),
    ],
)
def test_what_does_not_fit_is_named(raw, words):
    with pytest.raises(ValueError, match=words) as error:
        resolve(raw)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("section", [field.name for field in dataclasses.fields(Config)])
def test_settings_cannot_be_changed_in_place(section):
    part = getattr(Config(), section)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(part, dataclasses.fields(part)[0].name, 1)


def test_every_field_is_explained_or_plain():
    """Every default stands in `config` and nowhere else: the sections cover each other's names once."""
    assert [f.name for f in dataclasses.fields(config.Config)] == [
        "data", "model", "dial", "gates", "router", "optimizer", "recruitment", "hierarchy", "train",
        "mesh",
    ]  # fmt: skip

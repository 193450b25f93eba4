"""Configuration: defaults in one place; errors name unknown keys and values out of range in one line."""

import dataclasses
import math

import pytest

from localist_jax import config, ranges
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
        ({"model": {"layers": 1}}, "config.model.layers: expected at least 2"),
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


SECTIONS = {
    **{name: getattr(Config(), name) for name in Config().to_dict()},
    "model.rope_scaling": config.RopeScaling(),
}
NUMBERS = [
    (section, name)
    for section, part in SECTIONS.items()
    for name, value in vars(part).items()
    if type(value) in (int, float)
]
# Fields for which 0 is an ordinary value, which their description does not mention.
PLAIN = {
    "dial.locality", "dial.share_distributed", "dial.share_localist", "gates.open_at_least",
    "train.seed",
}  # fmt: skip
WITH_ZERO = PLAIN | {
    "data.valid_rows", "model.block_units", "model.neighbours", "model.perception_window", "model.router_cells",
    "model.delta_rank", "model.unturned_every",
    "dial.power", "gates.gate_bits", "gates.flat_tolerance", "gates.settle", "router.noise", "router.usage_floor",
    "router.usage_weight", "router.doubt_weight", "router.switching_weight", "optimizer.warmup", "optimizer.final",
    "optimizer.weight_decay", "optimizer.b1", "optimizer.b2", "optimizer.unit_price", "optimizer.trunk",
    "recruitment.every", "recruitment.start", "recruitment.bits_per_parameter", "hierarchy.batches",
    "hierarchy.every", "hierarchy.start", "hierarchy.bits_per_parameter", "train.eval_every",
}  # fmt: skip


def raw_of(section, name, value):
    outer, _, inner = section.partition(".")
    return {outer: {inner: {name: value}} if inner else {name: value}}


def refusal(raw):
    """Return the error message of a configuration; "" if it is valid."""
    try:
        resolve(raw)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("section", "name"), NUMBERS, ids=lambda x: str(x))
def test_every_number_has_a_range(section, name):
    """Check that −1, 0, NaN, ∞ and huge values are refused in one line that names the field, or have a meaning."""
    about = dict(ranges.described(SECTIONS[section]))[name]
    values = (-1, 0, math.nan, math.inf, -math.inf, 10**30, 1e300, 10**5000)
    refused = {value: refusal(raw_of(section, name, value)) for value in values}
    for said in filter(None, refused.values()):
        assert said.startswith(f"config.{section}")
        assert name in said
        assert "\n" not in said
        assert len(said) < 250
    accepted = {value for value, said in refused.items() if not said}
    where = f"{section}.{name}"
    assert (0 in accepted) == (where in WITH_ZERO)
    assert (-1 in accepted) == (section == "mesh")
    assert accepted <= {0, -1}
    if 0 in accepted:
        assert "0" in about.about or where in PLAIN, "a 0 that switches something off is said to"


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_is_declared_with_what_it_is(section):
    part = SECTIONS[section]
    declared = dict(ranges.described(part))
    assert set(declared) == {
        name for name, value in vars(part).items() if not dataclasses.is_dataclass(value)
    }
    for name, range_ in declared.items():
        assert range_.about
        assert range_.is_number == ((section, name) in NUMBERS)
        assert range_.holds(getattr(part, name))


def test_costs_and_phases_are_checked_wherever_they_stand():
    for section in ("recruitment", "hierarchy"):
        with pytest.raises(
            ValueError, match=rf"config\.{section}\.cost: expected prequential, bic or fixed, got 'x'"
        ):
            resolve({section: {"cost": "x"}})
        with pytest.raises(ValueError, match=rf"config\.{section}\.bits_per_parameter: expected above 0 for"):
            resolve({section: {"cost": "fixed"}})
    with pytest.raises(ValueError, match=r"config\.recruitment\.start: expected start ≤ stop"):
        resolve({"recruitment": {"stop": 0.0}})


def test_every_field_is_explained_or_plain():
    """Check the list of sections."""
    assert [f.name for f in dataclasses.fields(config.Config)] == [
        "data", "model", "dial", "gates", "router", "optimizer", "recruitment", "hierarchy", "train",
        "mesh",
    ]  # fmt: skip

"""Fingerprints: a changed bit always changes them, positions matter, meshes do not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.training.fingerprint import fingerprints

DTYPES = ("float32", "bfloat16", "int32", "uint32", "bool", "int8")


@pytest.fixture(scope="module")
def tree():
    draw = np.random.default_rng(0)
    return {name: jnp.asarray(draw.integers(0, 2, (4, 6)), name) for name in DTYPES}


def test_each_leaf_has_its_own_by_path(tree):
    found = fingerprints({"a": tree})
    assert set(found) == {f"a/{name}" for name in DTYPES}
    assert all(0 <= word < 2**32 for sums in found.values() for word in sums)
    assert found == fingerprints({"a": tree})


@pytest.mark.parametrize("name", DTYPES)
def test_one_flipped_bit_changes_both_sums_of_its_leaf_alone(tree, name):
    before = fingerprints(tree)
    for place in (0, 7, 23):
        raw = np.array(tree[name])
        flat = raw.view(np.uint8).reshape(-1)
        flat[place * raw.itemsize] ^= 1
        after = fingerprints({**tree, name: jnp.asarray(raw)})
        assert {leaf for leaf in before if before[leaf] != after[leaf]} == {name}
        assert all(a != b for a, b in zip(before[name], after[name], strict=True))


def test_values_that_changed_places_are_noticed(tree):
    x = jnp.arange(24, dtype=jnp.float32).reshape(4, 6)
    wanted = fingerprints({"x": x})
    assert wanted != fingerprints({"x": x[::-1]})
    assert wanted != fingerprints({"x": x[:, ::-1]})


def test_minus_zero_and_nan_have_bits_of_their_own():
    zero, minus, nan = (fingerprints({"x": jnp.full((3,), x)})["x"] for x in (0.0, -0.0, np.nan))
    assert zero != minus != nan
    assert jax.device_get(jnp.isnan(jnp.full((3,), np.nan))).all()

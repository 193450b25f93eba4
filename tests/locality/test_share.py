"""Shifts give exact shares whatever the logits; impossible shares raise an error or change nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import bits
from localist_jax.locality import share

SHARES = (0.05, 0.5, 0.999)


def logits_and_sets(seed, scale, sets=2, keys=10):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=keys) * scale, jnp.float32), jnp.asarray(np.arange(keys) % (sets + 1))


def lse(logits, keys):
    return jax.nn.logsumexp(jnp.where(keys, logits, -jnp.inf))


@pytest.mark.parametrize("phi", SHARES)
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0])
def test_the_mass_is_the_share_or_what_it_was(phi, scale):
    s, label = logits_and_sets(1, scale)
    T = label == 1
    before = float(jnp.where(T, jax.nn.softmax(s), 0).sum())
    b = share.shift_of_lse(lse(s, T), lse(s, ~T), phi)
    after = float(jnp.where(T, jax.nn.softmax(s + b * T), 0).sum())
    assert after == pytest.approx(max(phi, before), abs=2e-6 * (1 + scale))
    assert (float(b) == 0) == (phi <= before)


@pytest.mark.parametrize("phi", SHARES)
def test_from_masses_and_from_logits_agree(phi):
    m = jnp.array([0.01, 0.3, 0.9])
    np.testing.assert_allclose(
        share.shift(m, phi), share.shift_of_lse(jnp.log(m), jnp.log1p(-m), phi), rtol=1e-6
    )
    each = jnp.array([[0.1, 0.2], [0.3, 0.01]])
    wanted = jnp.array([0.5, 0.3])
    logs = jnp.log(each), jnp.log1p(-each.sum(-1))
    np.testing.assert_allclose(
        share.shifts(each, wanted), share.shifts_of_lse(*logs, wanted), rtol=1e-5, atol=1e-6
    )


def test_masses_that_a_float_cannot_hold_are_raised_all_the_same():
    """Check m = e^−1000, which is 0 in any float, though its shift is not."""
    b = share.shift_of_lse(jnp.array(-1000.0), jnp.array(0.0), 0.5)
    assert float(b) == 1000.0
    assert float(share.shift(jnp.array(0.0), 0.5)) == 0.0


def test_several_sets_get_their_shares_together():
    s, label = logits_and_sets(2, 5.0)
    wanted = jnp.array([0.6, 0.3])
    b = share.shifts_of_lse(jnp.stack([lse(s, label == j) for j in (1, 2)]), lse(s, label == 0), wanted)
    alpha = jax.nn.softmax(s + jnp.pad(b, (1, 0))[label])
    found = jnp.stack([jnp.where(label == j, alpha, 0).sum() for j in (1, 2)])
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_one_of_several_is_one():
    m = jnp.array([[0.2], [0.01]])
    np.testing.assert_allclose(share.shifts(m, jnp.array([0.5]))[:, 0], share.shift(m[:, 0], 0.5), rtol=1e-6)


@pytest.mark.parametrize(("target", "rest"), [(-np.inf, 0.0), (0.0, -np.inf), (-np.inf, -np.inf)])
def test_nothing_is_added_where_nothing_can_be(target, rest):
    target, rest = jnp.array(target), jnp.array(rest)
    assert float(share.shift_of_lse(target, rest, 0.5)) == 0
    assert float(share.shifts_of_lse(target[None], rest, jnp.array([0.5]))[0]) == 0
    slope = jax.grad(lambda x: share.shift_of_lse(x, rest, 0.5))(target)
    assert np.isfinite(slope)


def test_a_set_without_keys_leaves_its_share_to_the_rest():
    found = share.shifts_of_lse(jnp.array([0.0, -jnp.inf]), jnp.array(0.0), jnp.array([0.5, 0.3]))
    assert found.tolist() == [0.0, 0.0]  # the first already has its share


def test_a_share_of_0_closes_a_set_among_several():
    found = share.shifts(jnp.array([0.25, 0.5]), jnp.array([0.0, 0.5]))
    assert found[0] == -jnp.inf
    assert float(found[1]) == pytest.approx(np.log(0.5))


def test_the_price_is_that_of_two_coins():
    m = jnp.array([0.1, 0.4, 0.0, 1.0])
    np.testing.assert_allclose(share.price(m[:2], 0.8), bits.binary_kl(jnp.full(2, 0.8), m[:2]), rtol=1e-6)
    assert share.price(m, 0.05).tolist() == [0.0] * 4
    assert share.price(m[2:], 0.5).tolist() == [0.0, 0.0]


def test_traced_shares_compile_once():
    compiled = jax.jit(share.shift)
    m = jnp.array([0.1, 0.4])
    for phi in SHARES:
        np.testing.assert_allclose(compiled(m, phi), share.shift(m, phi), rtol=1e-5)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("wrong", [-0.1, 1.0, 1.5, float("nan")])
def test_a_share_that_cannot_be_is_refused(wrong):
    m = jnp.array([0.5])
    for call in (share.shift, share.price, lambda m, x: share.shifts(m, jnp.array([x]))):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
            call(m, wrong)


def test_shares_that_leave_nothing_are_refused():
    with pytest.raises(ValueError, match="add up to less than 1, got 1"):
        share.shifts(jnp.array([0.1, 0.1]), jnp.array([0.5, 0.5]))

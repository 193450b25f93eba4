"""Mixtures: exact on hand-made texts, within T13's bounds on random ones, and a bound that is too good is broken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.hierarchy import mixture

M, T = 4, 20


@pytest.fixture(scope="module")
def losses():
    """Texts in which the LLM that is good changes after ten tokens."""
    noise = 3 * jax.random.exponential(jax.random.key(0), (16, T, M))
    good = jnp.where(jnp.arange(T) < 10, 0, 1)
    return jnp.where(jax.nn.one_hot(good, M, dtype=bool), 0.05 * noise, noise + 1)


def test_two_llms_by_hand():
    bits = jnp.array([[1.0, 2.0], [1.0, 3.0]])  # probabilities 1/2, 1/4; then 1/2, 1/8
    code, weights = mixture.code(bits, mixture.uniform(jnp.ones(2, bool)))
    first, second = (1 / 2 + 1 / 4) / 2, (2 / 3) / 2 + (1 / 3) / 8
    np.testing.assert_allclose(code, -np.log2([first, second]), rtol=1e-6)
    np.testing.assert_allclose(jnp.exp(weights[0]), [2 / 3, 1 / 3], rtol=1e-6)
    assert float(jnp.exp(weights[1]).sum()) == pytest.approx(1.0)


def test_who_is_no_member_is_not_read(losses):
    prior = mixture.uniform(jnp.arange(M) < 2)
    absurd = losses.at[..., 2:].set(jnp.nan)
    code, weights = mixture.code(absurd, jnp.broadcast_to(prior, (16, M)))
    assert np.isfinite(code).all()
    assert (jnp.exp(weights[..., 2:]) == 0).all()


def test_bayes_costs_at_most_log_m_bits_in_all(losses):
    prior = jnp.broadcast_to(mixture.uniform(jnp.ones(M, bool)), (16, M))
    total = mixture.code(losses, prior)[0].sum(1)
    assert (total <= mixture.bayes_bound(losses.sum(1), prior) + 1e-4).all()
    assert (total >= losses.sum(1).min(1) - 1e-4).all() or total.min() > 0


def test_a_fixed_share_follows_a_switch_and_bayes_does_not(losses):
    prior = jnp.broadcast_to(mixture.uniform(jnp.ones(M, bool)), (16, M))
    along = losses[:, :10, 0].sum(1) + losses[:, 10:, 1].sum(1)
    fixed, free = (
        mixture.code(losses, prior, jnp.broadcast_to(share, (16, T)))[0].sum(1)
        for share in (jnp.full(T, 0.05), mixture.tuning_free(T))
    )
    assert (fixed <= along + mixture.fixed_share_bound(M, 1, T, 0.05) + 1e-4).all()
    switched = jnp.arange(1, T) == 10
    assert (free <= along + mixture.tuning_free_bound(M, switched) + 1e-4).all()
    assert (mixture.code(losses, prior)[0].sum(1) > fixed + 5).all()


def test_a_bound_that_forgets_the_switch_is_broken(losses):
    """The wrong twin: the cost of no switch at all does not cover a text with one."""
    prior = jnp.broadcast_to(mixture.uniform(jnp.ones(M, bool)), (16, M))
    along = losses[:, :10, 0].sum(1) + losses[:, 10:, 1].sum(1)
    fixed = mixture.code(losses, prior, jnp.full((16, T), 0.05))[0].sum(1)
    assert (fixed > along + mixture.fixed_share_bound(M, 0, T, 0.05)).any()

"""The price of a gate: two phases, dual ascent, and the weight of gates that decide many pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import bits, config
from localist_jax.locality import gates as gating
from localist_jax.locality import pricing
from localist_jax.locality.pricing import Pricing

STEPS = 400
SETTINGS = config.Gates(open_share_target=0.2, flat_window=10)
GATES = jnp.ones((1, 2, 3, 3))


def pairs(always=10.0, total=100.0):
    gated = jnp.array([[0.0, 5.0, 5.0], [0.0, 40.0, 10.0], [0.0, 10.0, 20.0]])
    return gated, jnp.asarray(always), jnp.asarray(total)


def drive(loss_of, settings=SETTINGS, share_of=lambda step: 0.5, steps=STEPS):
    """Return the prices, and the step at which the price phase begins, for these losses and open shares."""

    @jax.jit
    def one(state, step, loss, share):
        state = pricing.observe(state, loss, jnp.zeros(GATES.shape), pairs(), settings.flat_window)
        return pricing.advance(state, settings, step, steps, share, 1000)

    state, prices = Pricing.create(GATES), []
    for step in range(steps):
        state = one(state, step, jnp.float32(loss_of(step)), jnp.float32(share_of(step)))
        prices.append(float(state.price))
    return np.array(prices), int(state.opened_at)


def test_nothing_is_priced_before_the_loss_is_flat():
    prices, opened = drive(lambda step: 5.0 * 0.99**step)  # falls steadily
    assert 0 <= opened - STEPS * SETTINGS.open_at_most <= 1
    assert (prices[:opened] == 0).all()
    assert prices[opened] > 0


def test_a_flat_loss_opens_the_price_phase_but_not_too_early():
    _, opened = drive(lambda step: 3.0)
    assert 0 <= opened - STEPS * SETTINGS.open_at_least <= 1
    _, later = drive(lambda step: 3.0 + 3.0 * 0.96**step)
    assert STEPS * SETTINGS.open_at_least < later < STEPS * SETTINGS.open_at_most


def test_a_target_of_everything_leaves_the_gates_open():
    for target, begins in ((1.0, False), (0.99, True)):
        settings = dataclasses.replace(SETTINGS, open_share_target=target)
        prices, opened = drive(lambda step: 3.0, settings)
        assert (opened >= 0) is begins
        assert (prices > 0).any() is np.bool_(begins)


def test_dual_ascent_rises_while_too_much_is_open_and_falls_when_too_little_is():
    prices, opened = drive(lambda _: 3.0, share_of=lambda step: 0.5 if step < 250 else 0.05)
    rising, falling = prices[opened:250], prices[251:]
    assert (np.diff(rising) >= 0).all()
    assert (np.diff(falling) <= 0).all()
    assert rising[0] <= 2 * pricing.FIRST_PRICE
    assert falling[-1] < rising[-1]


def test_dual_ascent_finds_the_price_that_meets_the_target():
    """Check gates with known gradients: the open share reaches its target, with a price between two gradients."""
    pulls = np.geomspace(1e-6, 1e-3, 101)
    settings = dataclasses.replace(SETTINGS, open_share_target=0.3)
    state, history = Pricing.create(GATES), []
    state = dataclasses.replace(state, fast=jnp.float32(1), slow=jnp.float32(1))
    step_of = jax.jit(lambda state, step, share: pricing.advance(state, settings, step, STEPS, share, 1000))
    for step in range(STEPS):
        share = (pulls > float(state.price)).mean()
        state = step_of(state, step, jnp.float32(share))
        history.append(share)
    assert abs(np.mean(history[-50:]) - 0.3) < 0.03


def test_gate_bits_are_spread_over_the_training_tokens():
    settings = config.Gates(open_share_target=0.0, gate_bits=50.0, flat_window=10, ramp=0.25)
    prices, opened = drive(lambda _: 3.0, settings)
    final = bits.to_nats(50.0) / 1000
    assert prices[-1] == pytest.approx(final, rel=1e-5)
    middle = opened + int(0.125 * (STEPS - opened))
    assert prices[middle] == pytest.approx(final / 2, rel=0.05)


def test_weights_follow_the_pairs_a_gate_decides():
    gated = pairs()[0] / 100
    w = np.asarray(pricing.weights(gated, 3))
    assert w[:, 1:].mean() == pytest.approx(1.0, rel=1e-5)
    assert w[1, 1] == pytest.approx(4 * w[1, 2], rel=1e-5)
    np.testing.assert_array_equal(pricing.weights(jnp.zeros((3, 3)), 3), np.ones((3, 3)))


def test_useless_gates_travel_together_whatever_their_weight():
    weight = pricing.weights(pairs()[0] / 100, 3)
    price, eta = 1e-5, pricing.step_size(SETTINGS, 1e-5, STEPS)
    stepped = gating.proximal_step(jnp.ones((3, 3)), jnp.zeros((3, 3)) / weight, eta, price)
    assert np.ptp(np.asarray(stepped)) == 0


def test_a_useless_gate_can_travel_the_promised_distance():
    shortest = STEPS * (1 - SETTINGS.open_at_most)
    for price in (1e-6, 1e-4, 1e-2):
        step = float(pricing.step_size(SETTINGS, price, STEPS))
        assert step * price * shortest == pytest.approx(SETTINGS.step_travel, rel=1e-5)


def test_splitting_a_block_changes_neither_the_penalty_nor_its_gradient():
    """Check T15: if block 2 is split into halves 2 and 3, inherited gates cost the same."""
    one = np.array([[0, 0, 0, 0], [0, 40, 20, 0], [0, 20, 20, 0], [0, 0, 0, 0]], float) / 100
    two = np.array([[0, 0, 0, 0], [0, 40, 10, 10], [0, 10, 5, 5], [0, 10, 5, 5]], float) / 100
    A = np.array([[0, 0, 0, 0], [0, 0.3, 0.9, 0], [0, 0.7, 0.2, 0], [0, 0, 0, 0]])
    inherit = [0, 1, 2, 2]
    B = A[np.ix_(inherit, inherit)]
    before, after = (np.where(x > 0, pricing.weights(jnp.asarray(x), 3), 0) for x in (one, two))
    assert (after * B).sum() == pytest.approx((before * A).sum(), rel=1e-5)
    np.testing.assert_allclose(after[1, 2] + after[1, 3], before[1, 2], rtol=1e-5)


def test_late_in_a_run_gates_only_close_and_only_above_the_target():
    settings = config.Gates(open_share_target=0.2, settle=0.25)
    gates, stepped = jnp.array([0.0, 0.5, 0.5]), jnp.array([0.9, 0.4, 0.6])

    def at(progress, share):
        return pricing.settled(stepped, gates, settings, progress, jnp.float32(share)).tolist()

    assert at(0.74, 0.3) == stepped.tolist()
    assert at(0.76, 0.19) == gates.tolist()
    assert at(0.76, 0.3) == pytest.approx([0.0, 0.4, 0.5])

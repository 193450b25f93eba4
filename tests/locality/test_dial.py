"""The dial: range, composition, extent, regimes, and the smallest dial that guarantees a fidelity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import REGIMES, Dial, gates


@pytest.mark.parametrize("value", [0.0, 0.25, 0.9, 0.999, 1.0])
def test_locality_survives_the_round_trip(value):
    np.testing.assert_allclose(Dial(value).locality, value, rtol=1e-6)


def test_the_ends_are_exact():
    assert float(Dial(0.0).beta.item()) == 0
    assert np.isposinf(Dial(1.0).beta.item())
    assert Dial(1.0).is_localist
    assert not Dial(0.999999).is_localist


@pytest.mark.parametrize("bad", [-0.01, 1.0001, float("nan"), float("inf"), np.array([[[0.5, 1.5]]])])
def test_values_outside_the_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"λ must lie in \[0, 1\]"):
        Dial(bad)


def test_log_odds_must_not_be_negative():
    with pytest.raises(ValueError, match="at least 0"):
        Dial.from_log_odds(-1.0)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_an_array_needs_its_three_axes(shape):
    with pytest.raises(ValueError, match="axes \\[batch, layer, head\\]"):
        Dial(np.zeros(shape))


def test_dials_compose_by_the_product_of_what_they_let_through():
    a, b, c = 0.3, 0.8, 0.95
    np.testing.assert_allclose(
        (Dial(a) + Dial(b) + Dial(c)).locality, 1 - (1 - a) * (1 - b) * (1 - c), rtol=1e-6
    )
    assert (Dial(0.2) + Dial(1.0)).is_localist
    layers = Dial.per_layer([0.0, 0.5]) + Dial.per_head([[0.0, 0.9]])
    assert layers.beta.shape == (1, 2, 2)
    np.testing.assert_allclose(layers.locality[0], [[0, 0.9], [0.5, 0.95]], rtol=1e-6)


def test_composition_is_monotone_and_commutes():
    values = np.random.default_rng(0).uniform(size=20)
    for a, b in zip(values[::2], values[1::2], strict=True):
        both, other = Dial(a) + Dial(b), Dial(b) + Dial(a)
        assert float(both.locality.item()) >= max(a, b) - 1e-6
        np.testing.assert_array_equal(both.beta, other.beta)


@pytest.mark.parametrize("power", [0, 1, 3, 5])
def test_progressive_follows_its_formula(power):
    wanted = [0.9 * ((layer + 1) / 6) ** power for layer in range(6)]
    np.testing.assert_allclose(Dial.progressive(0.9, power, 6).locality[0, :, 0], wanted, rtol=1e-5)


def test_regimes_are_presets():
    assert Dial.regime("audit", 4).is_localist
    assert float(jnp.abs(Dial.regime("distributed", 4).beta).max()) == 0
    balanced = np.asarray(Dial.regime("balanced", 4).locality).ravel()
    assert (np.diff(balanced) > 0).all()
    np.testing.assert_allclose(balanced[-1], 0.9, rtol=1e-5)
    with pytest.raises(ValueError, match=f"unknown regime 'strict'; choose one of {', '.join(REGIMES)}"):
        Dial.regime("strict", 4)


def test_requests_may_mix_numbers_and_dials():
    dial = Dial.for_requests([0.1, Dial.per_layer([0.0, 1.0]), Dial.per_head([[0.5, 0.6, 0.7]])])
    assert dial.beta.shape == (3, 2, 3)
    np.testing.assert_allclose(dial.locality[0], 0.1, rtol=1e-5)
    np.testing.assert_allclose(dial.locality[1], [[0] * 3, [1] * 3])
    np.testing.assert_allclose(dial.locality[2, 1], [0.5, 0.6, 0.7], rtol=1e-5)
    with pytest.raises(ValueError, match="each request takes one dial"):
        Dial.for_requests([dial, 0.5])


def test_broadcast_names_the_axis_that_does_not_fit():
    assert Dial(0.5).broadcast(2, 3, 4).beta.shape == (2, 3, 4)
    with pytest.raises(ValueError, match="3 settings on the layer axis, but the model has 4"):
        Dial.per_layer([0, 0.5, 1]).broadcast(1, 4, 2)


def test_a_dial_is_a_pytree_that_traces_once():
    traces = []

    @jax.jit
    def total(dial):
        traces.append(1)
        return dial.locality.sum()

    for value in (0.0, 0.3, 1.0):
        assert float(total(Dial(value))) == pytest.approx(value, rel=1e-6)
    assert len(traces) == 1
    assert float(total(jax.tree.map(lambda x: x, Dial(0.7)))) == pytest.approx(0.7, rel=1e-6)


def test_it_says_what_it_is():
    assert repr(Dial(0.9)) == "Dial(0.9)"
    assert repr(Dial(1.0)) == "Dial(1)"
    assert repr(Dial.per_layer([0, 1])) == "Dial(shape=(1, 2, 1))"


@pytest.mark.parametrize("epsilon", [0.5, 0.1, 1e-3])
def test_the_dial_for_a_fidelity_keeps_its_word_on_the_worst_input_and_is_the_smallest(epsilon):
    bound, b, u = 2.0, 3, 40
    s = np.concatenate([np.full(b, -bound), np.full(u, bound)])  # relevant keys at −S, all others at +S

    def fidelity(beta):
        weight = np.exp(s) * np.where(np.arange(b + u) < b, 1.0, np.exp(-beta))
        return weight[:b].sum() / weight.sum()

    beta = float(Dial.for_fidelity(epsilon, bound, b, u).beta.item())
    assert fidelity(beta) >= 1 - epsilon
    assert fidelity(beta - 1e-3) < 1 - epsilon


def test_the_dial_for_a_fidelity_takes_a_bound_per_head():
    bounds = np.array([[1.0, 2.0], [3.0, 0.5]])
    dial = Dial.for_fidelity(0.05, bounds, 4, 60)
    assert dial.beta.shape == (1, 2, 2)
    for layer, head in np.ndindex(2, 2):
        alone = Dial.for_fidelity(0.05, bounds[layer, head], 4, 60)
        np.testing.assert_allclose(dial.beta[0, layer, head], alone.beta.item(), rtol=1e-6)


def test_nothing_to_leave_out_needs_no_dial():
    assert float(Dial.for_fidelity(0.01, 5.0, 8, 0).beta.item()) == 0
    assert float(Dial.for_fidelity(0.9, 0.0, 50, 1).beta.item()) == 0


@pytest.mark.parametrize(("epsilon", "b", "u"), [(0.0, 1, 1), (1.0, 1, 1), (0.1, 0, 1), (0.1, 1, -1)])
def test_impossible_guarantees_are_refused(epsilon, b, u):
    with pytest.raises(ValueError, match="certificate"):
        Dial.for_fidelity(epsilon, 1.0, b, u)


def test_odds_are_exact_at_both_ends():
    A = jax.random.uniform(jax.random.key(0), (2, 4, 4)).at[0, 1, 2].set(0.0)
    ends = gates.odds(A, Dial.for_requests([0.0, 1.0]).beta[:, 0] * jnp.ones(2))
    np.testing.assert_array_equal(ends[0], np.ones((2, 4, 4)))
    np.testing.assert_array_equal(ends[1], np.asarray(A.at[..., 0].set(1.0)))


def test_odds_follow_the_formula_between_the_ends():
    A = np.asarray(jax.random.uniform(jax.random.key(1), (1, 3, 3)))
    found = gates.odds(jnp.asarray(A), jnp.full((1, 1), np.log(4.0)))
    wanted = A + (1 - A) / 4
    wanted[..., 0] = 1
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6)

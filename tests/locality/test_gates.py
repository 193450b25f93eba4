"""Gates: the proximal step against brute force, exact zeros, the KKT residual, group soft-thresholding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import gates


def test_the_proximal_step_minimises_its_objective():
    rng = np.random.default_rng(0)
    grid = np.linspace(0, 1, 100_001)
    for _ in range(50):
        at, gradient, step, price = rng.uniform(), rng.normal() * 3, rng.uniform(0.01, 0.5), rng.uniform(0, 2)
        objective = gradient * grid + price * grid + (grid - at) ** 2 / (2 * step)
        found = float(gates.proximal_step(jnp.array(at), jnp.array(gradient), step, price))
        assert abs(found - grid[objective.argmin()]) < 2e-5


def test_steps_land_on_zero_and_stay_until_the_pull_exceeds_the_price():
    A = jnp.array([0.3, 0.3, 0.3])
    pull = jnp.array([0.0, 0.9, 1.1])  # −∂L/∂A
    for _ in range(200):
        A = gates.proximal_step(A, -pull, 0.05, 1.0)
    assert A.tolist() == [0.0, 0.0, 1.0]
    assert (
        float(gates.proximal_step(A, jnp.array(-1.2), 0.05, 1.0)[0]) > 0
    )  # a closed gate reopens when the gradient exceeds the price


def test_fixed_points_of_the_step_are_the_stationary_points():
    """Check T6 on Σ c(A−m)²/2 + μA over the box, whose minimum is known."""
    rng = np.random.default_rng(1)
    c, m, price = rng.uniform(0.5, 2, 200), rng.uniform(-0.5, 1.8, 200), 0.4
    A = jnp.ones(200)
    for _ in range(2000):
        A = gates.proximal_step(A, c * (A - m), 0.3, price)
    np.testing.assert_allclose(A, np.clip(m - price / c, 0, 1), atol=1e-5)
    assert float(gates.kkt_residual(A, jnp.asarray(c * (A - m)), price).max()) < 1e-5
    assert 10 < int((A == 0).sum()) < 190
    assert int((A == 1).sum()) > 5


@pytest.mark.parametrize(
    ("gate", "gradient", "residual"),
    [
        (0, -0.5, 0),
        (0, -1.0, 0),
        (0, -1.5, 0.5),
        (0, 2, 0),
        (1, -1.5, 0),
        (1, -0.4, 0.6),
        (0.5, -1, 0),
        (0.5, -0.7, 0.3),
    ],
)
def test_the_kkt_residual_is_the_distance_from_the_dichotomy(gate, gradient, residual):
    found = gates.kkt_residual(jnp.array(float(gate)), jnp.array(float(gradient)), 1.0)
    assert float(found) == pytest.approx(residual)


def test_a_price_may_differ_by_gate():
    A = gates.proximal_step(
        jnp.full(3, 0.5), jnp.zeros(3), jnp.array([0.1, 0.2, 1.0]), jnp.array([1.0, 1.0, 9.0])
    )
    np.testing.assert_allclose(A, [0.4, 0.3, 0.0], atol=1e-6)


def test_group_soft_threshold_is_the_proximal_operator_of_the_group_norm():
    rng = np.random.default_rng(2)
    theta = jnp.asarray(rng.normal(size=(6, 5)) * np.geomspace(0.05, 3, 6)[:, None])
    amount = 1.0
    shrunk = np.asarray(gates.group_soft_threshold(theta, amount, axes=(1,)))

    def objective(x):
        return amount * np.linalg.norm(x, axis=1) + ((x - np.asarray(theta)) ** 2).sum(1) / 2

    best = objective(shrunk)
    for scale in (1e-4, 1e-2, 0.3):
        for _ in range(200):
            assert (objective(shrunk + scale * rng.normal(size=theta.shape)) >= best - 1e-5).all()
    small = np.linalg.norm(theta, axis=1) <= amount
    assert small.any()
    assert (~small).any()
    assert (shrunk[small] == 0).all()
    assert (np.abs(shrunk[~small]).sum(1) > 0).all()


def test_group_soft_threshold_has_finite_gradients_at_zero():
    gradient = jax.grad(lambda x: gates.group_soft_threshold(x, 0.5, axes=(1,)).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_closed_share_counts_only_priced_gates():
    A = jnp.ones((2, 4, 4)).at[0, 1, 2].set(0.0).at[:, :, 0].set(0.0).at[:, 3].set(0.0)
    active = jnp.array([True, True, True, False])  # priced: 3 rows × columns 1, 2, in two heads
    assert float(gates.closed_share(A, active)) == pytest.approx(1 / 12)


def test_column_zero_is_open_whatever_the_gates_say():
    A = jnp.zeros((1, 3, 3))
    np.testing.assert_array_equal(gates.relevant(A)[0], np.array([[True, False, False]] * 3))
    np.testing.assert_array_equal(gates.odds(A, jnp.full((1, 1), jnp.inf))[0, 0, :, 0], 1)


def test_inside():
    assert bool(gates.inside(jnp.array([0.0, 1.0])))
    assert not bool(gates.inside(jnp.array([0.0, 1.01])))
    assert not bool(gates.inside(jnp.array([-0.01])))

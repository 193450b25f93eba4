"""Brings many small penalised models to stationary points at once, by proximal gradient in float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from localist_jax.types import PyTree

SEARCH, POLISH = 400, 2500  # steps with an adapted size, then with a fixed one
SETTLED = 1e-9  # KKT residual below which a point counts as stationary


def _each(tree: PyTree) -> jax.Array:
    """Squared norm per instance, [n]."""
    each = [jnp.square(leaf).reshape(leaf.shape[0], -1).sum(1) for leaf in jax.tree.leaves(tree)]
    return jnp.stack(each).sum(0)


def per_instance(values: jax.Array, like: jax.Array) -> jax.Array:
    """[n] → [n, 1, …], so that it broadcasts against a leaf."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


@partial(jax.jit, static_argnums=(0, 1, 2))
def solve(
    loss: Callable[[PyTree, PyTree], jax.Array],
    penalty: Callable[[PyTree, PyTree], jax.Array],
    prox: Callable[[PyTree, PyTree, jax.Array, PyTree], PyTree],
    start: PyTree,
    data: PyTree,
) -> PyTree:
    """A stationary point of loss + penalty for every instance.

    First the step size of each instance is adapted so that its objective falls; then it is fixed at half of the
    smallest that was accepted late, since near the end the objective is too flat to tell steps apart.

    Args:
      loss, penalty: (x, data) → [n].
      prox: (x, gradient, step [n], data) → x after one proximal step.
      start, data: pytrees with instances on the first axis.
    """

    def slope(x):
        total = loss(x, data)
        return total, jax.grad(lambda y: loss(y, data).sum())(x)

    def choose(where, new, old):
        return jax.tree.map(lambda a, b: jnp.where(per_instance(where, a), a, b), new, old)

    def search(carry, step):
        x, gradient, best, size, small = carry
        candidate = prox(x, gradient, size, data)
        value, new_gradient = slope(candidate)
        value = value + penalty(candidate, data)
        moved = _each(jax.tree.map(jnp.subtract, candidate, x))
        good = value <= best - 0.1 * moved / size + 1e-13 * (1 + jnp.abs(best))
        x, gradient = choose(good, candidate, x), choose(good, new_gradient, gradient)
        small = jnp.where(good & (step > SEARCH // 2) & (moved > 1e-14), jnp.minimum(small, size), small)
        return (x, gradient, jnp.where(good, value, best), jnp.where(good, 1.3, 0.5) * size, small), None

    def polish(carry, _):
        x, size = carry
        return (prox(x, slope(x)[1], size, data), size), None

    value, gradient = slope(start)
    n = value.shape[0]
    state = (start, gradient, value + penalty(start, data), jnp.full(n, 0.1), jnp.full(n, jnp.inf))
    (x, _, _, size, small), _ = jax.lax.scan(search, state, jnp.arange(SEARCH))
    fixed = 0.5 * jnp.where(jnp.isfinite(small), small, jnp.minimum(size, 1.0))
    return jax.lax.scan(polish, (x, fixed), length=POLISH)[0][0]

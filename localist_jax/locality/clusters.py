"""Spherical k-means, which finds blocks in the states of a model that was trained without them.

States are standardised per channel and scaled to unit length; a cluster is a direction c. The nearest direction is the
argmax of the affine map x ↦ ⟨c/σ, x⟩ − ⟨c, μ/σ⟩, since scaling a row of scores does not move its argmax. So that map
serves as a router.
"""

from __future__ import annotations

from functools import partial

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from localist_jax.types import Key, struct

SMALLEST_DEVIATION = 1e-3  # added to each channel's, so that a constant channel does not divide by 0
ROUNDS = 20


@struct
class Standard:
    """Mean and standard deviation of each channel, float32 [D]."""

    mean: chex.Array
    deviation: chex.Array

    @classmethod
    def of(cls, x: Float[Array, "P D"]) -> Standard:
        """Return the mean and deviation of these states."""
        return cls(mean=x.mean(0), deviation=x.std(0) + SMALLEST_DEVIATION)

    def directions(self, x: Float[Array, "P D"]) -> Float[Array, "P D"]:
        """Return the standardised states at unit length."""
        return _unit((x - self.mean) / self.deviation)


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames=("clusters", "rounds"))
def spherical_kmeans(
    key: Key, directions: Float[Array, "P D"], clusters: int, rounds: int = ROUNDS
) -> tuple[Float[Array, "C D"], Int[Array, " P"]]:
    """Divide unit vectors into clusters by their nearest centre.

    Args:
      key: draws the first centres, and new ones for clusters that become empty.
      directions: unit vectors.
      clusters: C, at most P.
      rounds: number of iterations, each of which assigns all vectors and moves all centres.

    Returns:
      The centres (unit vectors) and the cluster of each vector.
    """
    start, again = jax.random.split(key)

    def draw(key):
        return directions[jax.random.choice(key, len(directions), (clusters,), replace=False)]

    def turn(nth, centres):
        nearest = jnp.argmax(directions @ centres.T, -1)
        sums = jax.ops.segment_sum(directions, nearest, clusters)
        some = jax.ops.segment_sum(jnp.ones(len(directions)), nearest, clusters) > 0
        return jnp.where(some[:, None], _unit(sums), draw(jax.random.fold_in(again, nth)))

    centres = jax.lax.fori_loop(0, rounds, turn, draw(start))
    return centres, jnp.argmax(directions @ centres.T, -1)


def router_of(
    centres: Float[Array, "C D"], standard: Standard
) -> tuple[Float[Array, "D C"], Float[Array, " C"]]:
    """Return kernel and bias whose argmax over x @ kernel + bias is the centre nearest to x."""
    scaled = centres / standard.deviation
    return scaled.T, -(scaled @ standard.mean)

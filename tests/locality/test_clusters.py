"""Spherical k-means, and the router made from it."""

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.locality import clusters


def groups(seed=0, count=5, each=60, width=12):
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(count, width)) * 4
    x = np.concatenate([m + rng.normal(size=(each, width)) for m in middles])
    return jnp.asarray(x * rng.uniform(0.5, 2, (len(x), 1)) + 3, jnp.float32), np.repeat(
        np.arange(count), each
    )


def test_groups_are_found_and_every_cluster_is_used():
    x, truth = groups()
    standard = clusters.Standard.of(x)
    centres, found = clusters.spherical_kmeans(jax.random.key(1), standard.directions(x), 8)
    found = np.asarray(found)
    np.testing.assert_allclose(jnp.linalg.norm(centres, axis=-1), 1.0, atol=1e-5)
    assert len(set(found)) == 8
    for cluster in set(found):  # each holds one group, up to a few vectors
        inside = truth[found == cluster]
        assert np.bincount(inside).max() >= 0.9 * len(inside)


def test_the_router_takes_the_nearest_centre():
    x, _ = groups(seed=3)
    standard = clusters.Standard.of(x)
    directions = standard.directions(x)
    centres, found = clusters.spherical_kmeans(jax.random.key(0), directions, 6)
    kernel, bias = clusters.router_of(centres, standard)
    np.testing.assert_array_equal(jnp.argmax(x @ kernel + bias, -1), found)


def test_a_cluster_that_lost_its_vectors_is_drawn_anew():
    """Check vectors that are all equal but one, so that most centres start equal and become empty."""
    directions = jnp.tile(jnp.eye(4)[:1], (20, 1)).at[7].set(jnp.eye(4)[2])
    centres, found = clusters.spherical_kmeans(jax.random.key(0), directions, 3)
    assert np.isfinite(np.asarray(centres)).all()
    assert len(set(np.asarray(found).tolist())) == 2


def test_a_constant_channel_does_no_harm():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32).at[:, 2].set(7.0)
    assert np.isfinite(np.asarray(clusters.Standard.of(x).directions(x))).all()

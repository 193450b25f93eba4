"""Fingerprints of a state: what was saved is what is read, to the bit, on whatever mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.types import PyTree

Fingerprints = dict[str, list[int]]
MIX = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))  # odd constants of well-known hash functions


def fingerprints(tree: PyTree) -> Fingerprints:
    """Two 32-bit sums for each leaf, by its path.

    Σ_i wᵢ·bits(xᵢ) mod 2³² with odd weights w that depend on the place i. An element that differs from what was
    saved, in whatever bits, changes both sums for certain; several at once, or elements that changed places, escape
    with probability 2⁻⁶⁴ or so. Sums of integers do not depend on their order, hence not on the mesh.

    Args:
      tree: arrays (no typed keys); of many processes all must call it together.
    """
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    sums = np.asarray(_sums(jax.tree.leaves(tree)))
    return dict(zip(paths, sums.tolist(), strict=True))


@jax.jit
def _sums(leaves):
    return jnp.stack([_of(leaf) for leaf in leaves])


def _of(x: jax.Array) -> jax.Array:
    words = _words(x)
    place = jnp.zeros(words.shape, jnp.uint32)
    for axis, size in enumerate(words.shape):
        place = place * np.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
    return jnp.stack([(words * _weights(place, *mix)).sum(dtype=jnp.uint32) for mix in MIX])


def _weights(place: jax.Array, first: int, second: int) -> jax.Array:
    mixed = place * np.uint32(first)
    mixed = (mixed ^ (mixed >> 15)) * np.uint32(second)
    return (mixed ^ (mixed >> 13)) | np.uint32(1)


def _words(x: jax.Array) -> jax.Array:
    """The bits of an array as uint32, with one more axis where an element has 64."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)

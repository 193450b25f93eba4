"""Fingerprints of a state, by which a restored checkpoint is checked to the bit on any mesh."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.types import PyTree

Fingerprints = dict[str, list[int]]
MIX = ((0x9E3779B1, 0x85EBCA6B), (0xC2B2AE35, 0x27D4EB2F))  # odd constants from well-known hash functions


def fingerprints(tree: PyTree) -> Fingerprints:
    """Return two 32-bit sums for each leaf, by its path.

    They are Σ_i wᵢ·bits(xᵢ) mod 2³² with odd weights w that depend on the index i. A change of one element always
    changes both sums; changes of several elements, or swapped elements, go unnoticed with probability of about 2⁻⁶⁴.
    Sums of integers do not depend on their order, hence not on the mesh.

    Args:
      tree: arrays (no typed keys); every process must call it.
    """
    paths = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(tree)
    ]
    sums = np.asarray(_sums(jax.tree.leaves(tree)))
    return dict(zip(paths, sums.tolist(), strict=True))


@jax.jit
def _sums(leaves):
    return jnp.stack([_leaf_sums(leaf) for leaf in leaves])


def _leaf_sums(x: jax.Array) -> jax.Array:
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
    """Return the bits of an array as uint32, with one more axis if its elements have 64 bits."""
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    size = x.dtype.itemsize
    narrow = {1: jnp.uint8, 2: jnp.uint16}.get(size, jnp.uint32)
    return jax.lax.bitcast_convert_type(x, narrow).astype(jnp.uint32)

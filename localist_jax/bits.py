"""Information measures: every number in bits is computed here.

Entropies and divergences of attention are *attention bits*; losses and description lengths are *code-length bits*.
They measure different things and must not be added up.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from localist_jax.types import widened

LN2 = math.log(2.0)
RISSANEN_LOG_C = math.log2(2.865064)  # makes the universal integer code satisfy Kraft's equality


def from_nats(nats):
    """Convert nats to bits (divide by ln 2); works on numbers and arrays."""
    return nats / LN2


def to_nats(bits):
    """Convert bits to nats (multiply by ln 2); works on numbers and arrays."""
    return bits * LN2


def plogp(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return p·log₂ p with 0·log 0 = 0, and a finite derivative there."""
    positive = p > 0
    return jnp.where(positive, p * jnp.log2(jnp.where(positive, p, 1.0)), 0.0)


def entropy(p: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Return the Shannon entropy −Σ p log₂ p in bits of distributions on the last axis.

    >>> float(entropy(jnp.array([0.25, 0.25, 0.5])))
    1.5
    """
    return -plogp(p).sum(-1)


def binary_entropy(p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the binary entropy h(p) in bits."""
    return -plogp(p) - plogp(1 - p)


def kl(q: Float[Array, "*batch n"], p: Float[Array, "*batch n"]) -> Float[Array, "*batch"]:
    """Return KL(q‖p) in bits on the last axis; +∞ if q has mass where p has none."""
    mass = q > 0
    ratio = jnp.where(mass, q, 1.0) / jnp.where(mass, p, 1.0)
    return jnp.where(mass, q * jnp.log2(ratio), 0.0).sum(-1)


def binary_kl(q: Float[Array, "..."], p: Float[Array, "..."]) -> Float[Array, "..."]:
    """Return the binary divergence d(q‖p) in bits."""
    return kl(jnp.stack([q, 1 - q], -1), jnp.stack([p, 1 - p], -1))


def mutual_information(joint: Float[Array, "*batch x y"]) -> Float[Array, "*batch"]:
    """Return I(X; Y) in bits of a joint distribution (or of counts, which are normalised).

    >>> float(mutual_information(jnp.array([[2.0, 0.0], [0.0, 2.0]])))
    1.0
    """
    total = joint.sum((-2, -1), keepdims=True)
    p = joint / jnp.where(total > 0, total, 1.0)
    rows, columns = entropy(p.sum(-1)), entropy(p.sum(-2))
    return rows + columns - entropy(p.reshape(*p.shape[:-2], -1))


def code_length(logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Return the bits needed to code each target under softmax(logits), in at least float32."""
    logits = widened(logits)
    return from_nats(jax.nn.logsumexp(logits, -1) - _chosen(logits, targets))


def _chosen(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return logits[…, targets].

    Where a mesh splits the vocabulary, the compiler turns a gather into a masked look-up and a small sum. Where other
    axes of the mesh are mapped by hand (specialists side by side), its partitioner aborts on the gather (jaxlib
    0.10.2), so the masked sum is written out here.
    """
    if jax.sharding.get_abstract_mesh().manual_axes:
        return jnp.where(jnp.arange(logits.shape[-1]) == targets[..., None], logits, 0).sum(-1)
    return jnp.take_along_axis(logits, targets[..., None], -1)[..., 0]


def integer_code_length(n: int) -> float:
    """Return the length of Rissanen's universal code for n ≥ 1: log₂ 2.865 + log₂ n + log₂ log₂ n + … (positive terms).

    Σ_n 2^−length ≤ 1 (Kraft), so it prices a trial's number or a block count without a prior.

    Raises:
      ValueError: if n < 1.

    >>> round(integer_code_length(1), 3)
    1.519
    """
    if n < 1:
        raise ValueError(f"integer_code_length: n must be ≥ 1, got {n}")
    length, term = RISSANEN_LOG_C, math.log2(n)
    while term > 0:
        length, term = length + term, math.log2(term)
    return length

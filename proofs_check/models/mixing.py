"""Texts that several LLMs code, and mixtures of them: the models of T13."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from localist_jax.hierarchy import mixture
from localist_jax.types import struct
from proofs_check.theorem import pick

LLMS, TOKENS = 5, 16
NEVER = 1e5  # bits: a probability that underflows to 0


@struct
class Losses:
    """n texts.

    Attributes:
      bits: l [n, T, M]; negative ones count as 0. count: M of them exist, int [n].
      weight: log-weights of the prior, nats [n, M], normalised over the LLMs that exist.
      share: σ [n] as a logit. path: int [n, T], the segmentation's LLM for each token.
      listed: bool [n, M], the shortlist. spare: int [n], switches allowed beyond those of the path.
    """

    bits: chex.Array
    count: chex.Array
    weight: chex.Array
    share: chex.Array
    path: chex.Array
    listed: chex.Array
    spare: chex.Array


def sample(key: jax.Array, n: int) -> Losses:
    """Lengths from 0.001 to 10⁵ bits, regimes in which one LLM is good, one to five LLMs, σ from 10⁻¹⁰ to almost 1."""
    keys = jax.random.split(key, 12)
    count = jax.random.randint(keys[0], (n,), 1, LLMS + 1)
    scale = 10.0 ** jax.random.uniform(keys[1], (n, 1, 1), minval=-3, maxval=3)
    noise = scale * jax.random.exponential(keys[2], (n, TOKENS, LLMS))
    switch = jax.random.bernoulli(
        keys[3], 10 ** jax.random.uniform(keys[4], (n, 1), minval=-2, maxval=0), (n, TOKENS)
    )
    segment = jnp.cumsum(switch.at[:, 0].set(False), 1)
    drawn = jax.random.randint(keys[5], (n, TOKENS), 0, LLMS)
    path = jnp.take_along_axis(drawn, segment, 1) % count[:, None]
    good = jax.nn.one_hot(path, LLMS, dtype=bool)
    losses = pick(
        keys[6], n, (noise, jnp.where(good, 0.1 * noise, noise), jnp.where(good, 0.0, NEVER + noise))
    )
    greedy = jnp.where(jnp.arange(LLMS) < count[:, None, None], losses, jnp.inf).argmin(2)
    return Losses(
        bits=losses, count=count, weight=pick(keys[7], n, (jnp.zeros((n, LLMS)), 5 * noise[:, 0] / scale[:, 0])),
        share=jax.random.uniform(keys[8], (n,), minval=-23, maxval=8),
        path=pick(keys[9], n, (path, path, greedy)).astype(int), spare=jax.random.randint(keys[10], (n,), 0, 4),
        listed=jax.random.bernoulli(keys[11], 0.5, (n, LLMS)).at[:, 0].set(True),
    )  # fmt: skip


def log_sum(x):
    """Log-sum-exp of the last axis, −∞ for nothing."""
    top = x.max(-1)
    safe = jnp.where(jnp.isfinite(top), top, 0.0)
    return safe + _log(jnp.exp(x - safe[..., None]).sum(-1))


def _log(x):
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)


def prior(x: Losses, members):
    """ln w over some LLMs, normalised."""
    return mixture.normalised(jnp.where(members, x.weight, -jnp.inf))

"""How long evidence takes to reach its threshold, computed and not simulated: the models of T11.

A binary source, whose probability of a one changes with time and with the evidence, meets two models of it.
(time, ones seen) is a Markov chain, and E min(τ, T) follows from it exactly.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from localist_jax import bits
from localist_jax.recruitment import evidence
from localist_jax.types import struct
from proofs_check.theorem import pick

STEPS, TRIALS = 64, 200


@struct
class Streams:
    """n sources, incumbents and candidates.

    Attributes:
      incumbent: p_0 of a one, as a logit [n]; gap: log-odds of the candidate over it, as a softplus [n].
      floor: the smallest probability of a one, between the one at which the drift is 0 and 1, as a logit [n].
      extra: how far above it the source is, by time and by (evidence below, above B/2), logits [n, 2, T].
      false_bits: log 1/α [n]. trial: its number, int [n]. choices: candidates per number, int [n].
      silent: int [n], steps before the candidate begins to differ from the incumbent.
    """

    incumbent: chex.Array
    gap: chex.Array
    floor: chex.Array
    extra: chex.Array
    false_bits: chex.Array
    trial: chex.Array
    choices: chex.Array
    silent: chex.Array


def sample(key: jax.Array, n: int) -> Streams:
    """Gains from 0.001 to 5 bits that are steady, early, late, random, or smaller the nearer the threshold is."""
    keys = jax.random.split(key, 10)
    shape = (n, 2, STEPS)
    time = jnp.broadcast_to(jnp.linspace(-6, 6, STEPS), shape)
    noise = 6 * jax.random.normal(keys[0], shape)
    near = jnp.broadcast_to(jnp.array([40.0, -40.0])[:, None], shape)
    never = jnp.full(shape, -jnp.inf)
    return Streams(
        incumbent=2 * jax.random.normal(keys[1], (n,)), gap=1.5 + 2.5 * jax.random.normal(keys[2], (n,)),
        floor=1 + 2 * jax.random.normal(keys[3], (n,)),
        extra=pick(keys[4], n, (never, never, noise, time, -time, near)),
        false_bits=jax.random.uniform(keys[5], (n,), minval=0, maxval=10),
        trial=(TRIALS ** jax.random.uniform(keys[6], (n,))).astype(int),
        choices=jax.random.randint(keys[7], (n,), 1, 9),
        silent=pick(keys[8], n, (jnp.zeros(n), jnp.floor(20 * jax.random.uniform(keys[9], (n,))))).astype(int),
    )  # fmt: skip


@struct
class Setting:
    """Increments of the fixed candidate for a one and a zero, the source's θ [n, 2, T], its gain D, and B; bits."""

    one: chex.Array
    zero: chex.Array
    theta: chex.Array
    gains: chex.Array
    threshold: chex.Array
    p0: chex.Array
    p1: chex.Array

    @property
    def gain(self):
        """D: the smallest drift there is."""
        return self.gains.min((1, 2))


def setting(x: Streams) -> Setting:
    """Return the gains, drifts and thresholds of instances whose increments are of two coins."""
    p0 = jax.nn.sigmoid(x.incumbent)
    p1 = jax.nn.sigmoid(x.incumbent + jax.nn.softplus(x.gap))
    one, zero = jnp.log2(p1 / p0), jnp.log2((1 - p1) / (1 - p0))
    still = -zero / (one - zero)  # θ at which the drift is 0
    lowest = still + (1 - still) * jax.nn.sigmoid(x.floor)
    theta = lowest[:, None, None] + (1 - lowest)[:, None, None] * jax.nn.sigmoid(x.extra)
    by = lambda v: v[:, None, None]  # noqa: E731
    lengths = jnp.array([0.0] + [bits.integer_code_length(k) for k in range(1, TRIALS + 1)])
    return Setting(
        one=one, zero=zero, theta=theta, gains=theta * by(one) + (1 - theta) * by(zero), p0=p0, p1=p1,
        threshold=evidence.threshold_bits(lengths[x.trial] + jnp.log2(x.choices), jnp.exp2(-x.false_bits)),
    )  # fmt: skip


def delay(evidence, s: Setting, silent):
    """E min(τ, T) [n]: the sum over t < T of the probability that the evidence has stayed below B until t.

    Args:
      evidence: (t, ones) → LLR in bits, [n, T + 1], after t symbols that count.
      silent: symbols before the first that counts, [n].
    """
    n, _, T = s.theta.shape
    ones, B = jnp.arange(T + 1.0), s.threshold[:, None]

    def step(carry, now):
        waiting, total = carry
        t, theta = now
        counted = (t - silent)[:, None]  # before this symbol
        half = evidence(counted, ones) < B / 2
        up = jnp.where(counted >= 0, jnp.where(half, theta[:, :1], theta[:, 1:]), 0.0)
        risen = jnp.pad(waiting * up, ((0, 0), (1, 0)))[:, :-1]
        stays = waiting * (1 - up) + risen
        below = evidence(jnp.maximum(counted + 1, 0), ones) < B
        return (jnp.where(below, stays, 0.0), total + waiting.sum(1)), None

    begin = jnp.zeros((n, T + 1)).at[:, 0].set(1.0), jnp.zeros(n)
    return jax.lax.scan(step, begin, (jnp.arange(T), s.theta.transpose(2, 0, 1)))[0][1]


def fixed(s: Setting):
    """LLR of the candidate that stays as it is."""
    return lambda t, ones: ones * s.one[:, None] + (t - ones) * s.zero[:, None]


def learner(s: Setting):
    """LLR of the Krichevsky–Trofimov learner; ones > t never happens."""
    T = s.theta.shape[2]
    t, one = jnp.arange(T + 1.0)[:, None], jnp.arange(T + 1.0)
    log_beta = jax.scipy.special.betaln(one + 0.5, jnp.maximum(t - one, 0) + 0.5)
    learned = bits.from_nats(log_beta - jax.scipy.special.betaln(0.5, 0.5))  # [t, ones]
    incumbent = jnp.log2(s.p0)[:, None], jnp.log2(1 - s.p0)[:, None]
    return lambda t, ones: learned[t[:, 0].astype(int)] - ones * incumbent[0] - (t - ones) * incumbent[1]

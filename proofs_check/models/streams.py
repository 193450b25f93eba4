"""Streams that the incumbent predicts correctly, and candidates that try to be recruited all the same: T10."""

from __future__ import annotations

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits
from localist_jax.recruitment import evidence
from localist_jax.types import struct
from proofs_check.theorem import pick

ALPHAS = (0.1, 0.01, 0.001)
SYMBOLS, STEPS, TRIALS = 3, 64, 10
KT, HINDSIGHT, FIXED, BOLD = range(
    4
)  # learns from the opening; from the start; does not learn; bets all it has
CLOCK, RUN, FAILED = range(
    3
)  # a trial opens every few steps; after two equal symbols; when the last one looks bad
NUMBERS = np.array([bits.integer_code_length(k) for k in range(1, TRIALS + 1)])
BATCH = 4096  # streams simulated at a time


@struct
class Streams:
    """n streams, each with one α.

    Attributes:
      key: of its draws, [n]. alpha: int [n], which of ALPHAS.
      source: logits of p_0 after each symbol, [n, V, V]. wrong: logits of the fixed candidate, [n, V].
      kind: int [n, TRIALS]; target: the symbol that a bold candidate bets on, int [n, TRIALS].
      opens: int [n], when the next trial opens. pairs: bool [n], two candidates to a number.
    """

    key: chex.Array
    alpha: chex.Array
    source: chex.Array
    wrong: chex.Array
    kind: chex.Array
    target: chex.Array
    opens: chex.Array
    pairs: chex.Array


def sample(key: jax.Array, n: int) -> Streams:
    """Coins and three symbols, with and without memory, from fair to almost certain; all kinds of candidates."""
    keys = jax.random.split(key, 10)
    size = 3 * jax.random.uniform(keys[0], (n, 1, 1))
    memory = size * jax.random.normal(keys[1], (n, SYMBOLS, SYMBOLS))
    source = pick(keys[2], n, (memory, jnp.broadcast_to(memory[:, :1], memory.shape), jnp.zeros_like(memory)))
    coin = jax.random.bernoulli(keys[3], 0.5, (n,))
    return Streams(
        key=jax.random.split(keys[4], n), alpha=jnp.arange(n) % len(ALPHAS),
        source=source.at[:, :, -1].set(jnp.where(coin[:, None], -jnp.inf, source[:, :, -1])),
        wrong=jax.random.normal(keys[5], (n, SYMBOLS)), kind=jax.random.randint(keys[6], (n, TRIALS), 0, 4),
        target=jax.random.randint(keys[7], (n, TRIALS), 0, 2), opens=jax.random.randint(keys[8], (n,), 0, 3),
        pairs=jax.random.bernoulli(keys[9], 0.3, (n,)),
    )  # fmt: skip


def attack(key: jax.Array, n: int) -> Streams:
    """Bold candidates on fair coins, 1024 streams a start; one opens when the last has lost, or after a run."""
    x = sample(key, 1024 * n)
    fair = jnp.zeros_like(x.source).at[:, :, -1].set(-jnp.inf)
    return dataclasses.replace(
        x, source=fair, kind=jnp.full_like(x.kind, BOLD), pairs=jnp.zeros_like(x.pairs),
        opens=jnp.where(x.opens == RUN, RUN, FAILED),
    )  # fmt: skip


def recruits(x: Streams, reuse: bool = False) -> tuple[jax.Array, jax.Array]:
    """Whether rule (a) and rule (b) ever recruit, bool [n] each.

    Args:
      reuse: a failed trial opens again under the number it had.
    """
    return jax.lax.map(partial(_stream, reuse=reuse), x, batch_size=BATCH)


def _stream(x: Streams, reuse: bool):
    model = jax.nn.softmax(x.source)
    fixed = jax.nn.softmax(x.wrong)
    slots = jnp.arange(TRIALS)
    length = jnp.where(x.pairs, jnp.repeat(NUMBERS, 2)[:TRIALS] + 1, NUMBERS)
    alpha = jnp.array(ALPHAS)[x.alpha]
    needed = evidence.threshold_bits(length, alpha)

    def step(carry, now):
        llr, since, counts, opened, last, by_one, by_sum = carry
        t, u = now
        p0 = model[last]
        cut = jnp.cumsum(p0)
        symbol = (u * cut[-1] >= cut).sum()
        p = _predicted(x, p0, symbol, llr, needed, fixed, since, counts)
        llr = jnp.where(slots < opened, llr + jnp.log2(p / p0[symbol]), -jnp.inf)
        counts = counts.at[symbol].add(1.0)
        by_one |= evidence.sufficient(llr, length, alpha).any()
        by_sum |= evidence.sufficient_together(llr, length, alpha)

        newest = llr[jnp.maximum(opened - 1, 0)]
        due = jnp.stack([t % 6 == 0, symbol == last, (opened == 0) | (newest < -1)])[x.opens]
        more = jnp.where(due, jnp.minimum(TRIALS, opened + 1 + x.pairs), opened)
        new = (slots >= opened) & (slots < more)
        if reuse:
            new |= (slots < opened) & (llr < -1)
        llr = jnp.where(new, 0.0, llr)
        since = jnp.where(new[:, None], counts, since)
        return (llr, since, counts, more, symbol, by_one, by_sum), None

    zero = jnp.zeros(SYMBOLS)
    begin = (jnp.full(TRIALS, -jnp.inf), jnp.zeros((TRIALS, SYMBOLS)), zero, 0, 0, False, False)
    draws = jnp.arange(STEPS), jax.random.uniform(x.key, (STEPS,))
    return jax.lax.scan(step, begin, draws)[0][-2:]


def _predicted(x: Streams, p0, symbol, llr, needed, fixed, since, counts):
    """p_c of the symbol that came, for every trial."""
    seen = counts - since
    learned = (seen[:, symbol] + 0.5) / (seen.sum(1) + SYMBOLS / 2)
    hindsight = (counts[symbol] + 0.5) / (counts.sum() + SYMBOLS / 2)
    on_target = p0[x.target]
    # All on the target, but no more than takes the evidence to its threshold; the rest as the incumbent has it.
    bet = jnp.minimum(1.0, on_target * jnp.exp2(jnp.minimum(needed - llr, 100.0)) * (1 + 1e-12))
    other = (1 - bet) * p0[symbol] / jnp.where(on_target < 1, 1 - on_target, 1.0)
    bold = jnp.where(x.target == symbol, bet, other)
    each = [jnp.broadcast_to(p, (TRIALS,)) for p in (learned, hindsight, fixed[symbol], bold)]
    return jnp.stack(each)[x.kind, jnp.arange(TRIALS)]

"""Two-part codes of short binary texts, and a search that moves while they shrink: the models of T12.

A model cuts a binary text of N symbols into segments; a segment has one table of counts, or with memory two,
one after each symbol. Symbols are coded prequentially (Krichevsky–Trofimov); L(model) = the universal code of the
number of segments + log N for the end of each + log N for memory or −log(1−1/N) for none. A block is a table.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits
from localist_jax.hierarchy.account import accepts
from localist_jax.types import struct
from proofs_check.theorem import pick

SYMBOLS = 12
CUTS, MOVES = SYMBOLS - 1, 2 * SYMBOLS - 1  # a move toggles a cut, or the memory of what starts at a place
BLOCK_BITS = float(np.log2(SYMBOLS))  # ℓ_min


@struct
class Searches:
    """n texts, the models they start with, and the order of proposals.

    Attributes:
      text: int [n, N]. model: bool [n, MOVES], cuts before places 1 … N−1, then memory for places 0 … N−1.
      order: int [n, MOVES], a permutation. epsilon: ε [n], bits.
    """

    text: chex.Array
    model: chex.Array
    order: chex.Array
    epsilon: chex.Array


@struct
class Found:
    """Where a search stands: the model, its J, accepted moves, proposals made, rejected since the last move, the
    smallest accepted fall, and the model after one pass.
    """

    model: chex.Array
    length: chex.Array
    moves: chex.Array
    made: chex.Array
    rejected: chex.Array
    smallest: chex.Array
    one_pass: chex.Array


def sample(key: jax.Array, n: int) -> Searches:
    """Coins, halves, alternating and constant texts; models that start empty, full or random; ε from 0.001 to 30."""
    keys = jax.random.split(key, 8)
    coin = jax.random.bernoulli(keys[0], jax.random.uniform(keys[1], (n, 1)), (n, SYMBOLS))
    place = jnp.broadcast_to(jnp.arange(SYMBOLS), (n, SYMBOLS))
    halves = (place >= SYMBOLS // 2) ^ (coin & (place % 5 == 0))
    mixed = jnp.where(place < SYMBOLS // 2, place % 2, coin)
    some = jax.random.bernoulli(keys[2], jax.random.uniform(keys[3], (n, 1)), (n, MOVES))
    return Searches(
        text=pick(keys[4], n, (coin, halves, place % 2, mixed, jnp.zeros((n, SYMBOLS)))).astype(int),
        model=pick(keys[6], n, (some, jnp.zeros((n, MOVES)), jnp.ones((n, MOVES)))) > 0,
        order=jnp.argsort(jax.random.uniform(keys[5], (n, MOVES)), 1),
        epsilon=10.0 ** jax.random.uniform(keys[7], (n,), minval=-3.0, maxval=1.5),
    )  # fmt: skip


@jax.jit
def description(text, model):
    """J in bits and the number of blocks, [n]."""
    n = len(text)
    starts = jnp.concatenate([jnp.ones((n, 1), bool), model[:, :CUTS]], 1)

    def step(carry, now):
        tables, remembers, previous = carry
        symbol, start, memory = now
        remembers = jnp.where(start, memory, remembers)
        tables = jnp.where(start, 0.0, tables)  # [context, symbol, n]
        context = remembers & ~start & (previous == 1)
        counts = jnp.where(context, tables[1], tables[0])
        code = jnp.log2(counts.sum(0) + 1) - jnp.log2(jnp.where(symbol == 1, counts[1], counts[0]) + 0.5)
        seen = jnp.stack([symbol == 0, symbol == 1]).astype(float)
        tables = tables + jnp.stack([~context, context])[:, None] * seen
        return (tables, remembers, symbol), code

    begin = jnp.zeros((2, 2, n)), jnp.zeros(n, bool), jnp.zeros(n, int)
    codes = jax.lax.scan(step, begin, (text.T, starts.T, model[:, CUTS:].T))[1]
    segments = starts.sum(1)
    remembering = (starts & model[:, CUTS:]).sum(1)
    universal = jnp.array([0.0] + [bits.integer_code_length(k) for k in range(1, SYMBOLS + 1)])
    without = -np.log2(1 - 1 / SYMBOLS)
    structure = (
        universal[segments] + (segments + remembering) * BLOCK_BITS + (segments - remembering) * without
    )
    return codes.sum(0) + structure, segments + remembering


@jax.jit
def search(x: Searches) -> Found:
    """Proposes moves in the given order, again and again, until all were rejected since the last accepted one."""
    n = len(x.text)
    zero = jnp.zeros(n, int)

    def step(now: Found) -> Found:
        running = now.rejected < MOVES
        move = jnp.take_along_axis(x.order, (now.made % MOVES)[:, None], 1)
        proposed = now.model ^ (jnp.arange(MOVES) == move)
        length, _ = description(x.text, proposed)
        accept = running & accepts(now.length, length, x.epsilon)
        model = jnp.where(accept[:, None], proposed, now.model)
        made = now.made + running
        return Found(
            model=model, length=jnp.where(accept, length, now.length), moves=now.moves + accept, made=made,
            rejected=jnp.where(accept, 0, now.rejected + 1),
            smallest=jnp.where(accept, jnp.minimum(now.smallest, now.length - length), now.smallest),
            one_pass=jnp.where((made <= MOVES)[:, None], model, now.one_pass),
        )  # fmt: skip

    begin = Found(
        model=x.model, length=description(x.text, x.model)[0], moves=zero, made=zero, rejected=zero,
        smallest=jnp.full(n, jnp.inf), one_pass=x.model,
    )  # fmt: skip
    return jax.lax.while_loop(lambda now: (now.rejected < MOVES).any(), step, begin)


@jax.jit
def on_offer(text, model):
    """The lowest J that one more move would reach."""
    flips = model[None] ^ jnp.eye(MOVES, dtype=bool)[:, None]
    return jax.lax.map(lambda proposed: description(text, proposed)[0], flips).min(0)

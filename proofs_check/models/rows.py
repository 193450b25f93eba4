"""One query and the keys it sees: the instances of T1–T4 and T7′, read by the library's own `attend`."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.attention import AttentionStats, attend
from localist_jax.locality import Dial
from localist_jax.locality import gates as gating
from localist_jax.report import collect
from localist_jax.training.run import Run
from localist_jax.training.state import GATES, at_path
from localist_jax.types import struct
from proofs_check.theorem import pick

KEYS, BLOCKS = 12, 4
QUERY_BLOCK = 1


@struct
class Rows:
    """n queries with S keys each; the last key is the position itself.

    Attributes:
      logits: s [n, S], nats.
      block: int [n, S], semantic block of each key; block 0 is open to everyone.
      gates: A[query block, ·] ∈ [0, 1], [n, K]; booleans are binary gates, which no attack moves.
      locality: λ [n]; clipped to [0, 1].
      hidden: int [n], how many of the first keys the query does not see.
      values: v [n, S].
    """

    logits: chex.Array
    block: chex.Array
    gates: chex.Array
    locality: chex.Array
    hidden: chex.Array
    values: chex.Array

    @property
    def visible(self) -> jax.Array:
        """bool [n, S]."""
        return jnp.arange(self.logits.shape[1]) >= self.hidden[:, None]

    @property
    def relevant(self) -> jax.Array:
        """R: visible keys with an open gate, in block 0, or the position itself; bool [n, S]."""
        own = jnp.take_along_axis(self.gates > 0, self.block, 1)
        last = jnp.arange(self.logits.shape[1]) == self.logits.shape[1] - 1
        return self.visible & (own | (self.block == 0) | last)

    @property
    def irrelevant(self) -> jax.Array:
        """U = V∖R; bool [n, S]."""
        return self.visible & ~self.relevant

    @property
    def beta(self) -> jax.Array:
        """β = −ln(1−λ) [n], by the library's dial."""
        return Dial(jnp.clip(self.locality, 0, 1)[:, None, None]).beta[:, 0, 0]

    def at(self, locality) -> Rows:
        """The same rows at another dial."""
        return dataclasses.replace(self, locality=jnp.broadcast_to(locality, self.locality.shape))


@struct
class Read:
    """The results of `attend` on some rows: α [n, S], output o [n], odds ω [n, S], statistics [n]."""

    alpha: chex.Array
    out: chex.Array
    omega: chex.Array
    stats: AttentionStats

    def mass(self, keys) -> jax.Array:
        """α's mass on some keys."""
        return jnp.where(keys, self.alpha, 0.0).sum(1)


def read(rows: Rows, added: chex.Array | None = None) -> Read:
    """Runs the library: dial → odds → attend, one query per instance, one head of size 1.

    Args:
      rows: the queries.
      added: nats by which the odds of each key block are raised, [n, K] (T18); None: none.
    """
    (n, S), K = rows.logits.shape, rows.gates.shape[1]
    square = jnp.zeros((n, 1, K, K)).at[:, 0, QUERY_BLOCK].set(jnp.clip(rows.gates.astype(float), 0, 1))
    odds = jax.vmap(gating.odds)(square, rows.beta[:, None, None])[:, 0]
    odds = odds if added is None else odds * jnp.exp(added)[:, None, None]
    relevant = jax.vmap(gating.relevant)(square)
    eye = jnp.broadcast_to(jnp.eye(S), (n, S, S))
    last = jnp.full((n, 1), S - 1)
    positions = jnp.broadcast_to(jnp.arange(S), (n, S))
    out, stats = attend(
        jnp.ones((n, 1, 1, 1)), rows.logits[..., None, None],
        jnp.concatenate([eye, rows.values[..., None]], -1)[:, :, None],
        q_block=jnp.full((n, 1), QUERY_BLOCK), k_block=rows.block, q_pos=last, k_pos=positions,
        q_seg=jnp.ones((n, 1), int), k_seg=rows.visible.astype(int), odds=odds, relevant=relevant, stats="dense",
    )  # fmt: skip
    own = odds[:, 0, QUERY_BLOCK]
    omega = jnp.take_along_axis(own, rows.block, 1).at[:, -1].set(1.0)
    return Read(
        alpha=out[:, 0, 0, :S],
        out=out[:, 0, 0, S],
        omega=omega,
        stats=jax.tree.map(lambda x: x[:, 0, 0], stats),
    )


def counts(rows: Rows) -> tuple[jax.Array, jax.Array]:
    """b = |R| and u = |U|, as floats [n]."""
    return rows.relevant.sum(1).astype(float), rows.irrelevant.sum(1).astype(float)


def margin(rows: Rows) -> jax.Array:
    """δ: the smallest logit on R less the largest on U, nats [n]; ∞ without U."""
    low = jnp.where(rows.relevant, rows.logits, jnp.inf).min(1)
    return low - jnp.where(rows.irrelevant, rows.logits, -jnp.inf).max(1)


def part_mean(keys, logits, values) -> jax.Array:
    """Average of values under softmax(logits) on some keys, [n]."""
    top = jnp.where(keys, logits, -jnp.inf).max(1, keepdims=True)
    weight = jnp.where(keys, jnp.exp(jnp.where(keys, logits - top, 0.0)), 0.0)
    return (weight * values).sum(1) / jnp.maximum(weight.sum(1), 1e-300)


def sample(key: jax.Array, n: int, *, graded: bool = False) -> Rows:
    """Rows over wide ranges: logits from 0.01 to 300 nats, ties, single keys, all open, all closed, λ = 0 and 1."""
    keys = jax.random.split(key, 9)
    scale = 10.0 ** jax.random.uniform(keys[0], (n, 1), minval=-2.0, maxval=2.5)
    normal = scale * jax.random.normal(keys[1], (n, KEYS))
    logits = pick(keys[2], n, (normal, normal, normal, jnp.round(normal / scale), jnp.zeros((n, KEYS))))
    u = jax.random.uniform(keys[3], (n,))
    locality = pick(keys[4], n, (u, u, -jnp.expm1(-30 * u), 1 - 1e-12 * u, jnp.zeros(n), jnp.ones(n)))
    hidden = pick(keys[5], n, (jnp.floor(u * KEYS), jnp.zeros(n), jnp.full(n, KEYS - 1.0))).astype(int)
    open_ = jax.random.bernoulli(keys[6], 0.5, (n, BLOCKS))
    if graded:
        half = jax.random.uniform(keys[7], (n, BLOCKS))
        gates = pick(keys[8], n, (half * open_, half, open_, jnp.zeros((n, BLOCKS)), jnp.ones((n, BLOCKS))))
    else:
        gates = pick(keys[8], n, (open_, open_, open_, jnp.zeros((n, BLOCKS)), jnp.ones((n, BLOCKS)))) > 0
    return Rows(
        logits=logits, block=jax.random.randint(keys[7], (n, KEYS), 0, BLOCKS), gates=gates, locality=locality,
        hidden=hidden, values=jax.random.normal(keys[3], (n, KEYS)),
    )  # fmt: skip


def constant(relevant: int, irrelevant: int, gap: float, locality: float, gate: float | bool = True) -> Rows:
    """One row whose logits are `gap` on R and 0 on U: where the bounds of T3, T4 and T7′ are attained."""
    n = relevant + irrelevant
    block = jnp.concatenate([jnp.full(irrelevant, 2), jnp.full(relevant, 3)])[None]
    gates = jnp.zeros((1, BLOCKS)).at[0, 3].set(gate)
    return Rows(
        logits=jnp.where(block == 3, gap, 0.0), block=block, gates=gates > 0 if gate is True else gates,
        locality=jnp.array([locality]), hidden=jnp.zeros(1, int), values=jnp.linspace(-1, 1, n)[None],
    )  # fmt: skip


def of_run(run: Run, count: int = 768, tokens: int = 72) -> Rows:
    """Queries of a trained run on held-out text: its logits, its blocks, and which of its gates are open.

    Logits are those of the dense attention, ln α(0), in localist layers; keys inside the window count as
    block 0, which is open to everyone; a gate counts as open where it is above 0.
    """
    with jax.enable_x64(False):  # as it was trained
        figures, attention = collect.inspect(run, collect.opening(run, tokens), Dial(0.0))
    first, window = run.settings.model.router_layer, run.settings.model.window
    gates = np.asarray(at_path(run.state.params, GATES)) > 0
    rng = np.random.default_rng(0)
    ids = np.asarray(figures["blocks"])
    layer, head, query = (rng.integers(0, size, count) for size in (*gates.shape[:2], ids.size))
    at = query[:, None] - np.arange(ids.size)[::-1]  # the query itself comes last
    seen, at = at >= 0, np.maximum(at, 0)
    far = seen & (query[:, None] - at >= window)
    alpha = np.take_along_axis(attention[first + layer, head, query].astype(float), at, 1)
    return Rows(
        logits=jnp.asarray(np.where(seen, np.log(np.maximum(alpha, 1e-45)), 0.0)),
        block=jnp.asarray(np.where(far, ids[at], 0)),
        gates=jnp.asarray(gates[layer, head, ids[query]]),
        locality=jnp.asarray(rng.choice([0.0, 0.5, 0.9, 0.99, 0.999, 1.0], count)),
        hidden=jnp.asarray((~seen).sum(1)),
        values=jnp.asarray(rng.normal(size=at.shape)),
    )

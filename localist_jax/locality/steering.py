"""Steering: rules direct attention to chosen positions, in addition to the dial and the learned gates.

Keys are assigned to *groups*: 1 … R are positions that rules point to, 0 is all others. A query in scope of a rule uses
a separate row of odds: the rule's gates replace the learned ones, the rule's log-odds are added to the dial's (dials
compose by summing β), and optionally a *gain* in nats raises the groups' odds above 1. All of it is traced and of fixed
capacity, so rules can change without recompiling.

A gain is needed because self, sink and window stay open under every gate: gates alone bound the mass on the anchors
and these together (T3 with R = all of them), and guarantee nothing about the anchors. With odds e^γ on the anchors,
T3's bound for a target set T holds with margins δ + γ, and with |s| ≤ S (T5) some γ guarantees any share below 1 for
every input.
"""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from localist_jax.types import struct

GROUPS = 4  # R, the number of groups that rules may point to
MOST_GAIN = 80.0  # nats; e^80 still fits a float32


@struct
class LayerSteering:
    """The fields of `Steering` that act in one layer, without the layer axis."""

    acts: chex.Array
    gate: chex.Array
    beta: chex.Array
    gain: chex.Array


@struct
class Steering:
    """The attention rules of a batch of requests at one step.

    Attributes:
      since: int32 [B]; queries from this position on are in scope.
      group: int32 [B, S]; group of the key at each position, 0 … R.
      acts: bool [B, L, N]; which layers and heads are in scope.
      gate: float32 [B, L, N, R]; 1 where a rule points to the group, else 0.
      beta: float32 [B, L, N]; log-odds of the rules' dials, nats.
      gain: float32 [B, L, N]; ln of the odds of groups that a rule points to.
    """

    since: chex.Array
    group: chex.Array
    acts: chex.Array
    gate: chex.Array
    beta: chex.Array
    gain: chex.Array

    @classmethod
    def none(cls, batch: int, layers: int, heads: int, positions: int) -> Steering:
        """Return a steering in which no rule acts, as NumPy arrays to be filled in."""
        by_head = (batch, layers, heads)
        return cls(
            since=np.zeros(batch, np.int32),
            group=np.zeros((batch, positions), np.int32),
            acts=np.zeros(by_head, bool),
            gate=np.zeros((*by_head, GROUPS), np.float32),
            beta=np.zeros(by_head, np.float32),
            gain=np.zeros(by_head, np.float32),
        )

    def layers(self, first: int) -> LayerSteering:
        """Return the layers from `first` on, with the layer axis in front."""
        parts = (jnp.moveaxis(x[:, first:], 1, 0) for x in (self.acts, self.gate, self.beta, self.gain))
        return LayerSteering(**dict(zip(("acts", "gate", "beta", "gain"), parts, strict=True)))


def query_rows(block: Int[Array, "B T"], in_scope: Bool[Array, "B T"], blocks: int) -> Int[Array, "B T"]:
    """Return each query's row of the odds: its own block, or in scope that block's second row."""
    return block + blocks * in_scope


def key_columns(
    block: Int[Array, "B *S"], positions: Int[Array, "B *S"], group: Int[Array, "B P"], blocks: int
) -> Int[Array, "B *S"]:
    """Return each key's column of the odds; there are K for each group."""
    rows = jnp.arange(len(group)).reshape(-1, *[1] * (positions.ndim - 1))
    return block + blocks * group[rows, positions]


def own_row(table: Shaped[Array, "#B N K K"], block: Int[Array, "B 1"]) -> Shaped[Array, "B N 1 K"]:
    """Return the row of odds or of relevance that each query uses."""
    table = jnp.broadcast_to(table, (len(block), *table.shape[1:]))
    return jnp.take_along_axis(table, block[:, :, None, None], 2)


def steered(
    odds: Float[Array, "B N Q K"],
    relevant: Bool[Array, "#B N Q K"],
    beta: Float[Array, "B N"],
    rules: LayerSteering,
) -> tuple[Float[Array, "B N Q2 KR"], Bool[Array, "B N Q2 KR"]]:
    """Return odds and relevance with a second row per block (for queries in scope) and K columns per group.

    In scope the odds are 1 on column 0 (the sink), e^γ on groups that a rule points to, else e^{−(β + β_rule)}.
    """
    K, R = odds.shape[-1], rules.gate.shape[-1]
    odds = jnp.tile(odds, (1, 1, 1, 1 + R))
    relevant = jnp.broadcast_to(jnp.tile(relevant, (1, 1, 1, 1 + R)), odds.shape)
    closed = jnp.exp(-(beta + rules.beta))[..., None]
    pointed = rules.gate > 0
    groups = jnp.where(pointed, jnp.exp(rules.gain)[..., None], closed)
    by_column = jnp.repeat(jnp.concatenate([closed, groups], -1), K, -1).at[..., 0].set(1.0)
    in_groups = jnp.repeat(jnp.pad(pointed, ((0, 0), (0, 0), (1, 0))), K, -1).at[..., 0].set(True)
    acts = rules.acts[..., None, None]
    own = jnp.where(acts, by_column[:, :, None], odds)
    own_relevant = jnp.where(acts, in_groups[:, :, None], relevant)
    return jnp.concatenate([odds, own], 2), jnp.concatenate([relevant, own_relevant], 2)

"""Measures of dialled attention: entropy, fidelity, price, open share.

Functions on rows take attention weights α over the last axis, and define the statistics that every implementation of
`attend` reports. Attention bits and code-length bits must not be added up.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from localist_jax import bits


def attention_entropy(alpha: Float[Array, "*rows S"]) -> Float[Array, "*rows"]:
    """Return H(α) in bits (T4)."""
    return bits.entropy(alpha)


def pointer_fidelity(
    alpha: Float[Array, "*rows S"], relevant: Bool[Array, "*rows S"]
) -> Float[Array, "*rows"]:
    """Return F, the mass on the relevant keys (T3)."""
    return jnp.where(relevant, alpha, 0.0).sum(-1)


def price_of_locality(
    alpha: Float[Array, "*rows S"], omega: Float[Array, "*rows S"], log_partition_ratio: Float[Array, "*rows"]
) -> Float[Array, "*rows"]:
    """Return KL(α(λ) ‖ α(0)) = E_{α(λ)} log ω − log E_{α(0)} ω in bits (T2).

    Args:
      alpha: dialled attention α(λ).
      omega: odds ω of each key.
      log_partition_ratio: ln E_{α(0)} ω = lse(s + ln ω) − lse(s), nats.
    """
    inside = jnp.where(alpha > 0, alpha * jnp.log2(jnp.where(alpha > 0, omega, 1.0)), 0.0)
    return inside.sum(-1) - bits.from_nats(log_partition_ratio)


def pair_counts(
    blocks: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: int,
    capacity: int,
    filed: Int[Array, "B F T"] | None = None,
) -> tuple[Float[Array, "*F K K"], Float[Array, "*F"], Float[Array, ""]]:
    """Count causal query–key pairs by block without a [T, T] array.

    Args:
      blocks, positions, segments: block, position and segment of each token; positions count from 0 in each segment
        (the first are the sink, in block 0), segments are contiguous, segment 0 is padding.
      window: keys nearer than this are always open.
      capacity: K.
      filed: blocks of the keys under each filing; None: their own, and the results have no axis for filings.

    Returns:
      gated: pairs that a gate decides, by (query block, key block): beyond the window, not the sink.
      always: pairs that are open whatever the gates (self, window, block 0).
      total: all causal pairs.
    """
    valid = segments > 0

    def members(block):
        return jnp.where(valid[..., None], jax.nn.one_hot(block, capacity), 0.0)

    def decided(block):
        return jnp.einsum("BTk,BTl->kl", members(blocks), _far_keys(members(block), positions, window))

    gated = decided(blocks) if filed is None else jax.vmap(decided, 1)(filed)
    total = jnp.where(valid, positions + 1, 0).sum().astype(jnp.float32)
    return gated, total - gated.sum((-2, -1)), total


def open_keys(
    gates: Float[Array, "L N K K"],
    blocks: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: int,
    filed: Int[Array, "B F T"] | None = None,
    filing: Int[Array, "L N"] | None = None,
) -> Float[Array, "L B N T"]:
    """Return how many keys are open to each query at λ=1; its log₂ bounds the entropy of attention (T4).

    Args:
      gates: gates of the localist layers.
      blocks, positions, segments, window, filed: as in `pair_counts`.
      filing: filing of each localist layer and query head; None: all use the first.
    """
    filed = blocks[:, None] if filed is None else filed
    filing = jnp.zeros(gates.shape[:2], jnp.int32) if filing is None else filing
    valid = (segments > 0)[:, None, :, None]
    one_hot = jnp.where(valid, jax.nn.one_hot(filed, gates.shape[-1]), 0.0)
    far = jax.vmap(lambda x: _far_keys(x, positions, window), 1)(one_hot)  # [F, B, T, K]
    always = positions + 1 - far.sum(-1)  # [F, B, T]

    def one_layer(layer):
        opened, filing_of_head = (layer[0] > 0).astype(jnp.float32)[:, blocks], layer[1]  # [N, B, T, K]
        return (jnp.einsum("NBTk,NBTk->NBT", opened, far[filing_of_head]) + always[filing_of_head]).swapaxes(
            0, 1
        )

    return jax.lax.map(one_layer, (gates, filing))


def _far_keys(
    one_hot: Float[Array, "B T K"], positions: Int[Array, "B T"], window: int
) -> Float[Array, "B T K"]:
    """Count the keys that a gate decides, by block: beyond the window and not in block 0."""
    padded = jnp.pad(jnp.cumsum(one_hot, 1), ((0, 0), (1, 0), (0, 0)))
    index = jnp.arange(one_hot.shape[1])
    start = index - positions  # where the segment begins
    end = jnp.maximum(index - window + 1, start)  # keys in [start, end) lie beyond the window
    take = jax.vmap(lambda rows, index: rows[index])
    return (take(padded, end) - take(padded, start)).at[..., 0].set(0.0)


def open_share(
    gates: Float[Array, "L N K K"],
    gated_pairs: Float[Array, "*F K K"],
    always: Float[Array, "*F"],
    total: Float[Array, ""],
    perception: Float[Array, " P"],
    filing: Int[Array, "L N"] | None = None,
) -> Float[Array, ""]:
    """Return the share of causal pairs with non-zero odds at λ=1, over *all* layers and heads.

    Args:
      gates: gates of the localist layers.
      gated_pairs, always, total: from `pair_counts`.
      perception: open share of each perception layer (1 where dense).
      filing: filing of each localist layer and query head, if pairs were counted for each filing.
    """
    if filing is None:
        gated_pairs, always = gated_pairs[None], always[None]
        filing = jnp.zeros(gates.shape[:2], jnp.int32)
    each = jnp.einsum("LNkl,Fkl->FLN", (gates > 0).astype(jnp.float32), gated_pairs) + always[:, None, None]
    chosen = jnp.take_along_axis(each, filing[None], 0)[0]
    localist = chosen.mean(1) / jnp.maximum(total, 1.0)
    return jnp.concatenate([perception, localist]).mean()

"""The semantic router's mathematics: from logits to one block per position.

The forward pass assigns hard, the backward pass uses the gradient of the soft assignment (straight-through). Training
adds Gumbel noise, evaluation takes the argmax. The learned map from states to logits is in the model.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from localist_jax import bits
from localist_jax.locality import lineage
from localist_jax.locality.anchors import Blocks
from localist_jax.types import Key, widened

FORBIDDEN = -1e9  # logit of a block that may not be chosen; its probability is exactly 0 in float32
CERTAIN = 1e9  # logit of a block that is given, not chosen


def allowed_blocks(active: Bool[Array, " K"], background: bool) -> Bool[Array, " K"]:
    """Return the blocks that the router may choose: the active ones, and block 0 only if it is the background."""
    return active & (background | (jnp.arange(active.size) > 0))


def assign(
    logits: Float[Array, "B T K"],
    allowed: Bool[Array, " K"],
    blocks: Blocks,
    *,
    key: Key | None = None,
    noise: float = 1.0,
) -> tuple[Int[Array, "B T"], Float[Array, "B T K"], Float[Array, "B T K"]]:
    """Assign a block to every position.

    Args:
      logits: router logits, nats.
      allowed: blocks that may be chosen.
      blocks: the blocks, whose tree decides which positions a child may take.
      key: adds noise·Gumbel to the logits; None takes the argmax.

    Returns:
      ids: int32 block of each position.
      route: one-hot of `ids` whose gradient is that of the soft probabilities.
      probs: softmax of the logits without noise, for usage terms and reports.
    """

    def nested(z: jax.Array) -> jax.Array:
        return jnp.where(allowed, lineage.nested(z, blocks.parent, blocks.born, blocks.active), FORBIDDEN)

    logits = widened(logits)
    probs = jax.nn.softmax(nested(logits))
    noisy = nested(logits if key is None else logits + noise * jax.random.gumbel(key, logits.shape))
    ids = jnp.argmax(noisy, -1).astype(jnp.int32)
    soft = jax.nn.softmax(noisy)
    hard = jax.nn.one_hot(ids, logits.shape[-1])
    return ids, hard + (soft - jax.lax.stop_gradient(soft)), probs


def best_cell(
    logits: Float[Array, "B T C"], block_of_cell: Int[Array, " C"], blocks: int
) -> Float[Array, "B T K"]:
    """Return each block's logit: the largest among its cells, or `FORBIDDEN` for a block without cells.

    A position is then in the block of its best cell, so dividing a block moves no position of another.
    """
    best = jax.ops.segment_max(jnp.moveaxis(logits, -1, 0), block_of_cell, blocks)
    return jnp.maximum(jnp.moveaxis(best, 0, -1), FORBIDDEN)


def with_sink(
    ids: Int[Array, "B T"], route: Float[Array, "B T K"], is_sink: Bool[Array, "B T"]
) -> tuple[Int[Array, "B T"], Float[Array, "B T K"]]:
    """Assign the positions of the sink (the first of a text) to block 0 whatever the router says."""
    sink = jax.nn.one_hot(0, route.shape[-1])
    return jnp.where(is_sink, 0, ids), jnp.where(is_sink[..., None], sink, route)


def usage(probs: Float[Array, "B T K"], valid: Bool[Array, "B T"]) -> Float[Array, " K"]:
    """Return the mean probability of each block over the valid positions."""
    total = jnp.where(valid[..., None], probs, 0.0).sum((0, 1))
    return total / jnp.maximum(1, valid.sum())


def usage_penalty(share: Float[Array, " K"], allowed: Bool[Array, " K"], floor: float) -> Float[Array, ""]:
    """Return the mean of max(0, ln(floor/K) − ln usage_k) over the K allowed blocks.

    It is zero once every block reaches the floor. It does not balance blocks uniformly, since that would work against
    concepts of unequal frequency.
    """
    if floor == 0:
        return jnp.zeros(())
    count = allowed.sum()
    lack = jnp.log(floor / count) - jnp.log(jnp.where(allowed, share, 1.0) + 1e-6)
    return jnp.where(allowed, jnp.maximum(lack, 0.0), 0.0).sum() / count


def doubt(probs: Float[Array, "B T K"], valid: Bool[Array, "B T"]) -> Float[Array, ""]:
    """Return the mean entropy of the router's probabilities, H(block | state), in nats.

    If it is low, the soft usage that the floor constrains equals the hard usage that the model runs with. Together the
    two terms raise I(block; state) = H(block) − H(block | state).
    """
    entropy = bits.to_nats(bits.entropy(probs))
    return jnp.where(valid, entropy, 0.0).sum() / jnp.maximum(1, valid.sum())


def switching(probs: Float[Array, "B T K"], together: Bool[Array, "B T-1"]) -> Float[Array, ""]:
    """Return the probability that neighbours in the text are in different blocks, each drawn from its probabilities.

    Penalising it makes blocks last longer than a word: of two divisions of equal value to the model, by topic or by
    word, the router then learns the topic.

    Args:
      probs: probability of each block at every position.
      together: whether positions t and t + 1 belong to one text.
    """
    apart = 1 - (probs[:, 1:] * probs[:, :-1]).sum(-1)
    return jnp.where(together, apart, 0.0).sum() / jnp.maximum(1, together.sum())

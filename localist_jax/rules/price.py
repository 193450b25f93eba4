"""What a rule costs, in code-length bits (T14)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from localist_jax import bits
from localist_jax.types import widened


def condition(
    logits: Float[Array, "B V"], allowed: Bool[Array, "B V"], bias_bits: Float[Array, "B V"] | None = None
) -> tuple[Float[Array, "B V"], Float[Array, " B"], Bool[Array, " B"]]:
    """The distribution nearest to the model's that obeys, and the price of it (T14).

    q ∝ p · 2^bias on the allowed tokens and exactly 0 elsewhere; the price is KL(q‖p), which without bias is
    −log₂ P(allowed).

    Args:
      logits: of p; −∞ is probability 0.
      allowed: which tokens obey.
      bias_bits: preferences; None or 0: none.

    Returns:
      Logits of q (−∞ where it is 0), price in bits, and whether it is possible at all. Where P(allowed) = 0 nothing
      is: the price is ∞, and the logits are those of p, so that no NaN is ever drawn from.
    """
    logits = widened(logits)
    p = jax.nn.softmax(logits)
    kept = jnp.where(allowed, p, 0.0)
    mass = kept.sum(-1)
    possible = mass > 0
    free = logits if bias_bits is None else logits + bits.to_nats(bias_bits)
    free = jnp.where(allowed, free, -jnp.inf)
    if bias_bits is None:
        price = -jnp.log2(jnp.where(possible, mass, 1.0))
    else:
        weight = jnp.where(kept > 0, bias_bits, -jnp.inf)
        top = jnp.where(possible, weight.max(-1), 0.0)[:, None]
        tilted = jnp.where(kept > 0, kept * jnp.exp2(jnp.where(kept > 0, bias_bits - top, 0.0)), 0.0)
        total = jnp.where(possible, tilted.sum(-1), 1.0)
        gain = (tilted * jnp.where(kept > 0, bias_bits, 0.0)).sum(-1) / total
        price = gain - jnp.log2(total) - top[:, 0]
    price = jnp.where(possible, jnp.maximum(price, 0.0), jnp.inf)
    return jnp.where(possible[:, None], free, logits), price, possible

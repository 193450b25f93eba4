"""The price of a rule, in code-length bits (T14)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from localist_jax import bits
from localist_jax.types import widened


def condition(
    logits: Float[Array, "*B V"],
    allowed: Bool[Array, "*B V"],
    bias_bits: Float[Array, "*B V"] | None = None,
) -> tuple[Float[Array, "*B V"], Float[Array, "*B"], Bool[Array, "*B"]]:
    """The distribution nearest to the model's that obeys, and the price of it (T14).

    q ∝ p · 2^bias on the allowed tokens and exactly 0 elsewhere; the price is KL(q‖p) = E_q bias + log₂ Σp −
    log₂ Σ_allowed p·2^bias, without bias −log₂ P(allowed); in log space, so that no small probability becomes 0.

    Args:
      logits: of p; −∞ is probability 0.
      allowed: which tokens obey.
      bias_bits: preferences; None or 0: none.

    Returns:
      Logits of q (−∞ where it is 0), price in bits, and whether it is possible at all. Where P(allowed) = 0 nothing
      is: the price is ∞, and the logits are those of p, so that no NaN is ever drawn from.
    """
    logits = widened(logits)
    possible = (allowed & jnp.isfinite(logits)).any(-1)
    free = logits if bias_bits is None else logits + bits.to_nats(bias_bits)
    free = jnp.where(allowed, free, -jnp.inf)
    free = jnp.where(possible[..., None], free, logits)
    price = bits.from_nats(jax.nn.logsumexp(logits, -1) - jax.nn.logsumexp(free, -1))
    if bias_bits is not None:
        price = price + (jax.nn.softmax(free) * bias_bits).sum(-1)
    return free, jnp.where(possible, jnp.maximum(price, 0.0), jnp.inf), possible

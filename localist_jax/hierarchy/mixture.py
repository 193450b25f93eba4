"""Mixtures of LLMs: weights that follow the evidence, and what it costs not to know which LLM is right (T13).

M LLMs code T tokens with l_t(m) bits. A mixture codes token t with −log₂ Σ_m v_t(m)·2^{−l_t(m)} bits; its weights v_t
depend on the tokens before alone. By Bayes' rule they stay with the LLM that codes best; a *fixed share* of every
weight, moved to the others before each token, lets them follow a text that changes its domain.

The *coordination cost* is what the mixture takes beyond the LLM (or the sequence of LLMs) that one would have chosen
in hindsight. It is bounded in bits for the whole text, not per token, and all bounds here are exact for every text.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from localist_jax import bits
from localist_jax.types import Numeric


def uniform(members: Bool[Array, "*batch M"]) -> Float[Array, "*batch M"]:
    """Log-prior (nats) that gives equal weight to the LLMs that are members; −∞ to the others."""
    return normalised(jnp.where(members, 0.0, -jnp.inf))


def normalised(log_weights: Float[Array, "*batch M"]) -> Float[Array, "*batch M"]:
    """Log-weights (nats) less their log-sum-exp; −∞ stays −∞, and where all are −∞ nothing changes."""
    return log_weights - _logsumexp(log_weights)[..., None]


def code(
    losses: Float[Array, "*batch T M"],
    log_prior: Float[Array, "*batch M"],
    shares: Float[Array, "*batch T"] | None = None,
) -> tuple[Float[Array, "*batch T"], Float[Array, "*batch T M"]]:
    """Codes texts by a mixture: each token by the weights that the tokens before it gave.

    Args:
      losses: l ≥ 0, bits of each token under each LLM; of an LLM that is no member they are not read.
      log_prior: ln v_1, nats; −∞ for LLMs that are no members.
      shares: σ_t ∈ [0, 1), the share that leaves every weight after token t; None: 0, Bayes' rule.

    Returns:
      bits of each token, and ln v_{t+1}, the log-weights (nats) *after* each token.
    """
    prior = jnp.moveaxis(log_prior, -1, 0)
    member = prior > -jnp.inf
    others = 1 - jnp.eye(prior.shape[0])
    rivals = jnp.maximum(member.sum(0) - 1, 1)

    def step(weights, now):
        loss, share = now
        joint = jnp.where(member, weights - bits.to_nats(loss), -jnp.inf)
        top = joint.max(0)
        each = jnp.exp(joint - top)  # what underflows here is nothing beside the largest
        total = top + jnp.log(each.sum(0))
        if share is not None:
            mass = jnp.einsum("mn,n...->m...", others, each)
            moved = jnp.log(share / rivals) + _log(mass) + top
            joint = jnp.where(member, jnp.logaddexp(jnp.log1p(-share) + joint, moved), -jnp.inf)
        after = joint - total
        return after, (-bits.from_nats(total), after)

    by_time = jnp.moveaxis(losses, (-2, -1), (0, 1)), None if shares is None else jnp.moveaxis(shares, -1, 0)
    length, weights = jax.lax.scan(step, prior, by_time)[1]
    return jnp.moveaxis(length, 0, -1), jnp.moveaxis(weights, (0, 1), (-2, -1))


def tuning_free(tokens: int) -> Float[Array, " T"]:
    """σ_t = 1/(t+1) after t = 1 … T tokens: shares that need no knowledge of how often a text changes."""
    return 1 / (jnp.arange(1, tokens + 1) + 1)


def bayes_bound(
    totals: Float[Array, "*batch M"], log_prior: Float[Array, "*batch M"]
) -> Float[Array, "*batch"]:
    """T13 (a), (d): min_m (L_m + log₂(1/w_m)) over the members, bits; with uniform weights min L_m + log₂ M."""
    member = log_prior > -jnp.inf
    cost = bits.from_nats(-jnp.where(member, log_prior, 0.0))
    return jnp.where(member, totals + cost, jnp.inf).min(-1)


def fixed_share_bound(count: Numeric, switches: Numeric, tokens: Numeric, share: Numeric):
    """T13 (b): coordination bits of a fixed share σ beyond a segmentation with S switches in T tokens.

    log M + S log(M−1) − S log σ − (T−1−S) log(1−σ); also for S switches at the most if σ ≤ (M−1)/M.
    """
    log_others = jnp.log2(jnp.maximum(count - 1, 1))
    stay = (tokens - 1 - switches) * jnp.log2(1 - share)
    return jnp.log2(count) + switches * (log_others - jnp.log2(share)) - stay


def tuning_free_bound(count: Numeric, switched: Bool[Array, "*batch T-1"] | Int[Array, "*batch T-1"]):
    """T13 (c): coordination bits of σ_t = 1/(t+1): log M + S log(M−1) + log T + Σ log t_k.

    Args:
      count: M.
      switched: whether the segmentation changes its LLM after t = 1 … T−1 tokens.
    """
    t = jnp.arange(1, switched.shape[-1] + 1)
    switches, when = switched.sum(-1), jnp.where(switched, jnp.log2(t), 0.0).sum(-1)
    log_others = jnp.log2(jnp.maximum(count - 1, 1))
    return jnp.log2(count) + switches * log_others + jnp.log2(switched.shape[-1] + 1) + when


def _logsumexp(x):
    """Return the log-sum-exp over the last axis; `normalised` takes −∞ (no mass) as 0."""
    top = x.max(-1)
    safe = jnp.where(top > -jnp.inf, top, 0.0)
    total = jnp.exp(x - safe[..., None]).sum(-1)
    return jnp.where(total > 0, safe + _log(total), 0.0)


def _log(x):
    return jnp.where(x > 0, jnp.log(jnp.where(x > 0, x, 1.0)), -jnp.inf)

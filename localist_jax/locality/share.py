"""Shifts of logits that give a set of keys an exact share of the attention, and their price (T18).

A query's attention, dialled or not, puts mass m on a set T of its visible keys. Adding b = logit φ − logit m to the
logits of T (that is, multiplying their odds by e^b) makes the mass φ, and keeps the proportions within T and outside
it. No distribution with mass φ or more on T is nearer to the original one; it costs d(φ‖m) attention bits. The shift
needs two log-sum-exps, over T and over the rest, and no bound on the logits; it adds to the dial's β.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from localist_jax import bits
from localist_jax.types import Numeric, widened


def shift(mass: Float[Array, "*rows"], share: Numeric) -> Float[Array, "*rows"]:
    """Return b = logit φ − logit m in nats, which added to the logits of a set makes its mass φ instead of m (T18).

    It is 0 where the set already has its share (φ ≤ m), and where it is empty or holds everything (m = 0 or 1).
    For a mass next to 0 or 1 use `shift_of_lse`, which never rounds it.

    Args:
      mass: m ∈ [0, 1], attention mass of the set.
      share: φ, broadcastable to the mass.

    Raises:
      ValueError: if a share is outside [0, 1); traced shares are not checked.

    >>> round(float(shift(jnp.array(0.2), 0.5)), 4), float(shift(jnp.array(0.7), 0.5))
    (1.3863, 0.0)
    """
    mass = widened(mass)
    return shift_of_lse(jnp.log(mass), jnp.log1p(-mass), share)


def shift_of_lse(
    target: Float[Array, "*rows"], rest: Float[Array, "*rows"], share: Numeric
) -> Float[Array, "*rows"]:
    """Return what `shift` returns, from logits: logit m = target − rest.

    Args:
      target, rest: log-sum-exp of the (dialled) logits over the set and over the other visible keys, nats; −∞ where
        there are none.
      share: φ, broadcastable to them.

    Raises:
      ValueError: as `shift`.
    """
    _check(share, share)
    target, rest = widened(target), widened(rest)
    some = jnp.isfinite(target) & jnp.isfinite(rest)
    log_odds = jnp.where(some, target, 0.0) - jnp.where(some, rest, 0.0)
    wanted = jnp.log(share) - jnp.log1p(-share)
    return jnp.where(some, jnp.maximum(wanted - log_odds, 0.0), 0.0)


def shifts(masses: Float[Array, "*rows r"], shares: Float[Array, "*#rows r"]) -> Float[Array, "*rows r"]:
    """Return ln(φ_j/(1 − Σφ)) − ln(m_j/m_0) in nats, which give r disjoint sets exactly the masses φ_j (T18).

    m_0 = 1 − Σm is the mass of the other keys, which keep their proportions. A shift is negative where a set would
    otherwise get more than its share, and −∞ for a share of 0. If no shift is negative, no distribution with at least
    these masses is nearer to the original one. A set without mass gets shift 0, and its share is not taken from the
    others. If the sets hold all mass (m_0 = 0), all shifts are 0.

    Args:
      masses: m_j ≥ 0, Σm ≤ 1.
      shares: φ_j.

    Raises:
      ValueError: if a share is outside [0, 1), or shares add up to 1 or more; traced shares are not checked.

    >>> jnp.exp(shifts(jnp.array([0.25, 0.25]), jnp.array([0.5, 0.25]))).round(4).tolist()
    [4.0, 2.0]
    """
    masses = widened(masses)
    return shifts_of_lse(jnp.log(masses), jnp.log1p(-masses.sum(-1)), shares)


def shifts_of_lse(
    targets: Float[Array, "*rows r"], rest: Float[Array, "*rows"], shares: Float[Array, "*#rows r"]
) -> Float[Array, "*rows r"]:
    """Return what `shifts` returns, from logits: ln(m_j/m_0) = targets − rest.

    Args:
      targets, rest: log-sum-exp of the (dialled) logits over each set and over the keys in none, nats; −∞ where there
        are none.
      shares: φ_j.

    Raises:
      ValueError: as `shifts`.
    """
    _check(shares, shares.sum(-1))
    targets, rest = widened(targets), widened(rest)[..., None]
    some = jnp.isfinite(targets) & jnp.isfinite(rest)
    log_odds = jnp.where(some, targets, 0.0) - jnp.where(some, rest, 0.0)
    given = jnp.where(some, shares, 0.0)
    wanted = jnp.log(shares) - jnp.log1p(-given.sum(-1, keepdims=True))
    return jnp.where(some, wanted - log_odds, 0.0)


def price(mass: Float[Array, "*rows"], share: Numeric) -> Float[Array, "*rows"]:
    """Return d(φ‖m), the attention bits that an exact share costs (T18); 0 where φ ≤ m, since nothing is added.

    Args:
      mass: m ∈ [0, 1], attention mass of the set; the price is also 0 where it is 0 or 1.
      share: φ, broadcastable to the mass.

    Raises:
      ValueError: as `shift`.

    >>> round(float(price(jnp.array(0.25), 0.75)), 4), float(price(jnp.array(0.75), 0.25))
    (0.7925, 0.0)
    """
    _check(share, share)
    mass = widened(mass)
    raised = (mass > 0) & (share > mass)
    m = jnp.where(raised, mass, 0.5)
    return jnp.where(raised, bits.binary_kl(jnp.where(raised, share, m), m), 0.0)


def _check(shares: Numeric, total: Numeric) -> None:
    """Raise a ValueError for shares that cannot be given."""
    if isinstance(shares, jax.core.Tracer):
        return
    value = np.asarray(shares)
    if not np.all((value >= 0) & (value < 1)):  # also refuses NaN
        raise ValueError(
            f"share: a share of the attention must lie in [0, 1), got {shares}; to leave nothing to other keys, "
            "close their gates"
        )
    if not np.all(np.asarray(total) < 1):
        raise ValueError(
            f"share: shares of disjoint sets must add up to less than 1, got {total}; leave some to the other keys"
        )

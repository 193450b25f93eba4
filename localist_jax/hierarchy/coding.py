"""How an ensemble codes documents: by Bayes' mixture of its members, before anyone learns from them."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from localist_jax.data import Batch
from localist_jax.hierarchy import mixture
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.parallel import hosts

_code = jax.jit(mixture.code)


@dataclasses.dataclass(frozen=True)
class Coded:
    """How one batch was coded, before anyone learned from it.

    Attributes:
      bits: [B], of each document under the mixture; 0 for rows of padding.
      best_bits: [B], under the member that coded it best.
      bound_bits: [B], coordination that T13 allows: log₂ M.
      member: int [B], place of the member that it is given to; −1 for rows of padding.
      weights: [B, M], of the members after the whole document.
    """

    bits: Float[np.ndarray, " B"]
    best_bits: Float[np.ndarray, " B"]
    bound_bits: Float[np.ndarray, " B"]
    member: Int[np.ndarray, " B"]
    weights: Float[np.ndarray, "B M"]


def code(
    ensemble: Ensemble, engine: EnsembleEngine, batch: Batch
) -> tuple[Coded, Float[np.ndarray, "B T M1"]]:
    """Codes a batch, a document per row, by Bayes' mixture of all members with equal prior weights.

    Returns:
      how it was coded, and the bits of each token under each member (by place; one spare place comes last).
    """
    losses = np.zeros((*batch.tokens.shape, ensemble.capacity + 1), np.float32)
    for at in ensemble.active:
        losses[..., at] = engine.losses(ensemble.state(at), batch, ensemble.dial(at))
    length, weights = mixed(losses, ensemble.active)
    real = np.asarray(batch.segments).max(1) > 0
    totals = losses.sum(1)[:, list(ensemble.active)]
    coded = Coded(
        bits=np.where(real, length.sum(1), 0.0),
        best_bits=np.where(real, totals.min(1), 0.0),
        bound_bits=np.where(real, np.log2(len(ensemble.active)), 0.0),
        member=np.where(real, weights[:, -1].argmax(-1), -1),
        weights=np.exp(weights[:, -1, :-1]),
    )
    return coded, losses


def mixed(losses: Float[np.ndarray, "B T M"], members) -> tuple[np.ndarray, np.ndarray]:
    """`mixture.code` with equal weights for the LLMs at some places; compiled once per capacity."""

    def both():
        listed = np.isin(np.arange(losses.shape[-1]), members)
        prior = mixture.uniform(jnp.broadcast_to(listed, (losses.shape[0], losses.shape[-1])))
        length, weights = _code(jnp.asarray(losses), prior)
        return np.asarray(length), np.asarray(weights)

    return hosts.agreed(both)

"""The dial of each training step: sampled (`any`), `fixed`, or on a `schedule`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from localist_jax import config
from localist_jax.locality import Dial
from localist_jax.types import Key, Numeric


def training_dial(key: Key, settings: config.DialTraining, progress: Numeric, layers: int) -> Dial:
    """Return the dial of one step, traced, with one setting per layer.

    `any` draws λ=0 and λ=1 with their configured shares, and β uniformly in between, so that one model works at every
    setting. `schedule` moves λ linearly from 0 to `locality` over the run.

    Args:
      key: random key of this step.
      settings: mode, shares, power.
      progress: share of the run that is done, in [0, 1].
      layers: L.
    """
    if settings.mode == "any":
        kind, value = jax.random.uniform(key, (2,))
        between = -jnp.expm1(-value * settings.max_log_odds)
        localist = kind < settings.share_distributed + settings.share_localist
        locality = jnp.where(kind < settings.share_distributed, 0.0, jnp.where(localist, 1.0, between))
    elif settings.mode == "fixed":
        locality = jnp.asarray(settings.locality)
    else:
        locality = settings.locality * jnp.asarray(progress)
    depth = (jnp.arange(layers) + 1) / layers
    return Dial((locality * depth**settings.power)[None, :, None])

"""Statistics of dialled attention, and which of them a call may ask for."""

from __future__ import annotations

from typing import Any, Literal

import chex

from localist_jax.types import struct

Stats = Literal["none", "lse", "open", "dense"]


@struct
class AttentionStats:
    """Statistics of each query's attention, float32 [B, N, T].

    Attributes:
      lse: log-sum-exp of the dialled logits s + ln ω, nats; −∞ where nothing is visible. With "lse" the only one.
      entropy_bits: H of the dialled attention (T4).
      fidelity: mass on relevant keys, self and window included (T3).
      gated_mass: mass on relevant keys that a gate opened: without self, window and block 0.
      price_bits: KL(dialled ‖ dense attention), the price of locality (T2); None unless requested,
        since it needs the closed keys too.
    """

    lse: chex.Array
    entropy_bits: Any = None
    fidelity: Any = None
    gated_mass: Any = None
    price_bits: chex.Array | None = None

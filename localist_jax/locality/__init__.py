"""The heart: pure functions of the locality dial, gates, routing and measures; no model in sight."""

from localist_jax.locality.anchors import Blocks
from localist_jax.locality.dial import REGIMES, Dial

__all__ = ["REGIMES", "Blocks", "Dial"]

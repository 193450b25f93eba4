"""One operation, `attend`, and several implementations behind it."""

from localist_jax.attention.api import AttentionStats, attend, implementations

__all__ = ["AttentionStats", "attend", "implementations"]

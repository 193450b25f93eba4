"""Attention on Hopper GPUs."""

from localist_jax.attention.hopper.engine import ENGINE, gpu, on_hopper, suits

__all__ = ["ENGINE", "gpu", "on_hopper", "suits"]

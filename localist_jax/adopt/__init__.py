"""Pretrained checkpoints of the Llama and Qwen3 families: in, made localist, and out again."""

from localist_jax.adopt.export import export
from localist_jax.adopt.load import adopt, load

__all__ = ["adopt", "export", "load"]

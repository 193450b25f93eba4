"""Pretrained checkpoints (Llama, Mistral, Qwen2, Qwen3, SmolLM3): in from folders or GGUF files, localist, and out."""

from localist_jax.adopt.export import export
from localist_jax.adopt.load import adopt, load

__all__ = ["adopt", "export", "load"]

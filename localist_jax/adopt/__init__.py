"""Pretrained checkpoints (Llama, Mistral, Qwen2, Qwen3, SmolLM3; folders and GGUF files): in, made localist, and out again."""

from localist_jax.adopt.export import export
from localist_jax.adopt.load import adopt, load

__all__ = ["adopt", "export", "load"]

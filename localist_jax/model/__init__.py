"""The localist transformer, and generation with it."""

from localist_jax.model.cache import Cache
from localist_jax.model.constraint import Constraint
from localist_jax.model.generate import Generation, generate
from localist_jax.model.transformer import Output, Transformer, forward

__all__ = ["Cache", "Constraint", "Generation", "Output", "Transformer", "forward", "generate"]

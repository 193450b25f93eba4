"""Localist language models with recruitment learning, in JAX and Flax."""

__version__ = "0.1.0"

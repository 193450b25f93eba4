"""Models whose router is told the truth: a control, by which a study sees what knowing it would be worth."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax

from localist_jax.locality.router import CERTAIN
from localist_jax.model import Transformer
from localist_jax.model.transformer import Router


@contextlib.contextmanager
def told(block_of: Callable[[jax.Array, Any], jax.Array]) -> Iterator[None]:
    """Within it every router puts positions into the blocks that it is told; what was compiled outside is forgotten.

    Args:
      block_of: from tokens and segments (or None) [B, T] to blocks [B, T], counted from 1.
    """
    jax.clear_caches()
    try:
        with telling(block_of):
            yield
    finally:
        jax.clear_caches()


@contextlib.contextmanager
def telling(block_of: Callable[[jax.Array, Any], jax.Array]) -> Iterator[None]:
    """Do as `told`, for functions that are compiled in here alone."""
    segments: list[Any] = [None]

    def instead(call, arguments, options, context):
        if context.method_name == "__call__" and isinstance(context.module, Transformer):
            segments[0] = options.get("segments")
        found = call(*arguments, **options)
        if context.method_name != "__call__" or not isinstance(context.module, Router):
            return found
        (_, tokens, blocks), (logits, states) = arguments, found
        block = block_of(tokens, segments[0])
        return CERTAIN * jax.nn.one_hot(block, blocks.active.size) + 0 * logits, states

    with nn.intercept_methods(instead):
        yield

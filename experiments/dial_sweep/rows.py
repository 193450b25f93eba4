"""Batches in which no two texts share a row."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np

from localist_jax.data import Batch, Tokenizer, pack


def one_each(
    documents: Sequence[np.ndarray],
    context: int,
    rows: int,
    scored: Sequence[np.ndarray] | None = None,
    opener: int = Tokenizer.BOS,
) -> Batch:
    """`rows` rows with one document each, in their order; those that are left over stay empty.

    Args:
      documents: token ids, at most `rows` of them and each at most `context` long.
      scored: as in `pack`.
      opener: token before each.
    """
    each = [
        pack([ids], context, opener, None if scored is None else [scored[i]]).take(np.arange(1))
        for i, ids in enumerate(documents)
    ]
    empty = jax.tree.map(np.zeros_like, each[0])
    return jax.tree.map(lambda *xs: np.concatenate(xs), *each, *[empty] * (rows - len(each)))

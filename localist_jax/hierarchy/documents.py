"""Documents as rows: an ensemble judges, routes and learns from whole documents, so each has a row of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localist_jax.data import Batch
from localist_jax.data.pipeline import PAD


def rows(documents: Sequence[Sequence[int] | np.ndarray], context: int, bos: int, count: int = 0) -> Batch:
    """A batch with one document per row: inputs BOS, x₁ … xₙ₋₁ and targets x₁ … xₙ, padded; the rest is cut off.

    Args:
      documents: token ids.
      context: T.
      bos: token that opens each row.
      count: rows wanted; those beyond the documents are padding. 0: one for each.

    Raises:
      ValueError: more documents than rows.

    >>> rows([[5, 6, 7]], context=4, bos=1).tokens.tolist()
    [[1, 5, 6, 0]]
    """
    count = count or len(documents)
    if len(documents) > count:
        raise ValueError(f"rows: {len(documents)} documents do not fit {count} rows")
    tokens, targets, segments = (np.full((count, context), PAD, np.int32) for _ in range(3))
    for row, document in enumerate(documents):
        cut = np.asarray(document, np.int32)[:context]
        targets[row, : len(cut)] = cut
        tokens[row, : len(cut)] = [bos, *cut[:-1]] if len(cut) else []
        segments[row, : len(cut)] = 1
    positions = np.broadcast_to(np.arange(context, dtype=np.int32), (count, context)) * segments
    return Batch(tokens=tokens, targets=targets, segments=segments, positions=positions.astype(np.int32))


def pieces(document: np.ndarray, context: int) -> list[np.ndarray]:
    """A long document cut into runs of `context` tokens, each to be a row; a short rest is kept."""
    return [document[i : i + context] for i in range(0, len(document), context)]

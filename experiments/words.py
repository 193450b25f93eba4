"""A tokenizer that knows each of a few words as one token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from localist_jax.data import Tokenizer


def one_token_each(words: Sequence[str]) -> tuple[Tokenizer, Int32[np.ndarray, " n"]]:
    """A tokenizer for texts of these words, and the token of each word after a space."""
    spaced = [f" {word}" for word in words]
    # Each word often enough to be one token.
    tokenizer = Tokenizer.train(spaced * 3, 256 + 2 + 4 * len(words))
    encoded = [tokenizer.encode(word) for word in spaced]
    assert all(len(ids) == 1 for ids in encoded)
    return tokenizer, np.concatenate(encoded)

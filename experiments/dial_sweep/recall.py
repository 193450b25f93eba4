"""Associative recall: key–value pairs far apart, asked for at the end; perplexity cannot hide a loss here.

A row is fillers with a few pairs `key value` scattered over its first part, and queries in its last: each key
stands there once more, and its value has to follow. Only those answers are scored. Keys, values and fillers
have words of their own; which key goes with which value is drawn anew in each row.
"""

from __future__ import annotations

import numpy as np

from experiments.words import one_token_each
from localist_jax.config import Config
from localist_jax.data import Prepared, Rows, Tokenizer, pack
from localist_jax.data.synthetic import WORDS

PAIRS, KEYS, VALUES, FILLERS = 8, 32, 32, 32
TOLD_UNTIL, ASKED_FROM = 0.4, 0.75  # shares of the row where the pairs end, and where the queries begin
VALID_ROWS = 512


def prepare(settings: Config) -> Prepared:
    """Fresh rows for every training step, and `VALID_ROWS` for validation.

    Raises:
      ValueError: a context too short for the pairs and the queries.
    """
    context, seed = settings.data.context, settings.train.seed
    tokenizer, ids = one_token_each(WORDS[: KEYS + VALUES + FILLERS])
    train = _rows(ids, np.random.default_rng([seed, 0]), settings.train.steps * settings.data.batch, context)
    valid = _rows(ids, np.random.default_rng([seed, 1]), VALID_ROWS, context)
    sizes = {"train": len(train), "valid": len(valid)}
    # What is not scored counts like padding, whose id stands for no byte.
    text = {split: int(tokenizer.byte_lengths[np.maximum(rows.targets, Tokenizer.PAD)].sum()) for split, rows in
            (("train", train), ("valid", valid))}  # fmt: skip
    return Prepared("recall", tokenizer, train, valid, documents=sizes, bytes=text)


def _rows(ids: np.ndarray, rng: np.random.Generator, count: int, context: int) -> Rows:
    keys, values, fillers = np.split(ids, [KEYS, KEYS + VALUES])
    first_query = round(ASKED_FROM * context)
    slots, asked = round(TOLD_UNTIL * context) // 2, (context - first_query) // 2
    if slots < PAIRS or asked < PAIRS:
        raise ValueError(f"recall: {PAIRS} pairs and their queries do not fit a context of {context}")
    text = rng.choice(fillers, (count, context))
    scored = np.zeros((count, context), bool)
    rows = np.arange(count)[:, None]
    key = keys[_distinct(rng, count, KEYS, PAIRS)]
    value = values[rng.integers(0, VALUES, (count, PAIRS))]
    at = 2 * _distinct(rng, count, slots, PAIRS)
    text[rows, at], text[rows, at + 1] = key, value
    at = first_query + 2 * _distinct(rng, count, asked, PAIRS)
    text[rows, at], text[rows, at + 1], scored[rows, at + 1] = key, value, True
    return pack(list(text), context, Tokenizer.BOS, list(scored))


def _distinct(rng: np.random.Generator, count: int, n: int, size: int) -> np.ndarray:
    """[count, size]: `size` different numbers below n in each row, in random order."""
    return np.argsort(rng.random((count, n)), axis=1)[:, :size]

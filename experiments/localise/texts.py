"""Texts as streams of tokens, cut into rows of contiguous tokens: what is calibrated on, and what is measured on."""

from __future__ import annotations

import dataclasses
import hashlib
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from localist_jax.config import Data
from localist_jax.data import Batch, Rows, Tokenizer, load
from localist_jax.data.corpora import find

CORPORA = ("wikitext-2", "pharmacology", "economics")
OTHER = ("dc_code", "python-docs")  # what the corpora have nothing to do with
BOOKS = ("pharmacology", "economics")
SHELF = "OpenStax textbooks as JSONL with the fields text and split"


def documents(name: str, split: str) -> tuple[str, ...]:
    """Return the documents of a corpus, or of one book of OpenStax.

    Raises:
      CorpusError: it is not there.
    """
    if name in BOOKS:
        return getattr(
            load(Data(corpus="openstax", path=str(find("openstax", SHELF) / f"{name}.jsonl"))), split
        )
    if name == "dc_code":
        find(name, "statutes as JSONL with the fields text and split")
    return getattr(load(Data(corpus=name)), split)


@dataclasses.dataclass(frozen=True)
class Texts:
    """Streams of tokens of one tokenizer, encoded once and kept in a folder."""

    tokenizer: Tokenizer
    folder: Path

    def stream(self, name: str, split: str) -> Int32[np.ndarray, " n"]:
        """Return all documents of a split, joined by blank lines, as tokens."""
        path = self.folder / f"{name}-{split}-{self.tokenizer.fingerprint[:12]}.npy"
        if not path.exists():
            parts = self.tokenizer.encode_batch([f"{text}\n\n" for text in documents(name, split)])
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, np.concatenate(parts).astype(np.int32))
            temporary.replace(path)
        return np.load(path)

    def rows(self, name: str, split: str, context: int, count: int) -> Rows:
        """Return rows spaced evenly over a stream; every position predicts the token after it.

        Raises:
          ValueError: a stream that has fewer rows.
        """
        stream = self.stream(name, split)
        there = (len(stream) - 1) // context
        if there < count:
            raise ValueError(
                f"{name}: its {split} split has {there} rows of {context} tokens, {count} are wanted"
            )
        starts = (np.arange(count) * there // count) * context
        pieces = np.stack([stream[start : start + context + 1] for start in starts])
        return rows_of(pieces[:, :-1], pieces[:, 1:])

    @cached_property
    def fingerprint(self) -> str:
        """Tell these texts, under this tokenizer, from others."""
        digest = hashlib.sha256(self.tokenizer.fingerprint.encode())
        for name in CORPORA:
            for split in ("train", "test"):
                digest.update(self.stream(name, split).tobytes())
        return digest.hexdigest()[:16]


def rows_of(tokens: Int32[np.ndarray, "R T"], targets: Int32[np.ndarray, "R T"]) -> Rows:
    """Return rows that are one segment each."""
    ones = np.ones_like(tokens, dtype=np.int32)
    return Rows(tokens, targets, ones, ones.cumsum(1, dtype=np.int32) - 1)


def batches(rows: Rows) -> list[Batch]:
    """Return one row at a time."""
    return [rows.take(np.array([i])) for i in range(len(rows))]


def together(parts: list[Rows]) -> Rows:
    """Return the rows of several texts by turns, the first of each, then the second of each."""
    order = np.argsort(np.concatenate([np.arange(len(part)) for part in parts]), kind="stable")
    fields = [field.name for field in dataclasses.fields(Rows)]
    return Rows(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in fields))

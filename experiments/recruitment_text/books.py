"""Streams of real text: textbooks, or titles of a law code, one after another, in rows of one piece each."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from experiments import cases
from localist_jax.data import Prepared, Tokenizer, pack
from localist_jax.data.corpora import ROOT_VARIABLE, CorpusError
from localist_jax.data.fields import shares_by_phase

SHELVES = {"openstax": "six OpenStax textbooks", "dc_code": "four titles of the District of Columbia's code"}
HELD_OUT = 48  # pieces of each book
READ = 700_000  # characters of each book's training text at the most
SENTENCE = re.compile(r"(?<=[.!?;:])\s+")


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens that fill a row, and the chapter that they are from."""

    ids: Int32[np.ndarray, " T"]
    chapter: str


@dataclasses.dataclass(frozen=True)
class Stream:
    """The text that a run reads, and the text that it is examined on.

    Attributes:
      prepared: rows in their order, and all books' held-out pieces one after another; each row is one segment, whose
        number is 1 + its book's (1 where sentences of all books are mixed).
      book, chapter: of each held-out piece, by number.
      repeated: share of the stream's rows that a book gave again, since it was at its end.
    """

    prepared: Prepared
    book: Int32[np.ndarray, " R"]
    chapter: Int32[np.ndarray, " R"]
    repeated: float


def files_of(corpus: str) -> list[Path]:
    """Return the books of a corpus.

    Raises:
      CorpusError: the corpus is not there.
    """
    files = sorted((Path(os.environ.get(ROOT_VARIABLE, "")) / corpus).glob("*.jsonl"))
    if not files:
        raise CorpusError(
            f"recruitment_text: no {corpus}: set {ROOT_VARIABLE} to a folder that holds {corpus}/*.jsonl "
            "with the fields text, split and chapter"
        )
    return files


@functools.cache
def fingerprint(corpus: str) -> str:
    """Return what tells the books, and the table of supersenses if it is there, from others."""
    files = files_of(corpus)
    return cases.fingerprint([*files, *files[0].parents[1].glob("wordnet/supersenses.tsv")])


class Shelf:
    """The books of a corpus in pieces, and one tokenizer for all of them.

    Args:
      corpus: openstax or dc_code.
      context: tokens of a piece.
      vocabulary: of the tokenizer.

    Raises:
      CorpusError: the corpus is not there.
    """

    def __init__(self, corpus: str, context: int, vocabulary: int):
        files = files_of(corpus)
        self.corpus, self.context = corpus, context
        self.books = tuple(file.stem for file in files)
        texts = [list(_read(file)) for file in files]
        train = [text for book in texts for split, _, text in book if split == "train"]
        self.tokenizer = Tokenizer.train(train, vocabulary)
        self._train = [self._cut([t for t in book if t[0] == "train"]) for book in texts]
        self._held_out = [_some(self._cut([t for t in book if t[0] != "train"])) for book in texts]

    def _cut(self, texts: Sequence[tuple[str, str, str]]) -> list[Piece]:
        T, encoded = self.context, self.tokenizer.encode_batch([text for *_, text in texts])
        return [
            Piece(ids[at : at + T], chapter)
            for ids, (_, chapter, _) in zip(encoded, texts, strict=True)
            for at in range(0, len(ids) - T + 1, T)
        ]

    def stream(self, order: Sequence[int], rows: int, seed: int) -> Stream:
        """The books in this order, `rows` rows to each phase: a new one fills half of it, older ones share the rest.

        A book's pieces come in a random order, each once; one that is at its end begins again.
        """
        rng = np.random.default_rng([seed, 31])
        turns = [_again(rng.permutation(len(pieces))) for pieces in self._train]
        picked: list[np.ndarray] = []
        books: list[int] = []
        taken = np.zeros(len(self.books), int)
        for shares in shares_by_phase(len(order)):
            for book in rng.choice(order, rows, p=shares):
                picked.append(self._train[book][next(turns[book])].ids)
                books.append(book)
                taken[book] += 1
        again = np.maximum(0, taken - [len(pieces) for pieces in self._train]).sum() / taken.sum()
        return self._prepared(picked, books, order, float(again))

    def shuffled(self, order: Sequence[int], rows: int, seed: int) -> Stream:
        """Sentences of all books in random order: the same text, and nothing to divide. As long as the stream is."""
        rng = np.random.default_rng([seed, 32])
        count = rows * len(order)
        texts = [self.tokenizer.decode(p.ids) for book in order for p in self._train[book]]
        sentences = [s for text in texts for s in SENTENCE.split(text) if s]
        ids = np.concatenate(
            self.tokenizer.encode_batch([sentences[i] for i in rng.permutation(len(sentences))])
        )
        pieces = [ids[at : at + self.context] for at in range(0, len(ids) - self.context + 1, self.context)]
        return self._prepared([pieces[i % len(pieces)] for i in range(count)], [0] * count, order, 0.0)

    def _prepared(
        self, picked: list[np.ndarray], books: Sequence[int], order: Sequence[int], repeated: float
    ) -> Stream:
        examined = [(book, piece) for book in order for piece in self._held_out[book]]
        chapters = {name: at for at, name in enumerate(sorted({f"{b} {p.chapter}" for b, p in examined}))}
        train, valid = (
            pack(ids, self.context, Tokenizer.BOS) for ids in (picked, [p.ids for _, p in examined])
        )
        assert len(train) == len(picked)
        assert len(valid) == len(examined)
        train, valid = (
            dataclasses.replace(
                rows, segments=1 + np.array(of, np.int32)[:, None] * np.ones_like(rows.segments)
            )
            for rows, of in ((train, books), (valid, [book for book, _ in examined]))
        )
        size = {"train": sum(map(len, picked)), "valid": sum(len(p.ids) for _, p in examined)}
        prepared = Prepared(
            self.corpus, self.tokenizer, train, valid,
            documents={"train": len(picked), "valid": len(examined)}, bytes=size,
        )  # fmt: skip
        return Stream(
            prepared,
            np.array([book for book, _ in examined], np.int32),
            np.array([chapters[f"{b} {p.chapter}"] for b, p in examined], np.int32),
            repeated,
        )


def _read(file: Path) -> Iterator[tuple[str, str, str]]:
    """(split, chapter, text) of each record, as far as `READ` goes in the training split."""
    total = 0
    for line in file.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        chapter = record.get("chapter") or record.get("section", "").split("-")[-1][:-2]
        text, split = record["text"], record["split"]
        if split == "train":
            text = text[: max(0, READ - total)]
            total += len(text)
        if text:
            yield split, chapter[0] if isinstance(chapter, list) else str(chapter), text


def _some(pieces: list[Piece]) -> list[Piece]:
    """`HELD_OUT` of them, from everywhere in the book."""
    return [pieces[i] for i in np.unique(np.linspace(0, len(pieces) - 1, HELD_OUT).round().astype(int))]


def _again(order: np.ndarray) -> Iterator[int]:
    while True:
        yield from order.tolist()

"""From documents to batches: packing, Grain iterators and the cache of what was prepared."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import uuid
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np

from localist_jax.config import Data
from localist_jax.data import corpora
from localist_jax.data.tokenizer import Tokenizer

log = logging.getLogger(__name__)

PAD = Tokenizer.PAD
EPOCHS = (
    1_000_000  # more than anyone trains for; without an end, Grain counts the rows of batches of one wrongly
)
UNSCORED = -1  # as a target: nothing to predict
CACHE_FORMAT = 4  # raised when the same corpus and config would be prepared differently
Leaf = Any  # an int32 array [B, T]; under tree maps whatever the tree holds (shapes, shardings)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """B rows of T tokens; int32 arrays [B, T]."""

    tokens: Leaf  # inputs: each segment is BOS and its tokens but the last
    targets: Leaf  # what each input position has to predict; UNSCORED, or anything in padding: nothing
    segments: Leaf  # 1, 2, … within a row; 0: padding, which counts nowhere
    positions: Leaf  # 0, 1, … within a segment

    @property
    def scored(self) -> Leaf:
        """Bool [B, T]: positions whose prediction counts."""
        return (self.targets != UNSCORED) & (self.segments > 0)


@dataclass(frozen=True, eq=False)
class Rows:
    """Packed rows: int32 NumPy arrays [R, T], fields as in `Batch`."""

    tokens: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def token_count(self) -> int:
        """Tokens that are no padding."""
        return int(np.count_nonzero(self.segments))

    @property
    def fill(self) -> float:
        """Share of slots in use; 0 without rows."""
        return self.token_count / max(self.segments.size, 1)

    def take(self, index: np.ndarray) -> Batch:
        """The rows at `index` as a batch of copies."""
        return Batch(self.tokens[index], self.targets[index], self.segments[index], self.positions[index])


def pack(
    documents: Sequence[np.ndarray],
    context: int,
    bos: int | None,
    scored: Sequence[np.ndarray] | None = None,
    in_order: bool = False,
) -> Rows:
    """Packs documents into rows of `context` slots, so that every token is predicted exactly once.

    A document is cut into pieces of at most `context` tokens x₁ … xₙ. A piece is a segment with the
    inputs BOS, x₁ … xₙ₋₁ and the targets x₁ … xₙ. Without BOS a piece begins with the token before it
    instead, and the first token of a document is not predicted. Segments fill rows by best fit, longest first,
    ties in document order; or, with `in_order`, one after the other as the documents come.

    Args:
      documents: token ids, one 1-D array each; empty ones leave no trace.
      context: T.
      bos: token that opens each segment; None: the model knows none.
      scored: bool, shapes of the documents: tokens whose prediction counts; the others' targets become UNSCORED.
      in_order: for a stream, whose rows are read as they come; more slots stay empty.

    Raises:
      ValueError: `context` below 1.

    >>> rows = pack([np.array([5, 6, 7]), np.array([8])], context=4, bos=1)
    >>> rows.tokens.tolist(), rows.targets.tolist(), rows.segments.tolist()
    ([[1, 5, 6, 1]], [[5, 6, 7, 8]], [[1, 1, 1, 2]])
    """
    if context < 1:
        raise ValueError(f"context: expected at least 1 token, got {context}")
    skipped = int(bos is None)  # tokens of a document that nothing predicts
    lengths = np.array([max(0, len(d) - skipped) for d in documents], np.int64)
    flat = _joined([d[skipped:] for d in documents])
    before = _joined([d[: len(d) - 1] for d in documents if len(d)]) if bos is None else _shifted(flat)
    wanted = flat
    if scored is not None:
        wanted = np.where(_joined([s[skipped:] for s in scored]).astype(bool), flat, UNSCORED)
    pieces = -(-lengths // context)
    nth = _count_up(pieces)
    sizes = np.minimum(context, np.repeat(lengths, pieces) - nth * context)
    row, start, segment = (_next_fit if in_order else _best_fit)(sizes, context)

    # Pieces lie in `flat` one after the other, so slot i of all segments together is flat[i].
    position = _count_up(sizes)
    slots = np.repeat(row, sizes), np.repeat(start, sizes) + position
    shape = (int(row.max(initial=-1)) + 1, context)

    def place(values: np.ndarray, padding: int = 0) -> np.ndarray:
        array = np.full(shape, padding, np.int32)
        array[slots] = values
        return array

    return Rows(
        tokens=place(before if bos is None else np.where(position == 0, bos, before), PAD),
        targets=place(wanted, PAD),
        segments=place(np.repeat(segment, sizes)),
        positions=place(position),
    )


def _joined(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.int32), *arrays]).astype(np.int32)


def _shifted(flat: np.ndarray) -> np.ndarray:
    return np.concatenate([flat[:1], flat[:-1]])[: len(flat)]


def _count_up(counts: np.ndarray) -> np.ndarray:
    """[2, 3] → [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _next_fit(sizes: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first slot and number within the row (from 1) of each piece: a row is left once a piece does not fit."""
    row, start, segment = (np.zeros(len(sizes), np.int64) for _ in range(3))
    last, used, members = 0, 0, 0
    for piece, size in enumerate(sizes.tolist()):
        if used + size > context:
            last, used, members = last + 1, 0, 0
        members += 1
        row[piece], start[piece], segment[piece] = last, used, members
        used += size
    return row, start, segment


def _best_fit(sizes: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, first slot and number within the row (from 1) of each piece."""
    row, start, segment = (np.zeros(len(sizes), np.int64) for _ in range(3))
    order = np.argsort(-sizes, kind="stable")
    rows_with_room: list[list[int]] = [[] for _ in range(context + 1)]  # by slots left
    rooms = 0  # bit r is set where rows_with_room[r] has rows: the tightest fit is one bit operation
    members: list[int] = []  # pieces per row
    for piece, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            target = rows_with_room[room].pop()
            if not rows_with_room[room]:
                rooms ^= 1 << room
        else:
            room, target = context, len(members)
            members.append(0)
        members[target] += 1
        row[piece], start[piece], segment[piece] = target, context - room, members[target]
        if left := room - size:
            rows_with_room[left].append(target)
            rooms |= 1 << left
    return row, start, segment


def train_batches(
    rows: Rows, batch: int, seed: int, *, shuffle: bool = True, shard: tuple[int, int] = (0, 1)
) -> grain.DatasetIterator[Batch]:
    """Endless batches; `get_state()` and `set_state()` resume exactly.

    Each epoch visits every row once, in an order of its own or (`shuffle` off) in that of the text; a batch may
    span two epochs. The sequence of global batches depends on (rows, batch, seed) alone, not on the number of hosts.

    Args:
      rows: packed rows, the same on every host.
      batch: rows per step over all hosts.
      seed: of the shuffle.
      shuffle: off for text that comes as a stream.
      shard: (host, hosts); a host gets its `batch / hosts` consecutive rows of each global batch.

    Raises:
      ValueError: fewer rows than `batch`, or a batch that hosts cannot share evenly.
    """
    mine = _share(batch, shard)
    if len(rows) < batch:
        raise ValueError(
            f"config.data.batch: {batch} rows per step, but the corpus packs into {len(rows)}; "
            "lower config.data.batch or config.data.context, or give more text"
        )
    # Grain shuffles epoch e with seed + e: neighbouring seeds would share their epochs.
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])
    order = grain.MapDataset.range(len(rows))
    dataset = (order.shuffle(seed=spread) if shuffle else order).repeat(EPOCHS).batch(batch)
    batches = dataset.map(lambda index: rows.take(index[mine]))
    # The rows are in memory: reader threads would only fight over the interpreter.
    return iter(batches.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def valid_batches(
    rows: Rows, batch: int, limit_rows: int = 0, *, shard: tuple[int, int] = (0, 1)
) -> list[Batch]:
    """The same batches at every evaluation: `limit_rows` rows spaced evenly over all of them (0: all).

    The last batch is filled up with rows of padding (segments 0), so that shapes stay the same.
    `batch` and `shard` are those of `train_batches`.
    """
    mine = _share(batch, shard)
    count = min(limit_rows, len(rows)) or len(rows)
    chosen = rows.take(np.arange(count) * len(rows) // max(count, 1))
    missing = -count % batch

    def cut(array: np.ndarray) -> list[np.ndarray]:
        padded = np.concatenate([array, np.zeros((missing, array.shape[1]), np.int32)])
        return [part[mine] for part in padded.reshape(-1, batch, array.shape[1])]

    fields = (cut(getattr(chosen, field.name)) for field in dataclasses.fields(Batch))
    return [Batch(*parts) for parts in zip(*fields, strict=True)]


def _share(batch: int, shard: tuple[int, int]) -> slice:
    host, hosts = shard
    if not 0 <= host < hosts:
        raise ValueError(f"shard: expected (host, hosts) with 0 ≤ host < hosts, got {shard}")
    if batch % hosts:
        raise ValueError(f"config.data.batch: expected a multiple of the {hosts} hosts, got {batch}")
    size = batch // hosts
    return slice(host * size, (host + 1) * size)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A corpus ready for training."""

    corpus_name: str
    tokenizer: Tokenizer
    train: Rows
    valid: Rows
    documents: dict[str, int]  # by split
    bytes: dict[str, int]  # UTF-8, by split
    text: str = ""  # digest of the corpus; "": not of one
    about: str = ""  # which documents were found, in one line

    @property
    def digest(self) -> str:
        """16 hex digits that identify the rows; all of them are read."""
        found = hashlib.sha256()
        for rows in (self.train, self.valid):
            for field in dataclasses.fields(Rows):
                array = np.ascontiguousarray(getattr(rows, field.name))
                found.update(f"{array.shape}".encode())
                found.update(array.data)
        return found.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Counts for the log, ready for JSON: documents, bytes, tokens, rows, bytes per token, fill."""
        return {
            "corpus": self.corpus_name,
            "vocab_size": self.tokenizer.vocab_size,
            "tokenizer": self.tokenizer.fingerprint,
            "train": self._counts("train", self.train),
            "valid": self._counts("valid", self.valid),
        }

    def _counts(self, split: str, rows: Rows) -> dict[str, int | float]:
        return {
            "documents": self.documents[split],
            "bytes": self.bytes[split],
            "tokens": rows.token_count,
            "rows": len(rows),
            "bytes_per_token": round(self.bytes[split] / max(rows.token_count, 1), 3),
            "fill": round(rows.fill, 4),
        }


def prepare(config: Data, cache_dir: str | Path, tokenizer: Tokenizer | None = None) -> Prepared:
    """Loads the corpus, learns its tokenizer from the training split, encodes and packs.

    A `tokenizer` that is given, or that `config.tokenizer` names, is used as it is: a run that exists gives its own.

    Tokenizer and rows are kept in one file of `cache_dir`, named after corpus content and config; it
    is written atomically, so that a killed run or a second process leaves none half-written, and one that
    does not read is made again.

    Raises:
      CorpusError: as `corpora.load`.
      ValueError: `config.tokenizer` names no tokenizer.
    """
    corpus = corpora.load(config)
    if tokenizer is None and config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer)
    given, text = tokenizer.fingerprint if tokenizer else "", corpus.digest
    path, learned = (Path(cache_dir) / f"{_cache_key(text, config, key)}.npz" for key in (given, ""))
    ready = _read_cache(path, tokenizer) or (_read_cache(learned, tokenizer) if given else None)
    if ready is None:
        tokenizer = tokenizer or Tokenizer.train(corpus.train, config.vocab_size)
        train, valid = (
            pack(tokenizer.encode_batch(documents), config.context, tokenizer.bos, in_order=in_order)
            for documents, in_order in ((corpus.train, not config.shuffle), (corpus.valid, False))
        )
        ready = tokenizer, train, valid
        _write_cache(path, *ready)
    documents = {"train": len(corpus.train), "valid": len(corpus.valid)}
    sizes = {split: corpus.byte_counts[split] for split in documents}
    return Prepared(corpus.name, *ready, documents=documents, bytes=sizes, text=text, about=corpus.describe())


def _cache_key(text: str, config: Data, tokenizer: str) -> str:
    made_by = tokenizer or config.vocab_size
    key = json.dumps([CACHE_FORMAT, text, made_by, config.context, config.shuffle])
    return hashlib.sha256(key.encode()).hexdigest()[:24]


def _write_cache(path: Path, tokenizer: Tokenizer, train: Rows, valid: Rows) -> None:
    arrays = {
        f"{split}_{field.name}": getattr(rows, field.name)
        for split, rows in (("train", train), ("valid", valid))
        for field in dataclasses.fields(Rows)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, tokenizer=np.frombuffer(tokenizer.to_json().encode(), np.uint8), **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read_cache(path: Path, tokenizer: Tokenizer | None) -> tuple[Tokenizer, Rows, Rows] | None:
    """Return the tokens kept there, or None if there are none, they do not read, or another tokenizer made them."""
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:
            text = stored["tokenizer"].tobytes().decode()
            if tokenizer and tokenizer.to_json() != text:
                return None
            tokenizer = tokenizer or Tokenizer.from_json(text)
            train, valid = (
                Rows(*(stored[f"{split}_{field.name}"] for field in dataclasses.fields(Rows)))
                for split in ("train", "valid")
            )
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        log.warning("cache %s is damaged (%s): making it again", path, error)
        return None
    return tokenizer, train, valid

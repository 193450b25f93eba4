"""Streams of real text: textbooks and statute law, in pieces of a row each, a session of one domain at a time."""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import cases
from experiments.clinic.setting import BATCH, CONTEXT, HELD_OUT, VOCABULARY, Clinic
from experiments.clinic.world import Note
from localist_jax import config
from localist_jax.data import Batch, Tokenizer, corpora
from localist_jax.data.corpora import ROOT_VARIABLE, CorpusError
from localist_jax.hierarchy.documents import pieces, rows

BOOKS = (
    "population_health", "nutrition", "pharmacology", "economics", "intellectual_property_law", "python_programming"
)  # fmt: skip
LAW, MIXED = "dc_code", "mixed"
DOMAINS = (*BOOKS, LAW)
SESSION = 4  # batches
READ = {"train": 1_000_000, "held out": 60_000}  # characters of each domain at the most
LEARNED = 400_000  # characters of each domain that the tokenizer is made from


def files_of_domains() -> dict[str, list[Path]]:
    """Return the files of each domain.

    Raises:
      CorpusError: the folder of the corpora is not there.
    """
    root = Path(os.environ.get(ROOT_VARIABLE, ""))
    if not (root / "openstax").is_dir() or not (root / LAW).is_dir():
        raise CorpusError(f"order_and_shift: set {ROOT_VARIABLE} to a folder with openstax/ and {LAW}/")
    files = {book: [root / "openstax" / f"{book}.jsonl"] for book in BOOKS}
    return {**files, LAW: sorted((root / LAW).glob("*.jsonl"))}


@functools.cache
def fingerprint() -> str:
    """Return what tells all texts that are read, general text too, from others."""
    general = corpora.load(config.Data(corpus="wikitext-2")).digest
    return general + cases.fingerprint(file for files in files_of_domains().values() for file in files)


class Library:
    """Pieces of text of every domain, general text to begin with, and one tokenizer for all.

    Raises:
      CorpusError: the folder of the corpora is not there.
    """

    def __init__(self) -> None:
        texts = {domain: _texts(files) for domain, files in files_of_domains().items()}
        learned = [text for both in texts.values() for text in _at_most(both["train"], LEARNED)]
        self.tokenizer = Tokenizer.train(learned, VOCABULARY)
        self._pieces = {
            (domain, split): [
                Note(domain, self.tokenizer.decode(p), ()) for p in self._cut(texts[domain][split])
            ]
            for domain in DOMAINS
            for split in ("train", "held out")
        }

    def _cut(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = [
            piece for text in self.tokenizer.encode_batch(list(texts)) for piece in pieces(text, CONTEXT)
        ]
        return [piece for piece in found if len(piece) == CONTEXT]

    def case(self, sessions: Sequence[str], seed: int) -> Clinic:
        """A stream of sessions of the domains named, in order; of `MIXED`, each piece is from a domain at random."""
        rng = np.random.default_rng([seed, 11])
        order = {d: itertools.cycle(rng.permutation(len(self._pieces[d, "train"])).tolist()) for d in DOMAINS}

        def draw(name: str) -> Note:
            domain = str(rng.choice(DOMAINS)) if name == MIXED else name
            return self._pieces[domain, "train"][next(order[domain])]

        batches = [[draw(name) for _ in range(BATCH)] for name in sessions for _ in range(SESSION)]
        known = sorted({n.domain for batch in batches for n in batch})
        return Clinic(self.tokenizer, batches, {d: self._pieces[d, "held out"][:HELD_OUT] for d in known})

    def general(self, batches: int, seed: int) -> list[Batch]:
        """Batches of WikiText-2, pieces in random order."""
        found = self._cut(corpora.load(config.Data(corpus="wikitext-2")).train)
        order = itertools.cycle(np.random.default_rng([seed, 13]).permutation(len(found)).tolist())
        return [
            rows([found[next(order)] for _ in range(BATCH)], CONTEXT, Tokenizer.BOS) for _ in range(batches)
        ]


def _texts(files: list[Path]) -> dict[str, list[str]]:
    """Texts of the training split, and of what is held out."""
    found: dict[str, list[str]] = {"train": [], "held out": []}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found["train" if record["split"] == "train" else "held out"].append(record["text"])
    return {split: _at_most(texts, READ[split]) for split, texts in found.items()}


def _at_most(texts: list[str], characters: int) -> list[str]:
    kept, total = [], 0
    for text in texts:
        if total >= characters:
            break
        kept.append(text[: characters - total])
        total += len(text)
    return kept

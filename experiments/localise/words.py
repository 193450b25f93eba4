"""Grammar at a dial (BLiMP), and what the blocks tell of the supersenses of words (WordNet)."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.dial_sweep.rows import one_each
from experiments.localise.reading import Reader
from experiments.localise.subject import Condition
from experiments.recruitment_text.senses import agreement, supersenses
from localist_jax.data import Batch, CorpusError, Tokenizer, corpora
from localist_jax.training.run import Run

BATCH, MULTIPLE = 64, 16  # sentences at a time, padded to a multiple of so many tokens


def grammar(reader: Reader, condition: Condition, tokenizer: Tokenizer, of_each: int) -> dict[str, Any]:
    """Return the share of minimal pairs whose grammatical sentence has the shorter code, over all and by paradigm.

    Raises:
      CorpusError: BLiMP is not there.
    """
    paradigms = _pairs(of_each)
    sentences = [tokenizer.encode(s) for pairs in paradigms.values() for pair in pairs for s in pair]
    length = -(-(1 + max(map(len, sentences))) // MULTIPLE) * MULTIPLE
    parts = (sentences[first : first + BATCH] for first in range(0, len(sentences), BATCH))
    opener = int(tokenizer.encode("\n")[0])  # the model knows no BOS
    batches = [one_each(part, length, BATCH, opener=opener) for part in parts]
    codes = np.concatenate([reader.sums(condition, batch) for batch in batches])[: len(sentences)]
    good, bad = codes.reshape(-1, 2).T
    right = good < bad
    numbers = np.repeat(np.arange(len(paradigms)), [len(pairs) for pairs in paradigms.values()])
    by_paradigm = {name: float(right[numbers == nth].mean()) for nth, name in enumerate(paradigms)}
    return {
        "accuracy": float(right.mean()),
        "pairs": len(right),
        "right": right.tolist(),
        "by_paradigm": by_paradigm,
    }


def _pairs(of_each: int) -> dict[str, list[tuple[str, str]]]:
    """Return (good, bad) by paradigm."""
    path = corpora.find("blimp", "blimp.tsv, BLiMP as one table (uid, field, term, good, bad)") / "blimp.tsv"
    taken: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(taken[row["uid"]]) < of_each:
                taken[row["uid"]].append((row["good"], row["bad"]))
    return taken


def names(reader: Reader, condition: Condition, run: Run, rows: Sequence[Batch]) -> dict[str, Any]:
    """Return the normalised information that blocks give about supersenses, beside k-means of words and a permutation.

    Raises:
      CorpusError: WordNet's table is not there.
    """
    sense = supersenses(run.tokenizer)
    if sense is None:
        raise CorpusError("corpus 'wordnet' is not here: put supersenses.tsv at $LOCALIST_DATA/wordnet")
    tokens = np.concatenate([np.asarray(row.tokens)[0] for row in rows])
    blocks = np.concatenate([reader.blocks(condition, row)[0] for row in rows])
    figures = agreement(tokens, blocks, sense, np.asarray(run.state.params["embedding"]), 0)
    return {**figures, "blocks_used": len(np.unique(blocks))}

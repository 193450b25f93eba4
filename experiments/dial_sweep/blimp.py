"""BLiMP: which of two sentences, one of them ungrammatical, does the model find likelier?"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments.dial_sweep.rows import one_each
from localist_jax import bits
from localist_jax.data import Batch, corpora
from localist_jax.locality import Dial
from localist_jax.model import Transformer, forward
from localist_jax.training.run import Run

OF_EACH = 30  # pairs of each of the 67 paradigms
BATCH, MULTIPLE = 128, 16  # sentences at a time, padded to a multiple of so many tokens


def pairs() -> list[tuple[str, str]]:
    """(good, bad) in the notation of WikiText: punctuation stands apart.

    Raises:
      CorpusError: BLiMP is not there.
    """
    path = corpora.find("blimp", "blimp.tsv, BLiMP as one table (uid, field, term, good, bad)") / "blimp.tsv"
    taken: dict[str, list[tuple[str, str]]] = defaultdict(list)
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if len(taken[row["uid"]]) < OF_EACH:
                taken[row["uid"]].append((_spaced(row["good"]), _spaced(row["bad"])))
    return [pair for paradigm in taken.values() for pair in paradigm]


def _spaced(sentence: str) -> str:
    """`He didn't.` → ` He didn 't .`"""
    return " " + re.sub(r"(?<=\w)([.,?!;]|'\w+)", r" \1", sentence)


def reader(run: Run) -> Callable[[float], float]:
    """λ → share of the pairs whose grammatical sentence has the shorter code, whole sentences in bits.

    Raises:
      CorpusError: BLiMP is not there.
    """
    c = run.settings.model
    read = jax.jit(partial(_code, run.model))
    sentences = [run.tokenizer.encode(s) for pair in pairs() for s in pair]
    length = -(-max(map(len, sentences)) // MULTIPLE) * MULTIPLE
    parts = (sentences[first : first + BATCH] for first in range(0, len(sentences), BATCH))
    batches = [one_each(part, length, BATCH) for part in parts]

    def accuracy(locality: float) -> float:
        dial = Dial(locality).broadcast(BATCH, c.layers, c.heads)
        codes = [read(run.state.params, run.state.blocks, batch, dial) for batch in batches]
        good, bad = np.concatenate(codes)[: len(sentences)].reshape(-1, 2).T
        return float((good < bad).mean())

    return accuracy


def _code(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    """Code length of each row, bits [B]."""
    at = {"positions": batch.positions, "segments": batch.segments}
    out = forward(model, params, batch.tokens, dial, blocks, **at)
    return jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0).sum(1)

"""BLiMP: which of two sentences, one of them ungrammatical, does the model find likelier?"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
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
BATCH, BUCKET = 128, 16  # sentences at a time, padded to a multiple of so many tokens


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


def accuracy(run: Run, locality: float) -> float:
    """Share of the pairs whose grammatical sentence has the shorter code, whole sentences in bits."""
    c = run.settings.model
    dial = Dial(locality).broadcast(BATCH, c.layers, c.heads)
    read = jax.jit(partial(_code, run.model))
    sentences = [run.tokenizer.encode(s) for pair in pairs() for s in pair]
    lengths = np.array([-(-len(ids) // BUCKET) * BUCKET for ids in sentences])
    codes = np.zeros(len(sentences))
    for length in np.unique(lengths):
        alike = np.flatnonzero(lengths == length)
        for part in np.array_split(alike, -(-len(alike) // BATCH)):
            batch = one_each([sentences[i] for i in part], int(length), BATCH)
            codes[part] = np.asarray(read(run.state.params, run.state.blocks, batch, dial))[: len(part)]
    good, bad = codes.reshape(-1, 2).T
    return float((good < bad).mean())


def _code(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    """Code length of each row, bits [B]."""
    at = {"positions": batch.positions, "segments": batch.segments}
    out = forward(model, params, batch.tokens, dial, blocks, **at)
    return jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0).sum(1)

"""An independent yardstick for blocks: what they tell of the supersenses of content words (WordNet).

A supersense is the lexicographer's file of a word: noun.food, noun.disease, verb.motion … A word counts where it is one
token and most of its senses are in one file of nouns or verbs.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
from jaxtyping import Int
from scipy.cluster.vq import kmeans2

from experiments.agreement import contingency, normalised_information
from localist_jax.data import Tokenizer
from localist_jax.data.corpora import ROOT_VARIABLE

MOST = 0.5  # share of a word's senses that its supersense must exceed
NONE = -1


def supersenses(tokenizer: Tokenizer) -> Int[np.ndarray, " V"] | None:
    """The supersense of each token, by number; `NONE` for most. None where WordNet's table is not there."""
    path = Path(os.environ.get(ROOT_VARIABLE, "")) / "wordnet" / "supersenses.tsv"
    if not path.is_file():
        return None
    senses: dict[str, Counter[str]] = defaultdict(Counter)
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        lemma, file, _ = line.split("\t")
        senses[lemma.lower()][file] += 1
    numbers: dict[str, int] = {}
    found = np.full(tokenizer.vocab_size, NONE)
    for token in range(tokenizer.vocab_size):
        text = tokenizer.token_text(token)
        counts = senses.get(text.strip().lower()) if text.startswith(" ") and len(text) > 3 else None
        if not counts:
            continue
        [(file, count)] = counts.most_common(1)
        if count > MOST * counts.total() and file.split(".")[0] in ("noun", "verb"):
            found[token] = numbers.setdefault(file, len(numbers))
    return found


def agreement(
    tokens: Int[np.ndarray, " n"],
    blocks: Int[np.ndarray, " n"],
    sense: Int[np.ndarray, " V"],
    embedding: np.ndarray,
    seed: int,
) -> dict[str, float]:
    """NMI with the supersenses over content words: of the blocks, of K-means of embeddings, and of blocks permuted.

    Args:
      tokens, blocks: of each position.
      sense: as `supersenses` gives it.
      embedding: [V, D] of the model, in as many clusters as there are blocks in use.
      seed: of K-means and of the permutation.
    """
    content = sense[tokens] != NONE
    kept, mine, truth = tokens[content], blocks[content], sense[tokens[content]]
    rng = np.random.default_rng([seed, 33])
    words = np.unique(kept)
    unit = embedding[words] / np.maximum(np.linalg.norm(embedding[words], axis=-1, keepdims=True), 1e-9)
    _, label = kmeans2(unit, max(2, len(np.unique(mine))), minit="++", seed=rng)
    cluster = label[np.searchsorted(words, kept)]
    return {
        "content_words": float(content.sum()),
        "blocks": normalised_information(contingency(truth, mine)),
        "kmeans": normalised_information(contingency(truth, cluster)),
        "permuted": normalised_information(contingency(truth, rng.permutation(mine))),
    }

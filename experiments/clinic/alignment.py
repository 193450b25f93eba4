"""Blocks against the known concepts: the kind of every token, and normalised mutual information."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from experiments.clinic.world import KINDS, Note
from localist_jax import bits
from localist_jax.data import Tokenizer


def kinds_of(note: Note, tokenizer: Tokenizer) -> list[str]:
    """The kind of each token of a note, by the part that its last byte belongs to."""
    ends = np.cumsum([len(text.encode()) + 1 for text, _ in note.parts])  # a space follows each part
    at = np.cumsum(tokenizer.byte_lengths[tokenizer.encode(note.text)]) - 1
    return [note.parts[int(i)][1] for i in np.searchsorted(ends, at, side="right")]


def nmi(pairs: Sequence[tuple[int, str]]) -> float:
    """2·I(block; kind)/(H(block) + H(kind)); 0 where either is constant."""
    counts = np.zeros((max(b for b, _ in pairs) + 1, len(KINDS)))
    for block, kind in pairs:
        counts[block, KINDS.index(kind)] += 1
    joint = jnp.asarray(counts / counts.sum())
    entropies = float(bits.entropy(joint.sum(0)) + bits.entropy(joint.sum(1)))
    return 2 * float(bits.mutual_information(joint)) / entropies if entropies > 0 else 0.0

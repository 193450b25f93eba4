"""Blocks against the known concepts: the kind of every token, and normalised mutual information."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from experiments.agreement import contingency, normalised_information
from experiments.clinic.world import KINDS, Note
from localist_jax.data import Tokenizer


def kinds_of(note: Note, tokenizer: Tokenizer) -> list[str]:
    """Return the kind of each token of a note, by the part that its last byte belongs to."""
    ends = np.cumsum([len(text.encode()) + 1 for text, _ in note.parts])  # a space follows each part
    at = np.cumsum(tokenizer.byte_lengths[tokenizer.encode(note.text)]) - 1
    return [note.parts[int(i)][1] for i in np.searchsorted(ends, at, side="right")]


def nmi(pairs: Sequence[tuple[int, str]]) -> float:
    """Return the normalised mutual information of block and kind."""
    blocks, kinds = np.array([(block, KINDS.index(kind)) for block, kind in pairs]).T
    return normalised_information(contingency(blocks, kinds))

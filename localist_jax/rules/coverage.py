"""How well blocks cover concepts, in bits: what a position's block tells of whether a concept's anchor stands there."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax.numpy as jnp
import numpy as np

from localist_jax import bits
from localist_jax.rules.folding import Pattern
from localist_jax.rules.language import RuleSet
from localist_jax.rules.text import Places, Text


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Of one concept.

    Attributes:
      bits: the largest I(block = k; anchor here) over blocks k per position, less its bias 1/(2n·ln 2), at least 0.
      ceiling_bits: H(anchor here): what a block of the concept's own would reach.
      block: that k.
      positions: where anchors stand.
    """

    concept: str
    bits: float
    ceiling_bits: float
    block: int
    positions: int


def coverage(
    rules: RuleSet, tokenizer: Any, rows: Iterable[tuple[np.ndarray, np.ndarray]], blocks: int
) -> list[Coverage]:
    """Coverage of every concept, on rows of (token ids, block of each) as a model routes them."""
    anchors = {name: [Pattern.of(a) for a in rules.anchors(name)] for name in rules.concepts}
    places = Places([p for ps in anchors.values() for p in ps])
    counts = {name: np.zeros((2, blocks)) for name in anchors}
    pieces = tokenizer.token_bytes
    for tokens, block in rows:
        text = Text(pieces)
        for token in tokens:
            text.add(int(token))
        here = {name: np.zeros(len(tokens), int) for name in anchors}
        for place, begin, end in places.find(text.folded, 0):
            for name, ps in anchors.items():
                if places.patterns[place] in ps:
                    here[name][list(text.tokens_of(begin, end))] = 1
        for name in anchors:
            np.add.at(counts[name], (here[name], np.asarray(block)), 1)
    return [_of(name, table) for name, table in counts.items()]


def _of(name: str, table: np.ndarray) -> Coverage:
    total = table.sum()
    if not table[1].sum():
        return Coverage(name, 0.0, 0.0, 0, 0)
    by_block = np.stack(
        [np.stack([table.sum(1) - table[:, k], table[:, k]], 1) for k in range(table.shape[1])]
    )
    told = np.asarray(bits.mutual_information(jnp.asarray(by_block))) - 1 / (2 * total * bits.LN2)
    best = int(told.argmax())
    ceiling = float(bits.binary_entropy(jnp.asarray(table[1].sum() / total)))
    return Coverage(name, max(0.0, float(told[best])), ceiling, best, int(table[1].sum()))


def uncovered(found: Iterable[Coverage], share: float = 0.5) -> list[str]:
    """Concepts that occur, and of which every block tells less than this share of the ceiling: recruits' business."""
    return [c.concept for c in found if c.positions and c.bits < share * c.ceiling_bits]

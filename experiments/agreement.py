"""How well one partition agrees with another: the adjusted Rand index, and normalised mutual information."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int


def contingency(one: Int[np.ndarray, " n"], other: Int[np.ndarray, " n"]) -> np.ndarray:
    """[a, b]: how many things have label a in the one and b in the other; labels from 0."""
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1), np.int64)
    np.add.at(table, (one, other), 1)
    return table


def adjusted_rand(table: np.ndarray) -> float:
    """Hubert and Arabie (1985): 1 where the partitions are the same, 0 in the mean over random ones.

    >>> adjusted_rand(np.array([[2, 0], [0, 3]]))
    1.0
    """

    def pairs(n: np.ndarray) -> float:
        return float((n * (n - 1) / 2).sum())

    both, rows, columns, every = (pairs(n) for n in (table, table.sum(1), table.sum(0), table.sum()))
    chance, most = rows * columns / every, (rows + columns) / 2
    return (both - chance) / (most - chance) if most > chance else 1.0


def normalised_information(table: np.ndarray) -> float:
    """Mutual information over the mean of the two entropies; 0 where either partition has one part only.

    >>> normalised_information(np.array([[4, 0], [0, 4]]))
    1.0
    """
    p = table / table.sum()
    one, other = (entropy(p.sum(axis)) for axis in (1, 0))
    shared = one + other - entropy(p.ravel())
    return float(2 * shared / (one + other)) if one > 0 and other > 0 else 0.0


def entropy(p: np.ndarray) -> float:
    """Bits."""
    return float(-(p * np.log2(np.where(p > 0, p, 1.0))).sum())

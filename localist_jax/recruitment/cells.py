"""Cells: a fine partition of states, of which blocks are made, and what dividing a block lets through.

K-means finds a few hundred cells once. One pass over a text gives the attention mass and the causal pairs of every pair
of cells (T17), and those of any partition into blocks follow by adding up, without another pass. A division of a block
takes some of its cells away. The candidates are the subtrees of the cells' average-linkage tree, as far as they lie in
the block.

The price τ is the attention mass that the last pair of the budget lets through. A gate with mass m and c pairs is worth
φ(m, c) = max(0, m − τ(c + κ)): what it lets through beyond what its pairs would let through elsewhere. The gain of a
division is the sum of φ over the new gates minus that over the old ones. By duality of the knapsack it is the gain of
the optimal gates at fixed τ. For κ = 0 it is never negative.
Plain NumPy on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.cluster import hierarchy

from localist_jax.adopt.calibrate import Look
from localist_jax.locality.budget import PRIOR_PAIRS

SINK = 0  # the cell and the block of the sink
SAME = 0.7  # share of common cells above which two divisions are variants of one
RANDOM_SIZES, RANDOM_EACH = 8, 4  # of random divisions to compare with: sizes, and how many of each


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """A partition of the cells into blocks.

    Attributes:
      block_of_cell: int [C]; the sink's cell is in block 0, and no other is.
      capacity: K, places for blocks.
    """

    block_of_cell: Int[np.ndarray, " C"]
    capacity: int

    @classmethod
    def single(cls, cells: int, capacity: int) -> Partition:
        """Return the partition with one block beside the sink's."""
        return cls(np.minimum(np.arange(cells), 1), capacity)

    @property
    def blocks(self) -> list[int]:
        """The blocks in use, without the sink's."""
        return sorted(set(self.block_of_cell.tolist()) - {SINK})

    def free_place(self) -> int | None:
        """Return the first place without a block; None if all are taken."""
        taken = set(self.block_of_cell.tolist())
        return next((place for place in range(1, self.capacity) if place not in taken), None)

    def moved(self, cells: Bool[np.ndarray, " C"], block: int) -> Partition:
        """Return the partition in which these cells belong to a block."""
        return dataclasses.replace(self, block_of_cell=np.where(cells, block, self.block_of_cell))

    def members(self) -> Float[np.ndarray, "C K"]:
        """Return the matrix that sums cells into blocks."""
        return np.eye(self.capacity)[self.block_of_cell]

    def merged(self, seen: Look) -> Look:
        """Return a look at cells as one at blocks: same text, tables summed over the cells of each block."""
        join = self.members()
        mass = join.T @ (seen.mass.reshape(-1, len(join), len(join)) @ join)
        mass = mass.reshape(*seen.mass.shape[:3], self.capacity, self.capacity)
        return dataclasses.replace(seen, mass=mass, pairs=join.T @ (seen.pairs @ join))


def tree(centres: Float[np.ndarray, "C D"]) -> Bool[np.ndarray, "Q C+1"]:
    """Return the subtrees of the average-linkage tree of unit vectors, as sets of cells; cell 0 is the sink's.

    Every cell alone is a subtree too; the whole is not.
    """
    count = len(centres)
    leaves = list(np.eye(count + 1, dtype=bool)[1:])
    for left, right, *_ in hierarchy.linkage(centres, "average", "cosine") if count > 1 else ():
        leaves.append(leaves[int(left)] | leaves[int(right)])
    return np.array(leaves[:-1] if count > 1 else leaves)


@dataclasses.dataclass(frozen=True, eq=False)
class Division:
    """A way to divide a block.

    Attributes:
      parent: the block.
      cells: bool [C]; those that leave it.
      gain: attention mass that the newcomer's gates would let through beyond today's, at the same budget.
      chance: the gain of a random division of the same size.
    """

    parent: int
    cells: Bool[np.ndarray, " C"]
    gain: float
    chance: float


def divisions(
    seen: Look,
    partition: Partition,
    subtrees: Bool[np.ndarray, "Q C"],
    price: float,
    kv_heads: int,
    random: np.random.Generator,
) -> list[Division]:
    """Return all divisions of blocks that a tree offers; first those that gain most beyond a random one of their size.

    Any partition tells keys apart, so a random one lets more through as well.

    Args:
      seen: at cells.
      partition: today's.
      subtrees: as `tree` returns them.
      price: τ, mass per pair.
      kv_heads: G; heads that share keys file them alike.
      random: draws random divisions.
    """
    found: list[Division] = []
    for block in partition.blocks:
        mine = partition.block_of_cell == block
        parts = np.unique(subtrees & mine, axis=0)
        parts = parts[parts.any(1) & (parts != mine).any(1)]
        if not len(parts):
            continue
        others = _random_parts(mine, random)
        gains = gains_of(block, np.concatenate([parts, others]), seen, partition, price, kv_heads)
        size = seen.positions @ np.concatenate([parts, others]).T / max(1.0, seen.positions[mine].sum())
        size = np.minimum(size, 1 - size)  # a division and its complement are one
        order = np.argsort(size[len(parts) :])
        by_chance = np.interp(size[: len(parts)], size[len(parts) :][order], gains[len(parts) :][order])
        found += [
            Division(block, *each) for each in zip(parts, gains.tolist(), by_chance.tolist(), strict=False)
        ]
    return sorted(found, key=lambda division: division.chance - division.gain)


def different(found: Sequence[Division], count: int) -> list[Division]:
    """Return the first divisions of which no two share more than `SAME` of their cells."""
    chosen: list[Division] = []
    for division in found:
        shared = [(division.cells & c.cells).sum() / (division.cells | c.cells).sum() for c in chosen]
        if max(shared, default=0.0) <= SAME:
            chosen.append(division)
        if len(chosen) == count:
            break
    return chosen


def _random_parts(mine: Bool[np.ndarray, " C"], random: np.random.Generator) -> Bool[np.ndarray, "R C"]:
    """Return random sets of a block's cells, of all sizes up to half."""
    cells = np.flatnonzero(mine)
    counts = np.unique(np.geomspace(1, max(1, len(cells) // 2), RANDOM_SIZES).round().astype(int))
    parts = np.zeros((len(counts), RANDOM_EACH, len(mine)), bool)
    for nth, each in np.ndindex(parts.shape[:2]):
        parts[nth, each, random.choice(cells, counts[nth], replace=False)] = True
    return parts.reshape(-1, len(mine))


def price_of(seen: Look, gates: Float[np.ndarray, "L N K K"], filing: Int[np.ndarray, "L G"]) -> float:
    """Return τ, the least mass per pair among the open gates of a look at blocks; 0 if none is open."""
    L, N = gates.shape[:2]
    heads = np.repeat(filing, N // filing.shape[1], 1)
    layer, head = np.ogrid[:L, :N]
    mass, pairs = seen.mass[heads, layer, head], seen.pairs[heads]
    decided = (gates > 0) & (pairs > 0)
    decided[..., SINK] = False
    return (
        float((mass[decided] / (pairs[decided] + PRIOR_PAIRS)).min(initial=np.inf)) if decided.any() else 0.0
    )


def gains_of(
    block: int,
    parts: Bool[np.ndarray, "Q C"],
    seen: Look,
    partition: Partition,
    price: float,
    kv_heads: int,
) -> Float[np.ndarray, " Q"]:
    """Return the gain of each way to divide a block, given as the cells that leave it."""
    mine = partition.block_of_cell == block
    join = partition.members().astype(np.float32)
    blocks = partition.merged(seen)
    now, then = [], []
    for f, (mass, pairs) in enumerate(zip(seen.mass, seen.pairs[:, None, None], strict=True)):
        today = _worth(blocks.mass[f], blocks.pairs[f], price).sum((-1, -2))
        m, c = (_Halves.of(x.astype(np.float32), mine, parts, join, block) for x in (mass, pairs))
        now.append(_by_group(today, kv_heads))
        then.append(_by_group(today + _change(m, c, price), kv_heads))
    # The heads of a key/value head choose their filing anew, by what they then let through.
    return (np.max(then, 0) - np.max(now, 0)).sum((-1, -2))


def _worth(mass: np.ndarray, pairs: np.ndarray, price: float) -> np.ndarray:
    """Return φ of every gate."""
    return np.maximum(0.0, mass - price * (pairs + PRIOR_PAIRS))


def _by_group(x: Float[np.ndarray, "*parts L N"], kv_heads: int) -> Float[np.ndarray, "*parts L G"]:
    return x.reshape(*x.shape[:-1], kv_heads, -1).sum(-1)


@dataclasses.dataclass(frozen=True, eq=False)
class _Halves:
    """A table's entries around a block that Q divisions divide into a newcomer and a rest; L, N may be 1.

    Attributes:
      rows, columns: [2, Q, L, N, K-1]; newcomer's and rest's, towards the other blocks and from them.
      corners: [4, Q, L, N]; from newcomer and rest to newcomer and rest.
      row, column: [L, N, K-1]; today's.
      corner: [L, N]; today's.
    """

    rows: np.ndarray
    columns: np.ndarray
    corners: np.ndarray
    row: np.ndarray
    column: np.ndarray
    corner: np.ndarray

    @classmethod
    def of(
        cls, table: np.ndarray, mine: np.ndarray, parts: np.ndarray, join: np.ndarray, block: int
    ) -> _Halves:
        """Return the halves of a table [L, N, C, C] between cells."""
        taken, others = parts[:, mine].astype(table.dtype), np.arange(join.shape[1]) != block
        rows = np.tensordot(taken, table[..., mine, :], (1, 2))  # [Q, L, N, C]
        columns = np.tensordot(taken, table[..., mine], (1, 3))
        new = np.einsum("qlnc,qc->qln", rows[..., mine], taken)
        rows, columns = rows @ join, columns @ join
        row, column = table[..., mine, :].sum(-2) @ join, table[..., mine].sum(-1) @ join
        out, into, whole = rows[..., block] - new, columns[..., block] - new, row[..., block]
        return cls(
            rows=np.stack([rows, row - rows])[..., others],
            columns=np.stack([columns, column - columns])[..., others],
            corners=np.stack([new, out, into, whole - new - out - into]),
            row=row[..., others],
            column=column[..., others],
            corner=whole,
        )


def _change(mass: _Halves, pairs: _Halves, price: float) -> Float[np.ndarray, "Q L N"]:
    """Return Σφ over the gates of the divided block, minus that over today's."""

    def worth(name: str) -> np.ndarray:
        return _worth(getattr(mass, name), getattr(pairs, name), price)

    lines = worth("rows").sum((0, -1)) + worth("columns").sum((0, -1)) + worth("corners").sum(0)
    return lines - worth("row").sum(-1) - worth("column").sum(-1) - worth("corner")

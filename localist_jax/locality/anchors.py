"""Blocks at run time: which of the allocated blocks are in use, who descends from whom, and what anchors them.

Anchors pin a block to a concept: each is a token with log-odds (nats) added to the router's logit of
that block where the token stands. All are traced inputs of the model, of fixed capacity, so that
anchoring, recruiting and retiring a block recompile nothing.

`telling` finds the anchors that a block has by itself: the tokens that tell most about it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import chex
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from localist_jax import bits
from localist_jax.types import Numeric, struct

EMPTY = -1  # no anchor in this place
TINY = 1e-300  # stands for a count of 0 under a logarithm
TIE = 1e-12  # nats, relative: log-odds this close count as equal, so that F0 = F(r) gives r and not r + 1


@struct
class Blocks:
    """The blocks of one model. K is the capacity, A the anchor capacity of a block.

    Attributes:
      active: bool [K]; block 0 (sink, background) is always active.
      parent: int32 [K]; the block whose positions it was born to divide, its own number for a root.
      born: int32 [K]; number of its birth, 0 for those there from the start.
      anchor_tokens: int32 [K, A]; `EMPTY` where there is none.
      anchor_log_odds: float32 [K, A]; nats.
    """

    active: chex.Array
    parent: chex.Array
    born: chex.Array
    anchor_tokens: chex.Array
    anchor_log_odds: chex.Array

    @classmethod
    def create(cls, blocks: int, capacity: int, anchors: int) -> Blocks:
        """The first `blocks` of `capacity` blocks in use, without anchors."""
        return cls(
            active=jnp.arange(capacity) < blocks,
            parent=jnp.arange(capacity, dtype=jnp.int32),
            born=jnp.zeros(capacity, jnp.int32),
            anchor_tokens=jnp.full((capacity, anchors), EMPTY, jnp.int32),
            anchor_log_odds=jnp.zeros((capacity, anchors), jnp.float32),
        )

    def with_child(self, child: Numeric, parent: Numeric, number: Numeric) -> Blocks:
        """A copy in which `child` is in use, below `parent`, as birth `number`; without anchors. May be traced."""
        return dataclasses.replace(
            self,
            active=self.active.at[child].set(True),
            parent=self.parent.at[child].set(parent),
            born=self.born.at[child].set(number),
            anchor_tokens=self.anchor_tokens.at[child].set(EMPTY),
            anchor_log_odds=self.anchor_log_odds.at[child].set(0.0),
        )

    def without(self, block: Numeric) -> Blocks:
        """A copy in which `block`, which must have no children, is not in use; its parent takes its positions back."""
        return dataclasses.replace(
            self,
            active=self.active.at[block].set(False),
            parent=self.parent.at[block].set(block),
            born=self.born.at[block].set(0),
        )

    def anchored(self, block: int, tokens: Mapping[int, float]) -> Blocks:
        """A copy in which `tokens` (token id → log-odds in nats) are the anchors of `block`.

        Raises:
          ValueError: block 0 or a block that is not active, or more anchors than the capacity.
        """
        capacity = self.anchor_tokens.shape[1]
        if not 0 < block < self.active.size or not bool(self.active[block]):
            raise ValueError(f"anchors: block {block} is not an active block other than 0")
        if len(tokens) > capacity:
            raise ValueError(f"anchors: {len(tokens)} anchors for block {block}, capacity is {capacity}")
        ids, weights = np.full(capacity, EMPTY, np.int32), np.zeros(capacity, np.float32)
        ids[: len(tokens)], weights[: len(tokens)] = list(tokens), list(tokens.values())
        return dataclasses.replace(
            self,
            anchor_tokens=self.anchor_tokens.at[block].set(ids),
            anchor_log_odds=self.anchor_log_odds.at[block].set(weights),
        )


def prior(blocks: Blocks, tokens: Int[Array, "B T"]) -> Float[Array, "B T K"]:
    """Log-odds in nats that the token at each position adds to the router's logits."""
    hit = tokens[..., None, None] == blocks.anchor_tokens
    return jnp.where(hit, blocks.anchor_log_odds, 0.0).sum(-1)


@dataclasses.dataclass(frozen=True)
class Telling:
    """Tokens that tell most about one block, the first that were chosen first (T9).

    Attributes:
      tokens: ids.
      log_odds: nats, as `Blocks.anchored` takes them: ln((n + ½)/(m + ½)), n of the token's places being the block's.
      gains_bits: what each adds to I(block; anchors), bits per position, its bias taken off.
      entropy_bits: H(block), of whether a position is the block's.
    """

    tokens: tuple[int, ...]
    log_odds: tuple[float, ...]
    gains_bits: tuple[float, ...]
    entropy_bits: float

    @property
    def information_bits(self) -> float:
        """I(block; anchors)."""
        return sum(self.gains_bits)

    @property
    def left_bits(self) -> float:
        """H(block | anchors)."""
        return self.entropy_bits - self.information_bits


def telling(counts: Float[np.ndarray, "K V"], block: int, most: int = 8, vocabulary: int = 0) -> Telling:
    """Greedy choice of the tokens whose presence tells most about whether a position is the block's.

    The anchors, and "none of them", split the positions into cells of (n, m): the block's, and the others'. A cell is
    coded in c(n, m) = −n log₂ n/(n+m) − m log₂ m/(n+m) bits, so a token that leaves the cell of none saves
    c(none) − c(token) − c(none without it), of which 1/(2 ln 2) is noise (Miller–Madow). Only tokens where the
    block is likelier than elsewhere are chosen, and only while one saves, over all positions, the log₂V bits that name
    it. Host-side.

    A heuristic: tokens that tell only together are not found.

    Args:
      counts: of positions, by block and by the token that stands there.
      block: whose anchors are wanted.
      most: how many at most.
      vocabulary: tokens that there are, where columns of tokens that never occur were left out; 0: as many as columns.

    >>> counts = np.array([[50.0, 1.0, 9.0], [0.0, 40.0, 11.0]])
    >>> telling(counts, 0).tokens, telling(counts, 1).tokens
    ((0,), (1, 2))
    """
    total = max(float(counts.sum()), 1.0)
    mine, others = counts[block].astype(float), counts.sum(0) - counts[block]
    n, m = mine.sum(), others.sum()
    entropy, speaks_for = float(_cell_bits(n, m)) / total, mine * m > others * n
    chosen: list[int] = []
    gains: list[float] = []
    for _ in range(min(most, counts.shape[1])):
        saved = _cell_bits(n, m) - _cell_bits(mine, others) - _cell_bits(n - mine, m - others)
        saved = np.where(speaks_for, saved - bits.from_nats(0.5), 0.0)
        saved[chosen] = 0.0
        best = int(saved.argmax())
        if saved[best] <= np.log2(vocabulary or counts.shape[1]):
            break
        chosen.append(best)
        gains.append(float(saved[best]) / total)
        n, m = n - mine[best], m - others[best]
    log_odds = np.log(mine[chosen] + 0.5) - np.log(others[chosen] + 0.5)
    return Telling(tuple(chosen), tuple(log_odds.tolist()), tuple(gains), entropy)


def _cell_bits(n, m):
    """c(n, m): bits that tell which of n + m positions are the n; 0 where either is 0."""
    both = np.maximum(np.asarray(n, float) + m, TINY)
    return 0.0 - n * np.log2(np.maximum(n, TINY) / both) - m * np.log2(np.maximum(m, TINY) / both)


def least_redundant(keys, margin, fidelity) -> np.ndarray:
    """r_min: the fewest exchangeable anchors whose mass F(r) = r/(r + (n−r)·e^{−m}) is at least F0 (T9).

    r_min = max(1, ⌈n/(1 + e^m·(1−F0)/F0)⌉), in log space, then verified at r_min − 1 and r_min, to the rounding
    of F0. Host-side.

    Args:
      keys: n, how many keys the query sees, anchors included; up to 2⁵⁰.
      margin: m, what an anchor's logit exceeds the others' by, nats; may be negative.
      fidelity: F0 in (0, 1].

    Returns:
      r_min, int64, of the arguments' common shape.

    Raises:
      ValueError: n < 1, m not finite, or F0 outside (0, 1].

    >>> int(least_redundant(16, np.log(9.0), 0.75))
    4
    """
    n, m, F0 = np.broadcast_arrays(*(np.asarray(x, np.float64) for x in (keys, margin, fidelity)))
    if np.any(n < 1) or not np.all(np.isfinite(m)):
        raise ValueError(f"anchors: needs n ≥ 1 keys and a finite margin, got n={keys}, m={margin}")
    if not np.all((F0 > 0) & (F0 <= 1)):
        raise ValueError(f"anchors: fidelity must lie in (0, 1], got {fidelity}")
    with np.errstate(divide="ignore"):
        wanted = np.log(F0) - np.log1p(-F0)
        coarse = np.where(F0 < 1, 2 * np.finfo(float).eps / (1 - F0), 0.0)  # F0's own rounding, in log-odds
    tie = TIE * (1 + np.abs(m)) + coarse

    def reaches(r):
        with np.errstate(divide="ignore", invalid="ignore"):
            gap = np.log(r) - np.log(n - r) + m - wanted
            return (r >= n) | (gap >= -tie)

    r = np.clip(np.ceil(np.exp(np.log(n) - np.logaddexp(0.0, m - wanted))), 1, n)
    r = np.where(reaches(r), r, r + 1)
    return np.where((r > 1) & reaches(r - 1), r - 1, r).astype(np.int64)

"""Blocks at run time: which of the allocated blocks are in use, their parents, and their anchors.

An anchor ties a block to a concept: it is a token whose occurrence adds log-odds (nats) to the router's logit of that
block at its position. All are traced inputs of the model, of fixed capacity, so anchoring, recruiting and retiring a
block recompile nothing.

`telling` finds the tokens that are most informative about a block, which can serve as its anchors.
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

EMPTY = -1  # token id of an unused anchor slot
TINY = 1e-300  # replaces a count of 0 under a logarithm
TIE = 1e-12  # nats, relative: log-odds this close count as equal, so that F0 = F(r) gives r and not r + 1


@struct
class Blocks:
    """The blocks of one model: K is the capacity, A the anchor capacity of a block.

    Attributes:
      active: bool [K]; block 0 (sink, background) is always active.
      parent: int32 [K]; the block whose positions it divides; a root is its own parent.
      born: int32 [K]; birth number, 0 for blocks there from the start.
      anchor_tokens: int32 [K, A]; `EMPTY` in unused slots.
      anchor_log_odds: float32 [K, A]; nats.
    """

    active: chex.Array
    parent: chex.Array
    born: chex.Array
    anchor_tokens: chex.Array
    anchor_log_odds: chex.Array

    @classmethod
    def create(cls, blocks: int, capacity: int, anchors: int) -> Blocks:
        """Return blocks of which the first `blocks` are active, without anchors."""
        return cls(
            active=jnp.arange(capacity) < blocks,
            parent=jnp.arange(capacity, dtype=jnp.int32),
            born=jnp.zeros(capacity, jnp.int32),
            anchor_tokens=jnp.full((capacity, anchors), EMPTY, jnp.int32),
            anchor_log_odds=jnp.zeros((capacity, anchors), jnp.float32),
        )

    def with_child(self, child: Numeric, parent: Numeric, number: Numeric) -> Blocks:
        """Return a copy in which `child` is active, with this parent and birth number and no anchors; may be traced."""
        return dataclasses.replace(
            self,
            active=self.active.at[child].set(True),
            parent=self.parent.at[child].set(parent),
            born=self.born.at[child].set(number),
            anchor_tokens=self.anchor_tokens.at[child].set(EMPTY),
            anchor_log_odds=self.anchor_log_odds.at[child].set(0.0),
        )

    def without(self, block: Numeric) -> Blocks:
        """Return a copy in which `block`, which must have no children, is inactive."""
        return dataclasses.replace(
            self,
            active=self.active.at[block].set(False),
            parent=self.parent.at[block].set(block),
            born=self.born.at[block].set(0),
        )

    def anchored(self, block: int, tokens: Mapping[int, float]) -> Blocks:
        """Return a copy in which `tokens` (token id → log-odds in nats) are the anchors of `block`.

        Raises:
          ValueError: for block 0, an inactive block, or more anchors than the capacity.
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
    """Return the log-odds in nats that the token at each position adds to the router's logits."""
    hit = tokens[..., None, None] == blocks.anchor_tokens
    return jnp.where(hit, blocks.anchor_log_odds, 0.0).sum(-1)


@dataclasses.dataclass(frozen=True)
class Telling:
    """The tokens that are most informative about one block, in the order in which they were chosen (T9).

    Attributes:
      tokens: token ids.
      log_odds: ln((n + ½)/(m + ½)) in nats, where the token occurs n times inside the block and m times outside.
      gains_bits: what each token adds to I(block; anchors), in bits per position, corrected for bias.
      entropy_bits: H(block), the entropy of whether a position belongs to the block.
    """

    tokens: tuple[int, ...]
    log_odds: tuple[float, ...]
    gains_bits: tuple[float, ...]
    entropy_bits: float

    @property
    def information_bits(self) -> float:
        """The mutual information I(block; anchors)."""
        return sum(self.gains_bits)

    @property
    def left_bits(self) -> float:
        """The conditional entropy H(block | anchors)."""
        return self.entropy_bits - self.information_bits


def telling(counts: Float[np.ndarray, "K V"], block: int, most: int = 8, vocabulary: int = 0) -> Telling:
    """Greedily choose the tokens that are most informative about whether a position belongs to a block.

    Each chosen token, and "none of them", is a cell of positions, n inside the block and m outside. A cell takes
    c(n, m) = −n log₂ n/(n+m) − m log₂ m/(n+m) bits to code, so moving a token out of the cell "none" saves
    c(none) − c(token) − c(none without it), of which 1/(2 ln 2) is bias (Miller–Madow). A token is eligible if the
    block is likelier at it than elsewhere, and tokens are chosen while one saves, over all positions, the log₂V bits
    that it takes to name it. Runs on the host.

    This is a heuristic: it misses tokens that are informative only together.

    Args:
      counts: number of positions, by block and token.
      block: the block whose anchors are wanted.
      most: the largest number of tokens to choose.
      vocabulary: V, if columns of tokens that never occur were left out; 0: the number of columns.

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
    """Return c(n, m), the bits that code which of n + m positions are the n; 0 if either is 0."""
    both = np.maximum(np.asarray(n, float) + m, TINY)
    return 0.0 - n * np.log2(np.maximum(n, TINY) / both) - m * np.log2(np.maximum(m, TINY) / both)


def least_redundant(keys, margin, fidelity) -> np.ndarray:
    """Return the fewest exchangeable anchors r_min with mass F(r) = r/(r + (n−r)·e^{−m}) of at least F0 (T9).

    r_min = max(1, ⌈n/(1 + e^m·(1−F0)/F0)⌉), computed in log space, then verified at r_min − 1 and r_min up to the
    rounding of F0. Runs on the host.

    Args:
      keys: n, the number of visible keys, anchors included; up to 2⁵⁰.
      margin: m, by how many nats an anchor's logit exceeds the others'; may be negative.
      fidelity: F0 in (0, 1].

    Returns:
      r_min, int64, in the arguments' broadcast shape.

    Raises:
      ValueError: if n < 1, m is not finite, or F0 is outside (0, 1].

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

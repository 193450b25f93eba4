"""Signs that something is wrong with blocks: ambiguous routing or attention, and recruitment that does not settle.

Each has a name, a figure in bits and a limit in bits. They blame nobody and change nothing: they are said in the log.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from localist_jax.recruitment import chronicle
from localist_jax.recruitment.chronicle import Record

LEAST_ROUTED = 0.5  # bits that a state must tell about its block: log₂(blocks in use) − H(block | state)
LEAST_FOCUS = 0.1  # bits by which attention must be below log₂(open keys), where that is 1 or more
MOST_MOVED = 0.5  # bits of an earlier assignment that a later one may have lost
MOST_GONE = 0.5  # share of the bits that newcomers claimed which may have gone with those retired since
RETIRED_AT_LEAST = 2  # newcomers, before their going is called a sign


@dataclasses.dataclass(frozen=True)
class BlockSigns:
    """The figures that signs of trouble are read from.

    Attributes:
      blocks_in_use: that the router may choose among.
      doubt_bits: H(block | state) of the router, mean over positions.
      entropy_bits: of attention at λ=1, mean over queries, heads and localist layers.
      open_bits: log₂(open keys), the same mean.
      moved_bits: H(block before | block now) of the same positions; 0 at a first look.
    """

    blocks_in_use: int
    doubt_bits: float
    entropy_bits: float
    open_bits: float
    moved_bits: float = 0.0


def signs(look: BlockSigns, records: Sequence[Record] = ()) -> dict[str, str]:
    """The signs that are there, by name, in words.

    Args:
      look: figures of the run now.
      records: of its recruiter so far.
    """
    found: dict[str, str] = {}
    routed = math.log2(max(1, look.blocks_in_use)) - look.doubt_bits
    if look.blocks_in_use > 1 and routed < LEAST_ROUTED:
        found["ambiguous_routing"] = (
            f"the router's doubt H(block | state) = {look.doubt_bits:.2f} bits is within {LEAST_ROUTED} of "
            f"log₂({look.blocks_in_use}): states hardly tell blocks apart"
        )
    focus = look.open_bits - look.entropy_bits
    if look.open_bits >= 1 and focus < LEAST_FOCUS:
        found["ambiguous_attention"] = (
            f"attention entropy at λ=1 is {look.entropy_bits:.2f} bits, within {LEAST_FOCUS} of its bound "
            f"{look.open_bits:.2f}: gates decide what is seen, queries nothing"
        )
    if look.moved_bits > MOST_MOVED:
        found["unstable_assignment"] = (
            f"{look.moved_bits:.2f} bits of where positions belonged at the last look are lost, more than {MOST_MOVED}"
        )
    gone, claimed, count = claims(records)
    if count >= RETIRED_AT_LEAST and gone > MOST_GONE * claimed:
        found["unstable_recruitment"] = (
            f"{count} newcomers were retired, and with them {gone:,.1f} of the {claimed:,.1f} bits that newcomers were "
            "recruited for"
        )
    return found


def claims(records: Sequence[Record]) -> tuple[float, float, int]:
    """Bits beyond placebos by which newcomers were recruited: of those retired since, of all; how many were retired."""
    newcomers = [(life, chronicle.beyond_bits(life.trial)) for life in chronicle.lives(records) if life.trial]
    gone = [bits for life, bits in newcomers if life.ended is not None]
    return sum(gone), sum(bits for _, bits in newcomers), len(gone)


def lost_bits(before: np.ndarray, now: np.ndarray) -> float:
    """H(before | now) in bits: what blocks of the same positions no longer tell; 0 where blocks were only divided.

    >>> lost_bits(np.array([1, 1, 2, 2]), np.array([1, 3, 2, 2])), lost_bits(np.array([1, 2]), np.array([1, 1]))
    (0.0, 1.0)
    """
    _, joint = np.unique(np.stack([before, now]), axis=1, return_counts=True)
    _, single = np.unique(now, return_counts=True)
    return _entropy(joint) - _entropy(single)


def _entropy(counts: np.ndarray) -> float:
    p = counts / counts.sum()
    return float(-(p * np.log2(p)).sum())

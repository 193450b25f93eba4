"""The policy of a recruiter: which divisions it proposes, which it tries, and when it gives a trial up.

`Recruiter(policy=…)` takes a subclass of `Policy` with other answers, so that a study or a test needs to override no
method of the recruiter. With several processes process 0 asks, and tells the others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from localist_jax.locality import Blocks
from localist_jax.recruitment.evidence import Judgement
from localist_jax.recruitment.proposals import Concept, Proposal, Survey, proposals, worth_a_trial

PROMISING = 5.0  # bits of surprise in a pilot, below which there is no trial


class Policy:
    """The answers that `localist train` uses."""

    def proposals(self, seen: Survey, active: Sequence[bool], concepts: Sequence[Concept]) -> list[Proposal]:
        """Return divisions of the active blocks that a survey suggests, best first."""
        return proposals(seen, active, concepts)

    def is_worth_a_trial(self, seen: Survey, proposal: Proposal, placebos: list[np.ndarray]) -> bool:
        """Say whether a division stands out from its placebos, given as directions, in the survey."""
        return worth_a_trial(seen, proposal, placebos)

    def is_promising(self, pilot: Judgement, candidates: Sequence[Proposal]) -> bool:
        """Say whether a trial follows the pilot: a candidate surprises, and has reached its threshold.

        A candidate for a concept that the user named need not pay for its description here.
        """
        costs = [cost * bool(p.name) for cost, p in zip(pilot.cost_bits, candidates, strict=False)]
        figures = zip(pilot.llr_bits, pilot.threshold_bits, costs, pilot.surprise_bits, strict=False)
        return any(llr >= least - cost and bits >= PROMISING for llr, least, cost, bits in figures)

    def is_hopeless(self, llr_bits: np.ndarray) -> bool:
        """Say whether a trial is given up early: no candidate has gathered any evidence."""
        return not bool((llr_bits > 0).any())

    def block_to_try_without(self, blocks: Blocks, block_of_position: np.ndarray) -> int:
        """Return the childless block with the fewest positions, or 0 if at most one block beside 0 is in use."""
        free = childless(blocks)
        used = np.bincount(block_of_position, minlength=blocks.active.size)
        return min(free, key=lambda b: used[b]) if free and np.asarray(blocks.active)[1:].sum() > 1 else 0


def childless(blocks: Blocks) -> list[int]:
    """Return the blocks in use that have no children, except block 0."""
    active, parent = np.asarray(blocks.active), np.asarray(blocks.parent)
    places = np.arange(active.size)
    parents = set(parent[active & (parent != places)].tolist())
    return [int(b) for b in places[1:] if active[b] and b not in parents]

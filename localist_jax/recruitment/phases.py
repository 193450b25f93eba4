"""The phases of a recruiter: `Idle`, then `Pilot`, then `Trial`, then `Idle` again; and their form in a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from localist_jax.recruitment.proposals import KINDS, Concept, Proposal


@dataclasses.dataclass(frozen=True)
class Idle:
    """No trial is open.

    Attributes:
      due: step from which on a survey may propose a trial.
      failed: parent and kind (its place in `KINDS`) of the division whose pilot failed last; (0, 0): none.
    """

    due: int
    failed: tuple[int, int] = (0, 0)


@dataclasses.dataclass(frozen=True)
class Pilot:
    """A short first look at the candidates; its evidence does not count in the trial.

    Attributes:
      candidates: the proposals that are tried, all for one parent.
      horizon: last step of the trial, if the pilot were one.
    """

    candidates: list[Proposal]
    horizon: int


@dataclasses.dataclass(frozen=True)
class Trial:
    """The trial itself, which may end in a recruitment.

    Attributes:
      candidates: the proposals that are tried, all for one parent.
      horizon: last step of the trial.
    """

    candidates: list[Proposal]
    horizon: int


@dataclasses.dataclass(frozen=True)
class TrialPlan:
    """The next trial, which process 0 plans for all.

    Attributes:
      gain_bits: estimated gain of the best division, whether or not it is worth a trial.
      candidates: the divisions that are tried; if empty there is no trial.
      placebos: directions, for each place of the trial and each of its placebos.
      leaving: the block that the model is also tried without, or 0.
    """

    gain_bits: float
    candidates: list[Proposal]
    placebos: list[list[np.ndarray]]
    leaving: int


Phase = Idle | Pilot | Trial


def packed(phase: Phase, batches: int) -> np.ndarray:
    """Return the phase and the number of kept batches as int32 [8], for a checkpoint; `unpacked` reads them."""
    if isinstance(phase, Idle):
        return np.asarray([phase.due, 0, False, False, batches, 0, *phase.failed], np.int32)
    about = [0, phase.horizon, True, isinstance(phase, Pilot), batches, len(phase.candidates), 0, 0]
    return np.asarray(about, np.int32)


def unpacked(
    about: np.ndarray,
    table: np.ndarray,
    directions: np.ndarray,
    parents: np.ndarray,
    concepts: Sequence[Concept],
) -> tuple[Phase, int]:
    """Return the phase, and the number of kept batches.

    Args:
      about: what `packed` returned.
      table: what `proposal_table` returned.
      directions, parents: of the births in the trial's state, candidates first.
      concepts: the recruiter's, in the same order as when the checkpoint was written.
    """
    due, horizon, is_open, is_pilot, batches, count, parent, kind = map(int, about)
    if not is_open:
        return Idle(due, (parent, kind)), batches
    candidates = []
    for place, (kind_, gain_bits, share, positions, concept) in enumerate(table[:count].tolist()):
        named = concepts[int(concept)] if concept >= 0 else Concept("", {})
        candidates.append(
            Proposal(
                KINDS[int(kind_)],
                int(parents[place]),
                directions[place],
                share,
                gain_bits,
                int(positions),
                named.name,
                named.anchors,
            )
        )
    return (Pilot if is_pilot else Trial)(candidates, horizon), batches


def proposal_table(phase: Phase, rows: int, concepts: Sequence[Concept]) -> np.ndarray:
    """Return kind, gain, share, positions and concept of each candidate, float32 [rows, 5]; other rows are zero."""
    names = [concept.name for concept in concepts]
    table = np.zeros((rows, 5), np.float32)
    for place, p in enumerate([] if isinstance(phase, Idle) else phase.candidates):
        concept = names.index(p.name) if p.name else -1
        table[place] = KINDS.index(p.kind), p.gain_bits, p.share, p.positions, concept
    return table

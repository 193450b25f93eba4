"""The record of a candidate: one line of `recruitment.jsonl`."""

from __future__ import annotations

from typing import Any

import numpy as np

from localist_jax.recruitment.evidence import Judgement
from localist_jax.recruitment.proposals import Proposal

FILE = "recruitment.jsonl"
# Why a candidate's trial or pilot ended.
REACHED_HORIZON, GATHERED_NOTHING = "at its horizon", "it gathered nothing"
OUTDONE, STREAM_ENDED = "a placebo saved more", "the stream ended"
UNPROMISING = "its pilot did not reach the threshold, or did not stand out"
# Why no trial began.
QUIET = "no division stands out from its placebos"
FULL = "no place is left: raise config.recruitment.blocks_at_most"


def candidate_record(proposal: Proposal, said: Judgement, at: int, curve_bits: np.ndarray) -> dict[str, Any]:
    """Return the rounded figures of a candidate.

    Args:
      proposal: the candidate.
      said: the judgement on all candidates.
      at: place of the candidate among them.
      curve_bits: [steps, C, 1 + m], evidence of candidates and placebos after every step.
    """
    return {
        "proposal": proposal.kind,
        "name": proposal.name,
        "parent": proposal.parent,
        "share": round(proposal.share, 4),
        "estimated_gain_bits": round(proposal.gain_bits, 1),
        "llr_bits": round(said.llr_bits[at], 2),
        "cost_bits": round(said.cost_bits[at], 2),
        "threshold_bits": round(said.threshold_bits[at], 2),
        "placebo_bits": [round(x, 2) for x in said.placebo_bits[at]],
        "surprise_bits": round(said.surprise_bits[at], 2),
        "surprise_threshold_bits": round(said.surprise_threshold_bits, 2),
        "curve_bits": np.round(curve_bits[:, at, 0].astype(float), 1).tolist(),
        "best_placebo_curve_bits": np.round(curve_bits[:, at, 1:].max(-1).astype(float), 1).tolist(),
    }

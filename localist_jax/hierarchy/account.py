"""The one account J that moves of both levels, blocks and whole LLMs, must lower (T12).

J = bits in which the ensemble coded the stream, each batch before it was learned from, + bits that describe blocks and
LLMs. A move is booked with what it saved since its trial was opened, as if the ensemble had been switched then, and
with what its description costs. Moves that would raise J are refused.
"""

from __future__ import annotations

import dataclasses

from localist_jax.types import Numeric


def accepts(before: Numeric, after: Numeric, epsilon: Numeric = 0.0):
    """Whether a move from `before` to `after` bits lowers J by at least ε; elementwise."""
    return after <= before - epsilon


@dataclasses.dataclass
class Account:
    """J, as a stream goes.

    Attributes:
      coded_bits: of the stream so far, of the sequence of ensembles that was actually used.
      description_bits: of everything that was recruited.
      moves: how many were booked.
    """

    coded_bits: float = 0.0
    description_bits: float = 0.0
    moves: int = 0

    @property
    def total_bits(self) -> float:
        """J."""
        return self.coded_bits + self.description_bits

    def coded(self, bits: float) -> None:
        """A batch was coded."""
        self.coded_bits += bits

    def move(self, saved_bits: float, cost_bits: float) -> dict[str, float]:
        """Books a move and says what J was and is.

        Args:
          saved_bits: of the stream since the trial's opening (LLR).
          cost_bits: ℓ of what is recruited; negative where something is dropped.

        Raises:
          ValueError: J would rise.
        """
        before, after = self.total_bits, self.total_bits - saved_bits + cost_bits
        if not accepts(before, after):
            raise ValueError(
                f"account: a move that saves {saved_bits:.1f} bits and costs {cost_bits:.1f} would raise J"
            )
        self.coded_bits -= saved_bits
        self.description_bits += cost_bits
        self.moves += 1
        return {"j_before_bits": round(before, 1), "j_after_bits": round(after, 1)}

"""A trial of a whole LLM: would two of them code the stream in fewer bits than one, and by more than chance?

The candidate is the ensemble in which the documents of one member are divided: a copy of it (the *newcomer*) learns
from those of the badly coded domain, the member itself (the *heir*) only from the others. Documents that another member
codes better than either of them are neither's, however the division would have them. Placebos are the same with
documents drawn at random, in the same proportion, so they have equal capacity and nothing to find. Incumbent, candidate
and placebos all code every document by the same mixture, before any of them learns from it, and all keep learning. The
mixture is told nothing about domains, so that the price of choosing among one more LLM is in the evidence already.

The verdict is `recruitment.evidence`, unchanged. It falls when both sides of the division have had `horizon` documents:
where a domain comes alone, it says nothing until the others return.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from localist_jax.data import Batch
from localist_jax.hierarchy.engine import EnsembleEngine, Queue
from localist_jax.hierarchy.signature import Division
from localist_jax.locality import Dial
from localist_jax.recruitment.evidence import Evidence
from localist_jax.training.state import TrainState
from localist_jax.types import PyTree

SIDES = HEIR, NEWCOMER = 0, 1
Coding = Callable[[Float[np.ndarray, "B T M"], Sequence[int]], Float[np.ndarray, "B T"]]


@dataclasses.dataclass
class Contender:
    """Two LLMs in the place of one: the heir and the newcomer, each with the documents that wait for it."""

    states: list[TrainState]
    queues: tuple[Queue, Queue]

    @classmethod
    def of(cls, parent: TrainState, waiting: Queue) -> Contender:
        """Two copies of the parent; the heir takes over what waited for it."""
        return cls([parent, parent], (Queue(waiting), Queue()))


class MemberTrial:
    """One candidate and m placebos, for one member.

    Args:
      engine: that codes and trains.
      parent: place of the member.
      state, dial: of that member.
      waiting: documents that it has not learned from yet.
      division: which documents the newcomer is to have.
      placebos: m.
      horizon: documents that both sides must have had.
      cost_bits: ℓ of the candidate.
      opened: batch of the stream.
      number: of the trial, from 1.
      rng: for the placebos' documents.
    """

    def __init__(
        self,
        engine: EnsembleEngine,
        parent: int,
        state: TrainState,
        dial: Dial,
        waiting: Queue,
        division: Division,
        *,
        placebos: int,
        horizon: int,
        cost_bits: float,
        opened: int,
        number: int,
        rng: np.random.Generator,
    ):
        self.parent, self.division, self.opened, self.number = parent, division, opened, number
        self.cost_bits = cost_bits
        self.evidence = Evidence.create(1, placebos).opened(0, cost_bits, 0, horizon)
        self.contenders = [Contender.of(state, waiting) for _ in range(1 + placebos)]
        self.sides = [0, 0]  # documents of the heir and of the newcomer so far
        self.signature = np.zeros_like(division.direction)
        self.curve_bits: list[list[float]] = []
        self._engine, self._dial, self._rng = engine, dial, rng

    @property
    def clock(self) -> int:
        """Documents of the side that has had fewer."""
        return min(self.sides)

    @property
    def llr_bits(self) -> float:
        """Evidence for the candidate so far."""
        return float(self.evidence.llr_bits[0])

    @property
    def is_behind(self) -> bool:
        """Whether the candidate has no evidence and is no better than its best placebo."""
        return self.llr_bits < min(0.0, float(self.evidence.placebo_bits.max()))

    def observe(
        self,
        batch: Batch,
        documents: Float[np.ndarray, "B V"],
        losses: Float[np.ndarray, "B T M"],
        members: Sequence[int],
        incumbent_bits: float,
        code: Coding,
        mine: Bool[np.ndarray, " B"],
    ) -> None:
        """One batch: scored by everybody, then learned from.

        Args:
          batch, documents: rows of the stream and their token counts.
          losses: bits of each token under the members, by place; a spare place comes last.
          members: places that are taken.
          incumbent_bits: of the batch, by the ensemble as it is.
          code: the ensemble's mixture of the LLMs at some places.
          mine: rows that the ensemble gives to this member.
        """
        real = np.asarray(batch.segments).max(1) > 0
        pair, others = [self.parent, losses.shape[-1] - 1], [at for at in members if at != self.parent]
        totals, theirs = [], mine
        for nth, contender in enumerate(self.contenders):
            among = losses.copy()
            for state, place in zip(contender.states, pair, strict=True):
                among[..., place] = self._engine.losses(state, batch, self._dial)
            totals.append(code(among, [*members, pair[NEWCOMER]])[real].sum())
            if nth == 0:
                by_member = among.sum(1)
                best_elsewhere = by_member[:, others].min(-1, initial=np.inf)
                theirs = mine | (by_member[:, pair].min(-1) <= best_elsewhere)
        self.evidence = self.evidence.observed(
            jnp.float32(incumbent_bits), jnp.asarray(totals[:1]), jnp.asarray(totals[1:])[None]
        )
        placebos = np.asarray(self.evidence.placebo_bits[0]).tolist()
        self.curve_bits.append([float(self.evidence.llr_bits[0]), *placebos])
        chosen = self.division.takes(documents) & real & theirs
        self.signature = self.signature + documents[chosen].sum(0)
        self._learn(batch, np.flatnonzero(chosen), np.flatnonzero(mine & real & ~chosen))

    def _learn(self, batch: Batch, newcomer: np.ndarray, heir: np.ndarray) -> None:
        together = np.concatenate([newcomer, heir])
        for nth, contender in enumerate(self.contenders):
            drawn = self._rng.random(len(together)) < self.division.share
            takes = np.arange(len(together)) < len(newcomer) if nth == 0 else drawn
            for side, rows in ((NEWCOMER, together[takes]), (HEIR, together[~takes])):
                queue = contender.queues[side]
                queue.put(batch, np.sort(rows))
                while len(queue) >= batch.tokens.shape[0]:
                    full = queue.take(batch.tokens.shape[0])
                    contender.states[side] = self._engine.train(contender.states[side], full)
        self.sides[NEWCOMER] += len(newcomer)
        self.sides[HEIR] += len(heir)

    # What a checkpoint keeps, beside what the trial was made from.

    @property
    def queues(self) -> list[Queue]:
        """Return the queues of all contenders, the heir before the newcomer."""
        return [queue for contender in self.contenders for queue in contender.queues]

    def memory(self) -> dict[str, PyTree]:
        """States of all contenders and the evidence."""
        states = [state for contender in self.contenders for state in contender.states]
        return {
            "states": jax.tree.map(lambda *leaves: jnp.stack(leaves), *states),
            "evidence": self.evidence,
            "signature": np.asarray(self.signature, np.float32),
        }

    def remember(
        self,
        memory: dict[str, PyTree],
        queues: Sequence[Queue],
        sides: list[int],
        curve_bits: list[list[float]],
    ) -> None:
        """Goes on where `memory` was taken."""
        self.sides, self.curve_bits = sides, curve_bits
        self.evidence, self.signature = memory["evidence"], np.asarray(memory["signature"], float)
        for nth, contender in enumerate(self.contenders):
            contender.states = [
                jax.tree.map(lambda x, at=2 * nth + side: x[at], memory["states"]) for side in SIDES
            ]
            contender.queues = (queues[2 * nth], queues[2 * nth + 1])

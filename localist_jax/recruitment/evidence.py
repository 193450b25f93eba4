"""Evidence for candidates, in bits: gathered as the data comes, valid whenever one looks (T10).

LLR_t(c) = Σ log₂ [p_c(x_s | past) / p_0(x_s | past)] over fresh data from the trial's opening on, each batch scored by
incumbent and candidate before either learns from it. A candidate may be recruited when LLR_t(c) ≥ ℓ(c) + log₂(1/α):
if the incumbent predicts correctly, anything is ever recruited with probability at most α in all.

A network that is still learning is not a correct incumbent. Extra capacity alone then gathers evidence, so the verdict
also asks a candidate to beat m placebos, candidates of the same capacity with nothing to find, at a horizon that
was set when the trial opened. The rule knows neither blocks nor language models.
"""

from __future__ import annotations

import dataclasses
import enum

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from localist_jax.types import Numeric, struct


@struct
class Evidence:
    """The trials of C candidates, each with m placebos.

    Attributes:
      llr_bits: float32 [C], evidence so far.
      placebo_bits: float32 [C, m], that of each candidate's placebos on the same data.
      cost_bits: float32 [C], ℓ(c).
      opened_at, horizon: int32 [C], the step at which the trial opened, and the one at which placebos are compared.
      open: bool [C].
    """

    llr_bits: chex.Array
    placebo_bits: chex.Array
    cost_bits: chex.Array
    opened_at: chex.Array
    horizon: chex.Array
    open: chex.Array

    @classmethod
    def create(cls, candidates: int, placebos: int) -> Evidence:
        """No trial open."""
        return cls(
            llr_bits=jnp.zeros(candidates),
            placebo_bits=jnp.zeros((candidates, placebos)),
            cost_bits=jnp.zeros(candidates),
            opened_at=jnp.zeros(candidates, jnp.int32),
            horizon=jnp.zeros(candidates, jnp.int32),
            open=jnp.zeros(candidates, bool),
        )

    def opened(self, at: Int[Array, ""] | int, cost_bits: float, step: int, horizon: int) -> Evidence:
        """A copy in which the trial at place `at` is open, with no evidence yet."""
        return dataclasses.replace(
            self,
            llr_bits=self.llr_bits.at[at].set(0.0),
            placebo_bits=self.placebo_bits.at[at].set(0.0),
            cost_bits=self.cost_bits.at[at].set(cost_bits),
            opened_at=self.opened_at.at[at].set(step),
            horizon=self.horizon.at[at].set(step + horizon),
            open=self.open.at[at].set(True),
        )

    def closed(self, at: Int[Array, ""] | int) -> Evidence:
        """A copy in which the trial at place `at` is over."""
        return dataclasses.replace(self, open=self.open.at[at].set(False))

    def observed(
        self,
        incumbent_bits: Float[Array, ""],
        candidate_bits: Float[Array, " C"],
        placebo_bits: Float[Array, "C m"],
    ) -> Evidence:
        """A copy with one batch's evidence: code lengths of its tokens, scored before anyone learned from them."""
        gain, placebo = incumbent_bits - candidate_bits, incumbent_bits - placebo_bits
        return dataclasses.replace(
            self,
            llr_bits=self.llr_bits + jnp.where(self.open, gain, 0.0),
            placebo_bits=self.placebo_bits + jnp.where(self.open[:, None], placebo, 0.0),
        )


def threshold_bits(cost_bits: Float[Array, "*C"], alpha: Numeric) -> Float[Array, "*C"]:
    """ℓ + log₂(1/α): the evidence from which a candidate may be recruited."""
    return cost_bits - jnp.log2(alpha)


def sufficient(
    llr_bits: Float[Array, "*C"], cost_bits: Float[Array, "*C"], alpha: Numeric
) -> Bool[Array, "*C"]:
    """T10 (a): LLR ≥ ℓ + log₂(1/α)."""
    return llr_bits >= threshold_bits(cost_bits, alpha)


def sufficient_together(
    llr_bits: Float[Array, "*batch C"], cost_bits: Float[Array, "*batch C"], alpha: Numeric
) -> Bool[Array, "*batch"]:
    """T10 (b): Σ_c 2^{LLR − ℓ} ≥ 1/α; whenever (a) holds for one of them, and sometimes before."""
    total = jax.nn.logsumexp((llr_bits - cost_bits) * jnp.log(2.0), axis=-1)
    return total >= -jnp.log(alpha)


class Verdict(enum.IntEnum):
    """What may be done with a trial now."""

    WAIT = 0
    RECRUIT = 1
    REJECT = 2


def verdicts(evidence: Evidence, step: Numeric, alpha: Numeric) -> Int[Array, " C"]:
    """A `Verdict` for each trial, given once, at its horizon.

    Recruited is what then has both: evidence beyond its threshold, and more than every placebo (under exchange with
    them, of probability 1/(m + 1)). Closed trials wait.
    """
    due = evidence.open & (step >= evidence.horizon)
    enough = sufficient(evidence.llr_bits, evidence.cost_bits, alpha)
    best = evidence.llr_bits > evidence.placebo_bits.max(-1, initial=-jnp.inf)
    decided = jnp.where(enough & best, Verdict.RECRUIT, Verdict.REJECT)
    return jnp.where(due, decided, Verdict.WAIT)

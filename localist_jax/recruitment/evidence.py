"""Evidence for candidates, in bits: gathered as the data comes, valid whenever one looks (T10).

LLR_t(c) = Σ log₂ [p_c(x_s | past) / p_0(x_s | past)] over fresh data from the trial's opening on, each batch scored by
incumbent and candidate before either learns from it. A candidate may be recruited when LLR_t(c) ≥ ℓ(c) + log₂(1/α):
if the incumbent predicts correctly, anything is ever recruited with probability at most α in all.

A network that is still learning is not a correct incumbent. Extra capacity alone then gathers evidence, so a candidate
is also compared with m placebos, of the same capacity with nothing to find, at a horizon that was set when the trial
opened: what it gathers beyond the best of them must pay for its description too, and it must surprise them by as many
bits. The rule knows neither blocks nor language models.
"""

from __future__ import annotations

import dataclasses
import enum
import math

import chex
import jax
import jax.numpy as jnp
from jax.scipy.special import betainc
from jaxtyping import Array, Bool, Float, Int

from localist_jax.types import Numeric, struct

TINY = 1e-37  # the smallest probability that float32 tells from 0


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


class Decision(enum.IntEnum):
    """The decision about a candidate."""

    WAIT = 0
    RECRUIT = 1
    REJECT = 2


def surprise_bits(llr_bits: Float[Array, " C"], placebo_bits: Float[Array, "C m"]) -> Float[Array, " C"]:
    """−log₂ of the probability that one more placebo would gather as much evidence as the candidate did.

    By the predictive distribution of a normal sample: (LLR − mean)/(s·√(1 + 1/m)) follows Student's t with m − 1
    degrees of freedom if the candidate is exchangeable with its placebos. Placebos that are all alike say nothing (0).
    """
    m = placebo_bits.shape[-1]
    spread = placebo_bits.std(-1, ddof=1) * (1 + 1 / m) ** 0.5
    t = (llr_bits - placebo_bits.mean(-1)) / jnp.where(spread > 0, spread, 1.0)
    tail = 0.5 * betainc((m - 1) / 2.0, 0.5, (m - 1) / (m - 1 + jnp.square(t)))
    probability = jnp.where(t > 0, tail, 1 - tail)
    return jnp.where(spread > 0, -jnp.log2(jnp.maximum(probability, TINY)), 0.0)


def beyond_bits(evidence: Evidence) -> Float[Array, " C"]:
    """Evidence beyond the best placebo's, or beyond the incumbent where no placebo gathered any."""
    return evidence.llr_bits - evidence.placebo_bits.max(-1, initial=0.0)


def standing(
    evidence: Evidence, estimate_bits: Float[Array, "C m+1"]
) -> tuple[Float[Array, " C"], Float[Array, "C m"]]:
    """Where candidates and their placebos stand in evidence and estimate together, in the placebos' own spreads.

    The sum of (x − mean)/s over x = LLR and x = √estimate, an amplitude, since estimates are quadratic forms. A figure
    in which all placebos are alike counts nothing.

    Args:
      evidence: with at least two placebos each.
      estimate_bits: of candidate and placebos, what each division could save.
    """
    gathered = jnp.concatenate([evidence.llr_bits[:, None], evidence.placebo_bits], -1)
    total = jnp.zeros_like(gathered)
    for x in (gathered, jnp.sqrt(jnp.maximum(estimate_bits, 0.0))):
        spread = x[:, 1:].std(-1, ddof=1, keepdims=True)
        scale = jnp.where(spread > 0, spread, 1.0)
        total += jnp.where(spread > 0, (x - x[:, 1:].mean(-1, keepdims=True)) / scale, 0.0)
    return total[:, 0], total[:, 1:]


def verdicts(
    evidence: Evidence, step: Numeric, alpha: Numeric, placebo_cost_bits: Numeric = 0.0
) -> Int[Array, " C"]:
    """Return a `Decision` for each trial, taken once, at its horizon.

    Recruited is what then has evidence beyond its threshold even after the best placebo's is taken off, and as much of
    it as surprises by at least `placebo_cost_bits` + log₂(1/α), where two placebos or more tell what to expect. Closed
    trials wait.

    Args:
      evidence: of the trials.
      step: of the run.
      alpha: chance of a false recruitment, in all.
      placebo_cost_bits: code length of the trial's number, so that α covers all trials of a run (Kraft).
    """
    due = evidence.open & (step >= evidence.horizon)
    enough = sufficient(beyond_bits(evidence), evidence.cost_bits, alpha)
    if evidence.placebo_bits.shape[-1] > 1:
        cost = jnp.broadcast_to(jnp.asarray(placebo_cost_bits, jnp.float32), evidence.llr_bits.shape)
        enough &= sufficient(surprise_bits(evidence.llr_bits, evidence.placebo_bits), cost, alpha)
    decided = jnp.where(enough, Decision.RECRUIT, Decision.REJECT)
    return jnp.where(due, decided, Decision.WAIT)


@dataclasses.dataclass(frozen=True)
class Judgement:
    """The evidence about each candidate, as Python numbers.

    Attributes:
      llr_bits, cost_bits, threshold_bits, placebo_bits, surprise_bits: of each.
      surprise_threshold_bits: that a recruited one had to reach.
      chosen: which is recruited, the one with the most evidence; −1: none.
    """

    llr_bits: list[float]
    cost_bits: list[float]
    threshold_bits: list[float]
    placebo_bits: list[list[float]]
    surprise_bits: list[float]
    surprise_threshold_bits: float
    chosen: int


def judged(
    evidence: Evidence, step: int, alpha: float, placebo_cost_bits: float, candidates: int
) -> Judgement:
    """`verdicts`, and all figures that they rest on.

    Args:
      evidence: arrays of this process.
      step, alpha, placebo_cost_bits: as of `verdicts`.
      candidates: of the places, those that count.
    """
    evidence = jax.tree.map(jnp.asarray, evidence)
    said = verdicts(evidence, step, alpha, placebo_cost_bits).tolist()
    llr = evidence.llr_bits.tolist()
    worthy = [at for at in range(candidates) if said[at] == Decision.RECRUIT]
    return Judgement(
        llr_bits=llr,
        cost_bits=evidence.cost_bits.tolist(),
        threshold_bits=threshold_bits(evidence.cost_bits, alpha).tolist(),
        placebo_bits=evidence.placebo_bits.tolist(),
        surprise_bits=surprise_bits(evidence.llr_bits, evidence.placebo_bits).tolist(),
        surprise_threshold_bits=placebo_cost_bits - math.log2(alpha),
        chosen=max(worthy, key=lambda at: llr[at], default=-1),
    )

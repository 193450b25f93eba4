"""T13. Mixtures of LLMs: what it costs not to know which of them is right, or when that changes.

M LLMs code T tokens; l_t(m) ≥ 0 are their code lengths in bits, L_m = Σ_t l_t(m); w prior weights, Σ w ≤ 1. A mixture
codes token t with −log Σ_m v_t(m)·2^{−l_t(m)}, v_t its weights given the past; L is its total.

(a) Bayes: L ≤ min_m (L_m + log(1/w_m)); with uniform weights at most log M bits in all, not per token.
(b) Fixed share σ (before each later token a share σ of every weight moves to the others evenly; uniform start): for
    a segmentation, one LLM per token with S switches, of total length L_seg,
    L ≤ L_seg + log M + S log(M−1) − S log σ − (T−1−S) log(1−σ); for S or fewer switches if σ ≤ (M−1)/M.
(c) Tuning-free, σ_t = 1/(t+1) after t tokens: L ≤ L_seg + log M + S log(M−1) + log T + Σ log t_k, where t_k tokens
    precede the k-th switch. Hence ≤ … + log T + S log(T−1), a little less than the (S+1) log T often stated.
(d) A shortlist fixed beforehand: L ≤ min over its members of L_m + log(w(shortlist)/w_m). A shortlist that is chosen
    again as tokens come has no such bound: report its measured excess over the full mixture.

Proof. 2^{−L} = Σ over paths of prior(path)·2^{−L_path}, with prior w_m for constant paths: keep one term: (a), (d).
In (b) a path has prior (1/M)·Π_switch σ/(M−1)·Π_stay (1−σ): keep one term; a switch less costs no more if
σ/(M−1) ≤ 1−σ. In (c) log prior is the same with Σ_t log((t+1)/t) = log T, and a switch adds log t to it. ∎
Equality where every other path has probability 0.
"""

import jax
import jax.numpy as jnp

from localist_jax import bits
from localist_jax.hierarchy import mixture
from proofs_check.models import mixing
from proofs_check.theorem import Theorem, at_most


def claims(x: mixing.Losses):
    """(a)–(d), of `hierarchy.mixture`."""
    losses, M = jnp.maximum(x.bits, 0.0), x.count
    exists = jnp.arange(mixing.LLMS) < M[:, None]
    prior, uniform = mixing.prior(x, exists), mixture.uniform(exists)
    totals = losses.sum(1)

    def length(log_prior, shares=None):
        return mixture.code(losses, log_prior, shares)[0].sum(1)

    along = jnp.take_along_axis(losses, x.path[..., None], 2)[..., 0].sum(1)
    switched = x.path[:, 1:] != x.path[:, :-1]
    S = switched.sum(1)
    sigma = jax.nn.sigmoid(x.share)
    every = jnp.broadcast_to(sigma[:, None], losses.shape[:2])
    fixed = length(uniform, every)
    free = length(uniform, jnp.broadcast_to(mixture.tuning_free(mixing.TOKENS), losses.shape[:2]))
    exactly, at_the_most = (
        mixture.fixed_share_bound(M, n, mixing.TOKENS, sigma)
        for n in (S, jnp.minimum(S + x.spare, mixing.TOKENS - 1))
    )
    often_stated = jnp.log2(M) + S * jnp.log2(jnp.maximum(M - 1, 1)) + jnp.log2(mixing.TOKENS)

    among = mixing.prior(x, x.listed & exists)
    return {
        "a: Bayes": at_most(length(prior), mixture.bayes_bound(totals, prior)),
        "a: uniform, log M": at_most(length(uniform), mixture.bayes_bound(totals, uniform)),
        "b: fixed share": at_most(fixed, along + exactly),
        "b: at most S switches": at_most(fixed, along + at_the_most, (sigma <= (M - 1) / M)),
        "c: tuning-free": at_most(free, along + mixture.tuning_free_bound(M, switched)),
        "c: S log(T−1)": at_most(free, along + often_stated + S * jnp.log2(mixing.TOKENS - 1)),
        "d: shortlist": at_most(length(among), mixture.bayes_bound(totals, among)),
    }


def twin(x: mixing.Losses):
    """(d) for the better half of the LLMs so far, chosen again before every token, and its last members."""
    losses = jnp.maximum(x.bits, 0.0)
    exists = jnp.arange(mixing.LLMS) < x.count[:, None]
    prior = mixing.prior(x, exists)
    before = jnp.cumsum(losses, 1) - losses
    standing = jnp.where(exists[:, None], prior[:, None] - bits.to_nats(before), -jnp.inf)
    size = (x.count + 1) // 2
    kept = jnp.argsort(jnp.argsort(-standing, -1), -1) < size[:, None, None]
    kept_standing = jnp.where(kept, standing, -jnp.inf)
    length = mixing.log_sum(kept_standing) - mixing.log_sum(kept_standing - bits.to_nats(losses))
    last = kept[:, -1]
    members = mixing.log_sum(jnp.where(last, prior, -jnp.inf))[:, None] - prior
    bound = jnp.where(last, losses.sum(1) + bits.from_nats(members), jnp.inf).min(1)
    return at_most(bits.from_nats(length.sum(1)), bound)


def attain() -> mixing.Losses:
    """One path has all the probability: LLM 0 for ten tokens, then LLM 1; in (a) and (d) the last text, LLM 0 alone."""
    path = jnp.stack([(jnp.arange(mixing.TOKENS) >= 10).astype(int), jnp.zeros(mixing.TOKENS, int)])
    return mixing.Losses(
        bits=jnp.where(jax.nn.one_hot(path, mixing.LLMS, dtype=bool), 1.5, mixing.NEVER), count=jnp.full(2, 4),
        weight=jnp.tile(jnp.arange(mixing.LLMS) * -0.3, (2, 1)), share=jnp.full(2, -2.0), path=path,
        listed=jnp.tile(jnp.arange(mixing.LLMS) < 2, (2, 1)), spare=jnp.zeros(2, int),
    )  # fmt: skip


THEOREM = Theorem(
    "T13", "mixtures of LLMs", mixing.sample, claims, twin,
    "(d) for a shortlist that is chosen again before every token",
    because="float64, sums of up to 16 lengths of up to 10⁵ bits, relative to 1 + |bound|",
    attain=attain, attained=("a: Bayes", "a: uniform, log M", "b: fixed share", "c: tuning-free", "d: shortlist"),
    found="exact cost of the tuning-free share: log T + Σ log t_k over the switches, below (S+1) log T",
)  # fmt: skip

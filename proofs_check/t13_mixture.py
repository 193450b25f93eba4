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
from proofs_check.models import mixing
from proofs_check.theorem import Theorem, at_most


def claims(x: mixing.Losses):
    """(a)–(d)."""
    losses, M = jnp.maximum(x.bits, 0.0), x.count
    exists = jnp.arange(mixing.LLMS) < M[:, None]
    log_M, log_others = jnp.log2(M), jnp.log2(jnp.maximum(M - 1, 1))
    prior = mixing.prior(x, exists)
    cost = bits.from_nats(-prior)
    totals = losses.sum(1)
    best = lambda length, of=exists: jnp.where(of, length, jnp.inf).min(1)  # noqa: E731
    bayes = mixing.mixture(losses, prior, M)
    uniform = jnp.where(exists, -jnp.log(M)[:, None], -jnp.inf)

    along = jnp.take_along_axis(losses, x.path[..., None], 2)[..., 0].sum(1)
    switches = x.path[:, 1:] != x.path[:, :-1]
    S, t = switches.sum(1), jnp.arange(1, mixing.TOKENS + 1)
    sigma = jax.nn.sigmoid(x.share)
    fixed, free = (
        mixing.mixture(losses, uniform, M, jnp.broadcast_to(share, losses.shape[:2]))
        for share in (sigma[:, None], 1 / (t + 1))
    )

    def cost_of(S):
        stay = (mixing.TOKENS - 1 - S) * jnp.log2(1 - sigma)
        return log_M + S * (log_others - jnp.log2(sigma)) - stay

    more = jnp.minimum(S + x.spare, mixing.TOKENS - 1)
    when = jnp.where(switches, jnp.log2(t[:-1]), 0.0).sum(1)
    start = along + log_M + S * log_others + jnp.log2(mixing.TOKENS)

    listed = x.listed & exists
    among = mixing.prior(x, listed)
    short = mixing.mixture(losses, among, M)
    return {
        "a: Bayes": at_most(bayes, best(totals + cost)),
        "a: uniform, log M": at_most(mixing.mixture(losses, uniform, M), best(totals) + log_M),
        "b: fixed share": at_most(fixed, along + cost_of(S)),
        "b: at most S switches": at_most(fixed, along + cost_of(more), (sigma <= (M - 1) / M)),
        "c: tuning-free": at_most(free, start + when),
        "c: S log(T−1)": at_most(free, start + S * jnp.log2(mixing.TOKENS - 1)),
        "d: shortlist": at_most(short, best(totals - bits.from_nats(among), listed)),
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
    length = mixing.lse(kept_standing) - mixing.lse(kept_standing - bits.to_nats(losses))
    last = kept[:, -1]
    members = mixing.lse(jnp.where(last, prior, -jnp.inf))[:, None] - prior
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
    note="mathematics on small models: the library has no hierarchy (mixture) yet",
    found="exact cost of the tuning-free share: log T + Σ log t_k over the switches, below (S+1) log T",
)  # fmt: skip

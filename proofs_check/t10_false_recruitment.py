"""T10. False recruitment: if the incumbent is right, nothing is recruited, except with probability α in all.

Trials open at stopping times; number k is used once and never reset. A candidate may be chosen by looking at all that
came before its opening. Its codeword has ℓ bits, Σ 2^{−ℓ} ≤ 1: the universal code of k, and log C where C candidates
share the number. LLR_t(c) = Σ log [p_c(x_s | past)/p_0(x_s | past)] from the opening on, both scored before they learn.

(a) If x_s is drawn from p_0(· | past): P(some candidate ever has LLR_t(c) ≥ ℓ(c) + log(1/α)) ≤ α.
(b) So it is with the more powerful rule Σ_c 2^{LLR_t(c) − ℓ(c)} ≥ 1/α over the candidates opened so far, which recruits
    whenever (a) does.

Proof. From its opening on, 2^{LLR_t(c)} is a nonnegative supermartingale that starts at 1 (a martingale if p_c puts no
mass where p_0 has none); before, let it be 1. W_t = Σ_c 2^{LLR_t(c) − ℓ(c)} over all codewords is one that starts at
most at 1, and Ville: P(sup W_t ≥ 1/α) ≤ α: (b). Each term is at most W_t: (a). ∎

Simulated streams, where the claim is about their number: the exact 99.9 % lower bound (Clopper–Pearson) of the
rate must not exceed α. A still-learning network is not a right incumbent; this says nothing about one.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.stats
from matplotlib.figure import Figure

from localist_jax.report import figures
from proofs_check.models import streams
from proofs_check.theorem import Claim, Theorem, at_least, at_most

CONFIDENCE = 0.999
MEASURED = 120_000  # streams for each α


def lower_bound(hits, of, doubt: float = 1 - CONFIDENCE):
    """Clopper–Pearson: a smaller rate would give so many hits with probability below `doubt`."""
    return np.where(hits > 0, scipy.stats.beta.ppf(doubt, np.maximum(hits, 1), of - hits + 1), 0.0)


def _by_alpha(x: streams.Streams, recruited) -> dict[float, Claim]:
    found = {}
    for i, alpha in enumerate(streams.ALPHAS):
        group = x.alpha == i
        counts = ((recruited & group).sum().astype(float), group.sum().astype(float))
        lowest = jax.pure_callback(lower_bound, jax.ShapeDtypeStruct((), float), *counts)
        found[alpha] = at_most(lowest, jnp.full(len(group), alpha), group)
    return found


def claims(x: streams.Streams):
    """(a) and (b) for each α, on all its streams together."""
    one, together = streams.recruits(x)
    return {
        **{f"a: α = {alpha}": claim for alpha, claim in _by_alpha(x, one).items()},
        **{f"b: α = {alpha}": claim for alpha, claim in _by_alpha(x, together).items()},
        "b: whenever (a)": at_least(together, one),
    }


def twin(x: streams.Streams):
    """(a) where a failed trial opens again under the number it had."""
    few = jax.tree.map(lambda leaf: leaf[: streams.BATCH], x)
    return _by_alpha(few, streams.recruits(few, reuse=True)[0])[streams.ALPHAS[0]]


@cache
def _simulated() -> dict[str, list[tuple[int, int]]]:
    """(recruited, streams) for each α, by who bets and under which rule."""
    starts = MEASURED * len(streams.ALPHAS) // 1024 + 1
    mixed = streams.sample(jax.random.key(10), starts * 1024)
    bold = streams.attack(jax.random.key(11), starts)
    few = jax.tree.map(lambda leaf: leaf[: MEASURED // 4], bold)
    plain, reused = jax.jit(streams.recruits), jax.jit(partial(streams.recruits, reuse=True))
    by_one, by_sum = plain(bold)
    runs = {
        "all kinds, rule (a)": (mixed, plain(mixed)[0]),
        "bold, rule (a)": (bold, by_one),
        "bold, rule (b)": (bold, by_sum),
        "bold, number reused": (few, reused(few)[0]),
    }
    return {
        name: [(int(hit[x.alpha == i].sum()), int((x.alpha == i).sum())) for i in range(len(streams.ALPHAS))]
        for name, (x, hit) in runs.items()
    }


def measure(_) -> dict[str, float]:
    """Rates of false recruitment over α; bold candidates should come to the Kraft sum of the numbers they used."""
    rates = {
        f"rate over α, {name}, α = {alpha}": hits / of / alpha
        for name, counts in _simulated().items()
        for alpha, (hits, of) in zip(streams.ALPHAS, counts, strict=True)
    }
    return {"Kraft sum of the numbers used": float((2.0**-streams.NUMBERS).sum()), **rates}


def figure(_, __) -> Figure:
    """Rates over α with their 99.9 % intervals."""
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = drawn.subplots()
        for i, ((name, counts), colour) in enumerate(
            zip(_simulated().items(), (figures.BLUE, figures.GREEN, figures.PURPLE, figures.RED), strict=True)
        ):
            k, n = np.array(counts, float).T
            rate, tail = k / n, (1 - CONFIDENCE) / 2
            high = scipy.stats.beta.ppf(1 - tail, k + 1, n - k)
            x = np.array(streams.ALPHAS) * 1.08 ** (i - 1.5)
            span = np.stack([rate - lower_bound(k, n, tail), high - rate]) / streams.ALPHAS
            axes.errorbar(x, rate / streams.ALPHAS, span, fmt="o", ms=4, lw=1.2, color=colour, label=name)
        axes.axhline(1, color=figures.ORANGE, lw=0.9)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("α")
        axes.set_title("false recruitments per stream, over α")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return drawn


THEOREM = Theorem(
    "T10", "false recruitment", streams.sample, claims, twin,
    "(a) with a number that is used again after a failed trial",
    because="exact binomial bounds at 99.9 %", attack=streams.attack, share=0.36, chunk=3 * MEASURED, figure=figure,
    note="the library's rule (`recruitment.evidence`) on small models' streams",
)  # fmt: skip

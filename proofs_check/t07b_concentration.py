"""T7′. Concentration: gates priced above their thresholds put attention on the blocks that are left.

If every gate outside R is priced above its threshold (T7), its gate is exactly 0 at a stationary point. With
graded gates inside R, ω_min = min_R ω, margin δ (T3), b = |R|, u = |U|:

(a) F ≥ 1/(1 + (u/b)·e^{−β−δ}/ω_min).
(a') Sharper: F ≥ 1/(1 + u·e^{−β−δ}/Σ_R ω).
(b) ε̄ = (u/b)e^{−β−δ}/ω_min / (1 + (u/b)e^{−β−δ}/ω_min) bounds the entropy by T4(b) wherever ε̄ ≤ u/n.

Proof. F/(1−F) = Σ_R e^s ω / (e^{−β} Σ_U e^s) ≥ ω_min Σ_R e^s / (e^{−β} Σ_U e^s), then as T3(b);
or keep Σ_R ω ≥ b·ω_min: (a'). T4(b) needs only
that the mass on U is at most ε̄ ≤ u/n, so graded gates inside R change nothing there. ∎
"""

import jax.numpy as jnp

from localist_jax.locality import certificates
from proofs_check.models import rows
from proofs_check.t04_attention_entropy import entropy_bound
from proofs_check.theorem import Theorem, at_least, at_most, by_library


def claims(row: rows.Rows):
    """(a) and (b)."""
    now, (b, u) = rows.read(row), rows.counts(row)
    lowest = jnp.where(row.relevant, now.omega, jnp.inf).min(1)
    gap = jnp.where(u > 0, rows.margin(row), 0.0) + jnp.log(lowest)
    leak = jnp.where(u > 0, u / b * jnp.exp(-row.beta - gap), 0.0)
    epsilon = jnp.where(jnp.isfinite(leak), leak / (1 + leak), 1.0)
    bound = by_library(certificates.fidelity_bound, 1 / (1 + leak), row.beta, gap, b, u)
    total = jnp.where(row.relevant, now.omega, 0.0).sum(1)
    sharper = jnp.where(u > 0, u / total * jnp.exp(-row.beta - jnp.where(u > 0, rows.margin(row), 0.0)), 0.0)
    return {
        "a: fidelity": at_least(now.stats.fidelity, bound),
        "a': fidelity": at_least(now.stats.fidelity, 1 / (1 + sharper)),
        "b: entropy": at_most(now.stats.entropy_bits, entropy_bound(epsilon, b, u), epsilon <= u / (b + u)),
    }


def twin(row: rows.Rows):
    """(a) without ω_min: gates inside R taken as fully open."""
    now, (b, u) = rows.read(row), rows.counts(row)
    leak = jnp.where(u > 0, u / b * jnp.exp(-row.beta - rows.margin(row)), 0.0)
    return at_least(now.stats.fidelity, 1 / (1 + leak), u > 0)


THEOREM = Theorem(
    "T7'", "concentration", lambda key, n: rows.sample(key, n, graded=True), claims, twin, "(a) without ω_min",
    attain=lambda: rows.constant(1, 5, 0.4, 0.99, 0.5), attained=("a: fidelity", "a': fidelity"),
    found="(a'): the sum of the odds in place of their number times the smallest",
)  # fmt: skip

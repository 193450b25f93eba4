"""T3. Pointer fidelity: how much attention lies on the relevant keys, exactly and at least.

Binary gates; b = |R| ≥ 1, u = |U|; F = p(λ); LME the logarithm of the mean of exponentials.

(a) F = 1/(1 + (u/b)·e^{−β−δ̄}) with δ̄ = LME(s_R) − LME(s_U), nats.
(b) If s_j − s_j' ≥ δ for all j ∈ R, j' ∈ U (δ may be negative): F ≥ 1/(1 + (u/b)·e^{−β−δ}), with equality
    iff the logits are constant on R and on U with gap δ (u > 0, β < ∞).
(c) A target T ⊂ R of a keys, with margin δ_T over the rest of R and δ_U over U:
    F_T ≥ 1/(1 + ((b−a)/a)·e^{−δ_T} + (u/a)·e^{−β−δ_U}).

Proof. F = Σ_R e^s / (Σ_R e^s + e^{−β} Σ_U e^s); divide by Σ_R e^s = b·e^{LME(s_R)}: (a). LME lies between
the smallest and the largest logit: (b). (c) is the same with three parts. ∎
"""

import jax.numpy as jnp

from localist_jax.locality import certificates
from proofs_check.models import rows
from proofs_check.theorem import Theorem, at_least, by_library, equal


def _lme(row: rows.Rows, keys):
    top = jnp.where(keys, row.logits, -jnp.inf).max(1)
    total = jnp.where(keys, jnp.exp(jnp.where(keys, row.logits - top[:, None], 0.0)), 0.0).sum(1)
    return top + jnp.log(total / jnp.maximum(1, keys.sum(1)))


def claims(row: rows.Rows):
    """(a)–(c); the target is the part of R that lies in block 3."""
    now = rows.read(row)
    R, U = row.relevant, row.irrelevant
    b, u = rows.counts(row)
    some = u > 0
    mean_gap = _lme(row, R) - jnp.where(some, _lme(row, jnp.where(some[:, None], U, R)), 0.0)
    gap = jnp.where(some, rows.margin(row), 0.0)

    bound = _fidelity(row, gap, b, u), row.beta, gap, b, u

    T = R & (row.block == 3)
    rest, a = R & ~T, T.sum(1).astype(float)
    lowest = jnp.where(T, row.logits, jnp.inf).min(1)
    over_rest, over_closed = (lowest - jnp.where(keys, row.logits, -jnp.inf).max(1) for keys in (rest, U))
    others = jnp.where(rest.any(1), (b - a) * jnp.exp(-over_rest), 0.0)
    closed = jnp.where(some, u * jnp.exp(-row.beta - over_closed), 0.0)
    return {
        "a: exact": equal(now.stats.fidelity, _fidelity(row, mean_gap, b, u)),
        "b: margin": at_least(now.stats.fidelity, by_library(certificates.fidelity_bound, *bound)),
        "c: target": at_least(now.mass(T), 1 / (1 + (others + closed) / jnp.maximum(a, 1)), a > 0),
    }


def _fidelity(row: rows.Rows, gap, b, u):
    """The formula of (a) and (b)."""
    return 1 / (1 + jnp.where(u > 0, u / b * jnp.exp(-row.beta - gap), 0.0))


def twin(row: rows.Rows):
    """The margin of a target counted over U alone: the rest of R is forgotten."""
    now, (b, u) = rows.read(row), rows.counts(row)
    T = row.relevant & (row.block == 3)
    a = T.sum(1)
    gap = jnp.where(T, row.logits, jnp.inf).min(1) - jnp.where(row.irrelevant, row.logits, -jnp.inf).max(1)
    bound = 1 / (1 + u / jnp.maximum(a, 1) * jnp.exp(-row.beta - gap))
    return at_least(now.mass(T), bound, (a > 0) & (u > 0) & (b > a))


def attain() -> rows.Rows:
    """Constant logits on R and on U."""
    return rows.constant(3, 5, -0.7, 0.8)


THEOREM = Theorem(
    "T3", "pointer fidelity", rows.sample, claims, twin, "(c) without the rest of R",
    attain=attain, attained=("b: margin", "c: target"), on_checkpoint=rows.of_run,
)  # fmt: skip

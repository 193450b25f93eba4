"""T1. The dial law: binary gates make the dial a shift of log-odds between two fixed parts.

One query, visible keys V, relevant keys R ⊂ V (open gates, block 0, the position itself), U = V∖R. Odds
ω_j = 1 on R and 1−λ on U; α(λ)_j ∝ e^{s_j} ω_j; β = −ln(1−λ); p(λ) = mass on R, p0 = p(0); α^R, α^U: α(0)
renormalised on R and U; o^R, o^U their averages of the values.

(a) α(λ) = p(λ) α^R + (1−p(λ)) α^U.
(b) logit p(λ) = logit p0 + β.
(c) dp/dβ = p(1−p), that is dp/dλ = p²(1−p0)/p0.
(d) ‖α(λ) − α(λ')‖₁ = 2|p(λ) − p(λ')|.
(e) o(λ) − o(0) = (p(λ) − p0)(o^R − o^U).

Proof. ω multiplies all of U by one factor, so it changes no ratio within R or within U: (a), and the ratio
of the two masses by 1−λ: (b). Differentiate (b): (c). α(λ) − α(λ') = (p−p')(α^R − α^U), whose parts have
disjoint support and mass 1: (d); average the values: (e). ∎
"""

import jax
import jax.numpy as jnp

from proofs_check.models import rows
from proofs_check.theorem import Theorem, equal

OTHER = 0.7  # λ' of (d)
SMALLEST = 1e-280  # masses below it underflow: nothing is claimed about their logarithm


def claims(row: rows.Rows):
    """(a)–(e) on rows with binary gates."""
    now, dense, other = (rows.read(r) for r in (row, row.at(0.0), row.at(OTHER)))
    R, U = row.relevant, row.irrelevant
    p, p0, p1 = (x.mass(R) for x in (now, dense, other))
    closed = now.mass(U)
    both = (p > SMALLEST) & (closed > SMALLEST) & (dense.mass(U) > SMALLEST) & (p0 > SMALLEST)
    parts = p[:, None] * _part(R, dense) + closed[:, None] * _part(U, dense)
    split = both | ~U.any(1)

    inner = (row.locality > 0) & (row.locality < 1)
    rate = jnp.where(inner, 1 - row.locality, 0.0)  # dλ/dβ
    slope = jax.jvp(lambda x: rows.read(row.at(x)).mass(R), (row.locality,), (rate,))[1]
    values = [rows.part_mean(keys, row.logits, row.values) for keys in (R, U)]
    log = lambda x: jnp.log(jnp.maximum(x, SMALLEST))  # noqa: E731
    return {
        "a: parts": equal(jnp.abs(now.alpha - parts).sum(1), 0.0, split),
        "b: log-odds": equal(log(p) - log(closed), log(p0) - log(dense.mass(U)) + row.beta, both),
        "c: slope": equal(slope, p * (1 - p), inner),
        "d: distance": equal(jnp.abs(now.alpha - other.alpha).sum(1), 2 * jnp.abs(p - p1)),
        "e: output": equal(now.out - dense.out, (p - p0) * (values[0] - values[1]), split),
        "exact zeros at λ=1": equal(jnp.where(jnp.isinf(row.beta), closed, 0.0), 0.0),
    }


def _part(keys, dense):
    mass = dense.mass(keys)[:, None]
    return jnp.where(keys, dense.alpha, 0.0) / jnp.where(mass > 0, mass, 1.0)


def twin(row: rows.Rows):
    """(b) with gates between 0 and 1."""
    graded = rows.sample(jax.random.key(7), row.logits.shape[0], graded=True)
    found = rows.read(graded), rows.read(graded.at(0.0))
    odds = [x.mass(graded.relevant) / jnp.maximum(x.mass(graded.irrelevant), SMALLEST) for x in found]
    usable = (jnp.minimum(*odds) > SMALLEST) & (jnp.maximum(*odds) < 1e200) & jnp.isfinite(graded.beta)
    log_odds = [jnp.log(jnp.where(usable, x, 1.0)) for x in odds]
    return equal(log_odds[0], log_odds[1] + graded.beta, usable)


THEOREM = Theorem(
    "T1", "the dial law", rows.sample, claims, twin, "(b) for graded gates",
    attain=lambda: rows.constant(3, 5, 0.4, 0.8), on_checkpoint=rows.of_run,
)  # fmt: skip

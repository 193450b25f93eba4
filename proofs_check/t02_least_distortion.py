"""T2. Least distortion: the dial is an information projection, and its price is exact.

Binary gates, 0 < p0 < 1, p* = p(λ), d(·‖·) the KL divergence of two coins, α = α(0).

(a) Every distribution q over the visible keys with q(R) ≥ p* has KL(q‖α) ≥ d(p*‖p0).
(b) α(λ) attains it: KL(α(λ)‖α) = d(p*‖p0), the *price of locality*, in attention bits.
(c) Graded gates: every q with E_q ln ω ≥ E_{α(λ)} ln ω has KL(q‖α) ≥ E_{α(λ)} log ω − log E_α ω, and α(λ)
    attains it. (Keys with ω = 0 have q = 0, or E_q ln ω = −∞.)

Proof. KL(q‖α) = d(q(R)‖p0) + q(R) KL(q^R‖α^R) + q(U) KL(q^U‖α^U), and d(·‖p0) increases on [p0, 1]: (a),
with equality for q = α(λ) by T1(a): (b). (c): KL(q‖α) = KL(q‖α(λ)) + E_q log ω − log E_α ω. ∎
"""

import chex
import jax
import jax.numpy as jnp

from localist_jax import bits
from localist_jax.types import struct
from proofs_check.models import rows
from proofs_check.theorem import Theorem, at_least, equal

SMALLEST = 1e-280  # masses below it underflow, and nothing is claimed about their logarithm


@struct
class Rivals:
    """Rows with binary gates, the same with graded ones, and a rival q for each query.

    Attributes:
      row, graded: the queries.
      tilt: [n, S]; q ∝ α(λ)^(1 − mix) · e^tilt is then moved until it meets its constraint.
      excess: [n]; q(R) = p* + (1−p*)·σ(excess) in (a).
    """

    row: rows.Rows
    graded: rows.Rows
    tilt: chex.Array
    excess: chex.Array


def sample(key: jax.Array, n: int) -> Rivals:
    """Rivals near α(λ) and far from it; some meet the constraint with equality."""
    keys = jax.random.split(key, 5)
    scale = 10.0 ** jax.random.uniform(keys[2], (n, 1), minval=-3, maxval=1)
    excess = jax.random.uniform(keys[4], (n,), minval=-40, maxval=5)
    return Rivals(
        row=rows.sample(keys[0], n), graded=rows.sample(keys[1], n, graded=True),
        tilt=scale * jax.random.normal(keys[3], (n, rows.KEYS)), excess=excess,
    )  # fmt: skip


def claims(x: Rivals):
    """(a)–(c)."""
    now, dense = rows.read(x.row), rows.read(x.row.at(0.0))
    R, U = x.row.relevant, x.row.irrelevant
    p, p0, closed = now.mass(R), dense.mass(R), dense.mass(U)
    both = (p0 > SMALLEST) & (closed > SMALLEST)
    price = bits.binary_kl(p, p0)
    price = jnp.where(now.mass(U) > 0, _coins(p, now.mass(U), p0, closed), price)
    share = jax.nn.sigmoid(x.excess)
    q = _part(R, dense.alpha, x.tilt) * (p + now.mass(U) * share)[:, None]
    q = q + _part(U, dense.alpha, x.tilt) * (now.mass(U) * (1 - share))[:, None]
    finite = both & (_missing(q, dense.alpha) == 0)

    soft, plain = rows.read(x.graded), rows.read(x.graded.at(0.0))
    log_omega = jnp.where(soft.omega > 0, jnp.log(jnp.where(soft.omega > 0, soft.omega, 1.0)), 0.0)
    open_ = x.graded.visible & (soft.omega > 0)
    rival = _part(open_, plain.alpha * soft.omega, x.tilt)
    meets = (rival * log_omega).sum(1) >= (soft.alpha * log_omega).sum(1)
    admitted = (plain.alpha * soft.omega).sum(1)  # E_α ω
    usable = (admitted > SMALLEST) & (_missing(rival, plain.alpha) == 0)
    stated = bits.from_nats((soft.alpha * log_omega).sum(1) - jnp.log(jnp.maximum(admitted, SMALLEST)))
    return {
        "a: any q": at_least(bits.kl(q, dense.alpha), price, finite),
        "b: α(λ) attains": equal(now.stats.price_bits, price, both),
        "c: any q, graded": at_least(bits.kl(rival, plain.alpha), stated, meets & usable),
        "c: α(λ) attains": equal(soft.stats.price_bits, stated, usable),
    }


def _coins(p, q, p0, q0):
    """d(p‖p0) from both masses, so that nothing is lost where one is close to 1."""
    safe = lambda a: jnp.maximum(a, SMALLEST)  # noqa: E731
    return p * jnp.log2(safe(p) / safe(p0)) + q * jnp.log2(safe(q) / safe(q0))


def _part(keys, alpha, tilt):
    weight = jnp.where(keys, alpha * jnp.exp(tilt - tilt.max(1, keepdims=True)), 0.0)
    total = weight.sum(1, keepdims=True)
    return weight / jnp.where(total > 0, total, 1.0)


def _missing(q, alpha):
    """Mass of q where α underflowed to 0: the divergence is infinite there and says nothing."""
    return jnp.where(alpha > 0, 0.0, q).sum(1)


def twin(x: Rivals):
    """The price as β times the mass moved, an upper bound in truth."""
    now, dense = rows.read(x.row), rows.read(x.row.at(0.0))
    moved = now.mass(x.row.relevant) - dense.mass(x.row.relevant)
    return at_least(now.stats.price_bits, bits.from_nats(x.row.beta) * moved, jnp.isfinite(x.row.beta))


def attain() -> Rivals:
    """q = α(λ): no tilt, no excess."""
    row = rows.constant(3, 5, 0.4, 0.8)
    zero = jnp.zeros((1, row.logits.shape[1]))
    return Rivals(row=row, graded=rows.constant(3, 5, 0.4, 0.8, 0.5), tilt=zero, excess=jnp.full(1, -jnp.inf))


THEOREM = Theorem(
    "T2", "least distortion", sample, claims, twin, "(b) with price β·(p* − p0)·log₂e",
    attain=attain, attained=("a: any q", "c: any q, graded"),
)  # fmt: skip

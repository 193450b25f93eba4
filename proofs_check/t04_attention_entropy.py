"""T4. Attention entropy: exact in its parts, and bounded by the mass outside the relevant keys.

n = b + u visible keys, p = F the mass on R, ε = 1−p, h the binary entropy, d the divergence of two coins.

(a) H = h(p) + p·H(α^R) + (1−p)·H(α^U), that is
    log n − H = d(ε‖u/n) + (1−ε)(log b − H(α^R)) + ε(log u − H(α^U)).
(b) If ε ≤ ε̄ ≤ u/n: H ≤ log n − d(ε̄‖u/n) = h(ε̄) + (1−ε̄) log b + ε̄ log u, attained by uniform parts.
(c) At λ=1: H ≤ log b.
(d) With margin δ (T3) and β+δ ≥ 0, (b) holds with ε̄ = (u/b)e^{−β−δ}/(1+(u/b)e^{−β−δ}).

Proof. The chain rule of entropy: (a). Entropies of parts are at most log b and log u, and h(ε) + (1−ε) log b +
ε log u increases for ε ≤ u/n: (b). ε = 0: (c). T3 bounds ε, and β+δ ≥ 0 gives ε̄ ≤ u/n: (d). ∎
"""

import jax.numpy as jnp

from localist_jax import bits
from localist_jax.locality import certificates
from proofs_check.models import rows
from proofs_check.theorem import Theorem, at_most, by_library, equal


def _bound(epsilon, b, u):
    """h(ε) + (1−ε) log b + ε log u, bits."""
    logs = (1 - epsilon) * jnp.log2(b) + epsilon * jnp.log2(jnp.maximum(u, 1))
    return bits.binary_entropy(epsilon) + logs


def entropy_bound(epsilon, b, u):
    """The library's bound of (b), bits."""
    return by_library(certificates.entropy_bound, _bound(epsilon, b, u), epsilon, b, u)


def claims(row: rows.Rows):
    """(a)–(d); ε̄ of (b) lies halfway between ε and u/n."""
    now = rows.read(row)
    R, U = row.relevant, row.irrelevant
    (b, u), H = rows.counts(row), now.stats.entropy_bits
    p, epsilon = now.mass(R), now.mass(U)
    parts = [_entropy_of(keys, now.alpha) for keys in (R, U)]
    n = b + u
    share = jnp.where(u > 0, u / n, 0.5)
    lost = jnp.where(u > 0, bits.binary_kl(jnp.minimum(epsilon, 1.0), share), 0.0)
    losses = (p * (jnp.log2(b) - parts[0])) + epsilon * (jnp.log2(jnp.maximum(u, 1)) - parts[1])
    between = (epsilon + u / n) / 2
    leak = jnp.where(u > 0, u / b * jnp.exp(-row.beta - rows.margin(row)), 0.0)
    return {
        "a: chain rule": equal(H, bits.binary_entropy(epsilon) + p * parts[0] + epsilon * parts[1]),
        "a: from above": equal(jnp.log2(n) - H, lost + losses),
        "b: ε̄": at_most(H, entropy_bound(between, b, u), epsilon <= u / n),
        "b: ε̄ = ε": at_most(H, entropy_bound(epsilon, b, u), epsilon <= u / n),
        "c: λ=1": at_most(H, jnp.log2(b), jnp.isinf(row.beta)),
        "d: margin": at_most(H, entropy_bound(leak / (1 + leak), b, u), row.beta + rows.margin(row) >= 0),
    }


def _entropy_of(keys, alpha):
    part = jnp.where(keys, alpha, 0.0)
    total = part.sum(1, keepdims=True)
    return bits.entropy(part / jnp.where(total > 0, total, 1.0))


def twin(row: rows.Rows):
    """(b) without ε̄ ≤ u/n: more leakage admitted would then allow *less* entropy."""
    now, (b, u) = rows.read(row), rows.counts(row)
    return at_most(now.stats.entropy_bits, _bound((1 + now.mass(row.irrelevant)) / 2, b, u), u > 0)


THEOREM = Theorem(
    "T4", "attention entropy", rows.sample, claims, twin, "(b) without ε̄ ≤ u/n",
    attain=lambda: rows.constant(3, 5, 0.4, 0.9), attained=("b: ε̄ = ε", "d: margin"),
    on_checkpoint=rows.of_run,
)  # fmt: skip

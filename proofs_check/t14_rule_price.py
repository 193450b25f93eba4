"""T14. The price of a rule: what it costs, in bits, to make a language model comply.

One token: p the model's distribution, A the allowed tokens, P(A) = p(A) > 0, q = p(· | A).

(a) Every r with r(A) = 1 has KL(r‖p) = KL(r‖q) + log(1/P(A)) ≥ log(1/P(A)); only q attains it.
(b) Tokens that violate the rule have probability exactly 0 under q.
(c) P(A) = 0 is reported (price ∞, nothing allowed), never a NaN.

Texts: allowed tokens A_t(past), C = the texts that comply at every token, p(C) > 0; Q draws each token from
p(· | past, A_t). If no past that Q reaches has P(A_t) = 0 (no dead ends):

(d) E_Q Σ_t log 1/P(A_t) = KL(Q‖p) = log 1/p(C) + KL(Q‖p(· | C)) ≥ log 1/p(C): masking token by token pays more than
    the projection of whole texts, and the excess is a divergence. Equality iff Σ_t log P(A_t) is the same for every
    text of C that Q can draw.

Proof. On A, log r/p = log r/q + log 1/P(A); average over r: (a). Q/p = Π_t 1/P(A_t) on C, and Q(C) = 1: the first
equation of (d); the second is (a) for texts. ∎
The expectation is under Q, the text that is really written, not under p.
"""

import jax
import jax.numpy as jnp

from localist_jax import bits
from proofs_check.models import ruled
from proofs_check.theorem import Theorem, at_least, equal


def claims(x: ruled.Ruled):
    """(a)–(d); the texts are enumerated."""
    p = jax.nn.softmax(x.logits)
    q, price = ruled.condition(x.logits, x.allowed)
    holds = jnp.where(x.allowed, p, 0.0).sum(1) > ruled.SMALLEST
    r = _among(x.allowed & (p > ruled.SMALLEST), x.rival)
    spent, excess = bits.kl(r, p), bits.kl(r, q)
    masked, whole = ruled.texts(x)
    asked = -jnp.log2(jnp.maximum(whole.mass, ruled.SMALLEST))
    alive = masked.alive & (whole.mass > ruled.SMALLEST)
    undefined = jnp.isnan(q).sum(1) + jnp.isnan(price) + jnp.isnan(masked.price) + jnp.isnan(masked.q).sum(1)
    return {
        "a: any r": at_least(spent, price, holds),
        "a: Pythagoras": equal(spent, excess + price, holds),
        "a: q attains": equal(bits.kl(jnp.where(p > 0, q, 0.0), p), price, holds),
        "b: exact zeros": equal(jnp.where(x.allowed, 0.0, q).max(1), 0.0),
        "c: reported": equal(jnp.isinf(price), ~x.allowed.any(1)),
        "c: no NaN": equal(undefined, 0),
        "d: prices add up": equal(masked.price, bits.kl(masked.q, whole.p), alive),
        "d: at least": at_least(masked.price, asked, alive),
        "d: equality": equal(masked.price, asked, alive & (_spread(masked.q, whole.p) < 1e-12)),
        "d: excess": equal(masked.price, asked + bits.kl(masked.q, whole.q), alive),
    }


def _spread(q, p):
    """How much Σ_t −log P(A_t) = log q/p differs between the texts that Q can draw, bits."""
    drawn = (q > 0) & (p > 0)
    total = jnp.where(drawn, jnp.log2(jnp.where(drawn, q, 1.0) / jnp.where(drawn, p, 1.0)), 0.0)
    return jnp.where(drawn, total, -jnp.inf).max(1) - jnp.where(drawn, total, jnp.inf).min(1)


def _among(allowed, logits):
    """A distribution on the allowed tokens; nothing where there are none."""
    top = jnp.where(allowed, logits, -jnp.inf).max(-1, keepdims=True)
    weight = jnp.where(allowed, jnp.exp(jnp.where(allowed, logits - top, 0.0)), 0.0)
    return weight / jnp.maximum(weight.sum(-1, keepdims=True), ruled.SMALLEST)


def twin(x: ruled.Ruled):
    """(d) with equality."""
    masked, whole = ruled.texts(x)
    usable = masked.alive & (whole.mass > ruled.SMALLEST)
    return equal(masked.price, -jnp.log2(jnp.maximum(whole.mass, ruled.SMALLEST)), usable)


def attain() -> ruled.Ruled:
    """r = q; a rule that forbids the same token at every place of a text whose tokens are independent."""
    V, token = ruled.VOCABULARY, jnp.array([0.3, -1.0, 0.7])
    shapes = (1, V), (1, V, V), (1, V, V, V)
    first, second, third = (jnp.broadcast_to(token, shape) for shape in shapes)
    a, b, c = (jnp.broadcast_to(jnp.array([True, False, True]), shape) for shape in shapes)
    logits = jnp.linspace(-2.0, 2.0, ruled.TOKENS)[None]
    return ruled.Ruled(
        logits=logits, allowed=jnp.arange(ruled.TOKENS)[None] % 2 == 0, rival=logits,
        first=first, second=second, third=third, masks=(a, b, c),
    )  # fmt: skip


THEOREM = Theorem(
    "T14", "the price of a rule", ruled.sample, claims, twin, "masking token by token is the projection of whole texts",
    attain=attain, attained=("a: any r", "d: at least"),
    found=(
        "the expectation is over masked texts, which must have no dead ends; the excess over the "
        "sequence projection is a divergence"
    ),
)  # fmt: skip

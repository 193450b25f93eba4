"""T5. A certificate for every input: normalised queries and keys bound the logits, hence the fidelity.

A head with QK-norm: q = R_i (γ_q ⊙ x_q/rms(x_q)), k likewise; R_i the rotary rotation of position i, which
turns pairs of channels; scale 1/√d_h, d_h the head size.

(a) |s_ij| ≤ S := √d_h · max over rotary pairs of (max|γ_q| · max|γ_k| within the pair).
(b) Hence δ ≥ −2S in T3: a query with b relevant and at most u irrelevant keys has
    F ≥ 1/(1 + (u/b)·e^{2S−β}), whatever the input is. **Graded gates: b is then Σ_R A**, the sum of the open
    gates (Σ_R ω where the dial is known), not their number: with the number, (b) and (c) are false.
(c) β ≥ max(0, 2S + ln(u/b) + ln((1−ε)/ε)) guarantees F ≥ 1−ε: `Dial.for_fidelity`, there and back.
(d) Without QK-norm, W = W_Qᵀ R_Δ W_K between RMS-normalised inputs of width d with gains g, no biases:
    |s_ij| ≤ (d/√d_h) ‖W_Q D_g‖₂ ‖W_K D_g‖₂.

Proof. ‖x/rms(x)‖ = √d_h (or √d). A rotation acts within pairs: ⟨R_i γ_q⊙x, R_j γ_k⊙y⟩ is a sum over pairs of at
most max|γ_q|·max|γ_k|·‖x_pair‖·‖y_pair‖; by Cauchy–Schwarz over pairs it is at most d_h times the largest factor:
(a). With s ∈ [−S, S] the margin is at least −2S; T3(b): (b); with graded gates F/(1−F) = Σ_R e^s ω / (e^{−β} Σ_U e^s)
≥ e^{β−2S} Σ_R ω / u, and ω ≥ A; solve for β: (c). (d): submultiplicativity, ‖R_Δ‖ = 1. ∎
"""

from functools import partial
from typing import Any

import chex
import jax
import jax.numpy as jnp

from localist_jax.locality import certificates
from localist_jax.model.layers import Norm, rotate
from localist_jax.types import struct
from proofs_check.models import rows, trained
from proofs_check.theorem import Theorem, at_least, at_most, by_library

HEAD, WIDTH, KEYS = 4, 4, 6
BASE = 100.0  # rotary base: small, so that few positions turn every pair


@struct
class Heads:
    """n heads and inputs: one query, KEYS keys, the last of which is the position itself.

    Attributes:
      q, k: inputs of the norms, [n, HEAD] and [n, KEYS, HEAD]; x: raw inputs of (d), [n, 2, WIDTH].
      gains: γ_q, γ_k [n, 2, HEAD]; gain: g [n, WIDTH]; weights: W_Q, W_K [n, 2, HEAD, WIDTH].
      positions: int [n, 1 + KEYS]; open_: bool [n, KEYS], which keys are relevant.
      locality: λ [n]; epsilon: [n], as a logit.
    """

    q: chex.Array
    k: chex.Array
    x: chex.Array
    gains: chex.Array
    gain: chex.Array
    weights: chex.Array
    positions: chex.Array
    open_: chex.Array
    locality: chex.Array
    epsilon: chex.Array


def sample(key: jax.Array, n: int) -> Heads:
    """Gains from 0.1 to 30, single dominant channels, inputs that are nearly one channel."""
    keys = jax.random.split(key, 10)

    def spiky(key, *shape):
        a, b = jax.random.split(key)
        power = jax.random.randint(b, (n,) + (1,) * len(shape), 1, 6)
        return jax.random.normal(a, (n, *shape)) ** power

    size = 10.0 ** jax.random.uniform(keys[0], (n, 1, 1), minval=-1, maxval=0.5)
    return Heads(
        q=spiky(keys[1], HEAD), k=spiky(keys[2], KEYS, HEAD), x=spiky(keys[3], 2, WIDTH),
        gains=size * spiky(keys[4], 2, HEAD), gain=spiky(keys[5], WIDTH), weights=spiky(keys[6], 2, HEAD, WIDTH),
        positions=jax.random.randint(keys[7], (n, 1 + KEYS), 0, 64),
        open_=jax.random.bernoulli(keys[8], 0.5, (n, KEYS)).at[:, -1].set(True),
        locality=-jnp.expm1(-40 * jax.random.uniform(keys[9], (n,))),
        epsilon=jax.random.uniform(keys[9], (n,), minval=-9, maxval=9),
    )  # fmt: skip


def _normalised(x, gain, width):
    """The library's norm, with a gain per instance."""

    def norm(one, g) -> Any:
        return Norm(1e-12, "head").apply({"params": {"gain": g}}, one)

    return jax.vmap(norm)(x.reshape(x.shape[0], -1, width), gain).reshape(x.shape)


def _logits(h: Heads):
    """s of the query on every key [n, KEYS], through the library's norm and rotation."""
    q = _normalised(h.q[:, None], h.gains[:, 0], HEAD)
    k = _normalised(h.k, h.gains[:, 1], HEAD)
    both = jnp.concatenate([q, k], 1)[:, :, None]
    turned = rotate(both, h.positions, BASE)[:, :, 0]
    return jnp.einsum("nh,nkh->nk", turned[:, 0], turned[:, 1:]) * HEAD**-0.5


def _bound(gains):
    """S, in the arithmetic of this check."""
    halves = jnp.abs(gains).reshape(-1, 2, 2, HEAD // 2).max(2)
    formula = HEAD**0.5 * (halves[:, 0] * halves[:, 1]).max(-1)
    return by_library(partial(certificates.logit_bound, dtype="float64"), formula, gains[:, 0], gains[:, 1])


def _row(h: Heads, logits, beta, gate=1.0) -> rows.Rows:
    gates = jnp.broadcast_to(gate, len(logits))[:, None] * (jnp.arange(4) == 3)
    return rows.Rows(
        logits=logits, block=jnp.where(h.open_, 3, 2), gates=gates, locality=-jnp.expm1(-beta),
        hidden=jnp.zeros(len(logits), int), values=jnp.zeros_like(logits),
    )  # fmt: skip


def claims(h: Heads):
    """(a)–(d)."""
    s, S = _logits(h), _bound(h.gains)
    largest = jnp.abs(s).max(1)
    dialled = _row(h, s, jnp.zeros(len(S))).at(h.locality)
    b, u = rows.counts(dialled)
    fidelity = rows.read(dialled).stats.fidelity
    formula = 1 / (1 + jnp.where(u > 0, u / b * jnp.exp(jnp.minimum(2 * S - dialled.beta, 600.0)), 0.0))
    guaranteed = by_library(certificates.fidelity_bound, formula, dialled.beta, -2 * S, b, u)

    epsilon = jax.nn.sigmoid(h.epsilon)
    graded = _row(h, s, jnp.zeros(len(S)), epsilon).at(h.locality)
    soft = rows.read(graded)
    admitted = 1 + (b - 1) * epsilon  # Σ_R A: the position itself is fully open
    leak = jnp.where(u > 0, u / admitted * jnp.exp(jnp.minimum(2 * S - graded.beta, 600.0)), 0.0)
    by_gates = by_library(certificates.fidelity_bound, 1 / (1 + leak), graded.beta, -2 * S, admitted, u)
    odds = 2 * S + jnp.log(jnp.maximum(u, 0.5) / b) - h.epsilon
    asked = by_library(certificates.log_odds_for_fidelity, jnp.maximum(0.0, odds), epsilon, S, b, u)
    reached = rows.read(_row(h, s, asked)).stats.fidelity

    x = _normalised(h.x, h.gain, WIDTH)
    free = [jnp.einsum("nhd,nd->nh", h.weights[:, i], x[:, i])[:, None, None] for i in (0, 1)]
    turned = [rotate(y, h.positions[:, i : i + 1], BASE)[:, 0, 0] for i, y in enumerate(free)]
    raw = jnp.abs((turned[0] * turned[1]).sum(1)) * HEAD**-0.5
    norms = [jnp.linalg.norm(h.weights[:, i] * h.gain[:, None], 2, (1, 2)) for i in (0, 1)]
    return {
        "a: logits": at_most(largest, S),
        "b: fidelity": at_least(fidelity, guaranteed),
        "b: graded gates": at_least(soft.stats.fidelity, by_gates),
        "c: there and back": at_least(reached, 1 - epsilon, (S < 15) & (epsilon > 1e-12)),
        "d: without QK-norm": at_most(raw, WIDTH * HEAD**-0.5 * norms[0] * norms[1]),
    }


def twin(h: Heads):
    """S = √d_h · max|γ_q γ_k| channel by channel: true without rotary positions only."""
    return at_most(jnp.abs(_logits(h)).max(1), HEAD**0.5 * jnp.abs(h.gains[:, 0] * h.gains[:, 1]).max(1))


def attain() -> Heads:
    """Both gains largest in the same channel, inputs in that channel, no turn: s = S on one key, −S on another."""
    one = jnp.zeros(HEAD).at[2].set(1e6)
    x = sample(jax.random.key(0), 1)
    gains = jnp.full((1, 2, HEAD), 0.1).at[:, :, 2].set(2.0)
    k = jnp.zeros((1, KEYS, HEAD)).at[:].set(jnp.where(jnp.arange(KEYS)[:, None] == KEYS - 1, -one, one))
    weights = jnp.zeros((1, 2, HEAD, WIDTH)).at[:, :, 2, 3].set(1.5)
    raw = jnp.zeros((1, 2, WIDTH)).at[:, :, 3].set(1e6)
    return Heads(
        q=one[None], k=k, x=raw, gains=gains, gain=x.gain, weights=weights, positions=jnp.zeros((1, 1 + KEYS), int),
        open_=(jnp.arange(KEYS) == KEYS - 1)[None], locality=jnp.full(1, 0.9), epsilon=jnp.full(1, -1.0),
    )  # fmt: skip


THEOREM = Theorem(
    "T5", "a certificate for every input", sample, claims, twin, "(a) channel by channel, rotary or not",
    attain=attain, attained=("a: logits", "b: fidelity", "c: there and back", "d: without QK-norm"),
    certificate=trained.fidelity_certificate,
    found=(
        "with graded gates the number of relevant keys must be replaced by the sum of their gates; an "
        "attack on a trained model broke the certificate that counted them"
    ),
)  # fmt: skip

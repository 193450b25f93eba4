"""T11. Delay: how long it takes to recruit a candidate that is worth it.

Evidence LLR_t grows by increments; τ is the first t with LLR_t ≥ B := ℓ + log(1/α) bits.

(a) If E[increment | past] ≥ D > 0 always and no increment exceeds c_max: E τ ≤ (B + c_max)/D.
(b) If Σ_{s≤t} E[increment_s | past] ≥ D·t − Reg for every t on every path: E τ ≤ (B + Reg + c_max)/D.
(c) A learner need not meet (b) for any Reg: on unlucky data it keeps learning the wrong thing. What it has is a
    regret on each text: if LLR_t ≥ LLR'_t − Reg for t ≤ T, where LLR' belongs to some fixed model that meets (a) with D
    and c_max, then E min(τ, T) ≤ (B + Reg + c_max)/D. Krichevsky–Trofimov: Reg = ½ log T + 1 bits.

Proof. Let σ = min(τ, T). By optional stopping E LLR_σ = E Σ_{s≤σ} E[increment_s | past] ≥ D·E σ − Reg (Reg = 0 in (a)),
and LLR_σ ≤ B + c_max, since LLR was below B until τ; let T → ∞: (a), (b). In (c) τ comes no later than LLR' reaches
B + Reg, to which (a) applies. ∎
Drift that is D on average alone does not suffice: it may come late. c_max < ∞ needs a floor under p_0.

Checked on binary sources with the exact law of τ: the numbers are computed, not simulated.
"""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from localist_jax import bits
from localist_jax.report import figures
from proofs_check.models import waiting
from proofs_check.theorem import Theorem, at_most, equal

SMALLEST_GAIN = 1e-3  # bits


def claims(x: waiting.Streams):
    """(a)–(c), where the bound lies below the horizon and so can fail."""
    s = waiting.setting(x)
    T, D = x.extra.shape[2], s.gain
    rewarding = SMALLEST_GAIN < D
    D = jnp.where(rewarding, D, 1.0)
    base = (s.threshold + s.one) / D
    silent = base + x.silent  # Reg = D·silent
    regret = base + (0.5 * jnp.log2(T) + 1) / D
    now = waiting.delay(waiting.fixed(s), s, x.silent)
    learned = waiting.delay(waiting.learner(s), s, jnp.zeros_like(x.silent))
    start = s.theta[:, 0, 0]
    gained = bits.binary_kl(start, s.p0) - bits.binary_kl(start, s.p1)
    return {
        "a: delay": at_most(now, base, rewarding & (x.silent == 0) & (base < T)),
        "b: regret": at_most(now, silent, rewarding & (x.silent > 0) & (silent < T)),
        "c: learner": at_most(learned, regret, rewarding & (regret < T)),
        "the drift is a gain in bits": equal(s.gains[:, 0, 0], gained),
    }


def twin(x: waiting.Streams):
    """(a) with the drift's mean over time."""
    s = waiting.setting(x)
    mean = jnp.maximum(s.gains.min(1).mean(1), SMALLEST_GAIN)
    bound = (s.threshold + s.one) / mean
    return at_most(
        waiting.delay(waiting.fixed(s), s, jnp.zeros_like(x.silent)), bound, bound < x.extra.shape[2]
    )


def attain() -> waiting.Streams:
    """Ones only: every increment is c_max = D, and B lies just above a multiple of it."""
    x = waiting.Streams(
        incumbent=jnp.zeros(2), gap=jnp.full(2, 1.0), floor=jnp.full(2, jnp.inf),
        extra=jnp.zeros((2, 2, waiting.STEPS)),
        false_bits=jnp.zeros(2), trial=jnp.ones(2, int), choices=jnp.ones(2, int), silent=jnp.array([0, 5]),
    )  # fmt: skip
    s = waiting.setting(x)
    return dataclasses.replace(x, false_bits=9 * s.one * (1 + 1e-12) - s.threshold)


def figure(_, __) -> Figure:
    """Exact delay and bound against the gain: a fixed candidate and a learner, coins against a fair incumbent."""
    n, T = 25, 600
    gap = jnp.linspace(-0.2, 4.5, n)  # of the candidate; the source is the candidate itself
    zero, p1 = jnp.zeros(n), jax.nn.sigmoid(jax.nn.softplus(gap))
    s = waiting.setting(waiting.Streams(
        incumbent=zero, gap=gap, floor=zero, extra=jnp.full((n, 2, T), -jnp.inf), false_bits=jnp.full(n, 6.6),
        trial=jnp.full(n, 3), choices=jnp.full(n, 2), silent=zero.astype(int),
    ))  # fmt: skip
    gains = (1 - bits.binary_entropy(p1))[:, None, None]
    s = dataclasses.replace(s, theta=jnp.broadcast_to(p1[:, None, None], (n, 2, T)), gains=gains)
    base, D = (s.threshold + s.one) / s.gain, np.asarray(s.gain)
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = drawn.subplots()
        for evidence, colour, label, bound in (
            (waiting.fixed, figures.BLUE, "fixed candidate", base),
            (waiting.learner, figures.PURPLE, "learner", base + (0.5 * np.log2(T) + 1) / s.gain),
        ):
            axes.plot(D, np.asarray(waiting.delay(evidence(s), s, zero)), color=colour, label=label)
            axes.plot(D, np.asarray(bound), color=colour, ls="--", lw=1, label=f"bound, {label}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("gain D, bits per symbol")
        axes.set_title(f"expected symbols until {float(s.threshold[0]):.1f} bits of evidence")
        axes.legend()
        return drawn


THEOREM = Theorem(
    "T11", "delay of recruitment", waiting.sample, claims, twin, "(a) with the drift's mean over time",
    because="float64, 64 sums of 65 probabilities", attain=attain, attained=("a: delay", "b: regret"),
    share=0.1, chunk=1024, figure=figure,
    note="the library's rule (`recruitment.evidence`) on small models' streams",
    found=(
        "no learner has a finite regret on every path: (c) states the delay with its regret on the text "
        "at hand"
    ),
)  # fmt: skip

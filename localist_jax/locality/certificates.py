"""Certificates: bounds on fidelity and entropy that hold for every input (T3, T4, T5).

They are computed on the host in float64 and rounded outward, so that they also hold in the arithmetic that runs the
model.
"""

from __future__ import annotations

import numpy as np

# Share by which computed logits may exceed exact ones, by dtype.
SLACK = {"float64": 1e-13, "float32": 1e-5, "bfloat16": 2e-2}


def logit_bound(q_gain: np.ndarray, k_gain: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """Return S with |s_ij| ≤ S for every input of a head with QK-norm and rotary positions (T5).

    S = √H · max over rotary pairs of (max|γ_q| · max|γ_k| within the pair): RMS-normalised vectors have
    length at most √H, the gains scale them, a rotation mixes the two channels of a pair (or none), and logits carry
    the factor 1/√H. Biases of queries and keys come before the norm, so S holds with them too.

    Args:
      q_gain, k_gain: gains γ_q, γ_k, [..., H]; channels h and h + H/2 form a rotary pair.
      dtype: dtype of the logits, which sets the slack.

    Returns:
      S in nats, [...], rounded up.
    """
    pairs = [np.abs(np.asarray(gain, np.float64)) for gain in (q_gain, k_gain)]
    halves = [gain.reshape(*gain.shape[:-1], 2, -1).max(-2) for gain in pairs]
    bound = np.sqrt(pairs[0].shape[-1]) * (halves[0] * halves[1]).max(-1)
    return np.nextafter(bound * (1 + SLACK[dtype]), np.inf)


def fidelity_bound(beta, margin, relevant, irrelevant) -> np.ndarray:
    """Return the bound F ≥ 1/(1 + (u/b)·e^{−β−δ}) for b relevant and u irrelevant keys with margin δ in nats (T3).

    With graded gates b is the *sum* of the gates over the relevant keys, not their number. With δ = −2S the bound
    holds for every input (T5). It is rounded down, and is 1 where u = 0 or β = ∞.
    """
    beta, margin = np.asarray(beta, np.float64), np.asarray(margin, np.float64)
    leak = np.asarray(irrelevant, np.float64) / np.asarray(relevant, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        closed = np.where(leak > 0, leak * np.exp(-beta - margin), 0.0)
    return np.where(closed == 0, 1.0, np.nextafter(1 / (1 + closed), 0.0))


def entropy_bound(epsilon, relevant, irrelevant) -> np.ndarray:
    """Return the upper bound H ≤ h(ε) + (1−ε)·log b + ε·log u in bits, if at most ε of the mass lies outside R (T4).

    For ε above u/(b+u) the bound is log₂(b+u), the entropy of uniform attention. It is rounded up.
    """
    eps, b, u = (np.asarray(x, np.float64) for x in (epsilon, relevant, irrelevant))
    eps = np.clip(np.where(u > 0, eps, 0.0), 0.0, u / (b + u))

    def weigh(p, log_inverse_of):
        return np.where(p > 0, p * np.log2(np.where(p > 0, log_inverse_of / np.where(p > 0, p, 1), 1)), 0.0)

    return np.nextafter(weigh(1 - eps, b) + weigh(eps, u), np.inf)


def log_odds_for_fidelity(epsilon, bound, relevant, irrelevant) -> np.ndarray:
    """Return β = max(0, 2S + ln(u/b) + ln((1−ε)/ε)), which guarantees F ≥ 1−ε for every input (T5); rounded up.

    With graded gates b is the sum of the gates over the relevant keys, not their number.

    Raises:
      ValueError: if ε is outside (0, 1), b < 1 or u < 0.

    >>> beta = log_odds_for_fidelity(0.01, 2.0, relevant=8, irrelevant=248)
    >>> bool(fidelity_bound(beta, -4.0, 8, 248) >= 0.99)
    True
    """
    b, u = np.asarray(relevant, np.float64), np.asarray(irrelevant, np.float64)
    epsilon = np.asarray(epsilon, np.float64)
    if not np.all((epsilon > 0) & (epsilon < 1)):
        raise ValueError(f"certificate: ε must lie in (0, 1), got {epsilon}")
    if np.any(b < 1) or np.any(u < 0):
        raise ValueError(f"certificate: needs b ≥ 1 and u ≥ 0, got b={relevant}, u={irrelevant}")
    with np.errstate(divide="ignore"):
        beta = 2 * np.asarray(bound, np.float64) + np.log(u / b) + np.log((1 - epsilon) / epsilon)
    up = beta + 1e-6 * (1 + np.abs(np.where(u > 0, beta, 0.0)))  # survives the cast to float32
    return np.where(u > 0, np.maximum(0.0, up), 0.0)


def target_fidelity_bound(gain, beta, bound, target, always_open, irrelevant) -> np.ndarray:
    """Return the bound F_T ≥ 1/(1 + (r/a)·e^{2S−γ} + (u/a)·e^{2S−γ−β}) for every input (T3 for a target set, T5).

    Args:
      gain: γ, log-odds of the a keys of the target, nats.
      beta: β of the dial that closes the u irrelevant keys.
      bound: S in nats.
      target, always_open, irrelevant: a ≥ 1, r and u, numbers of keys.

    Returns:
      The bound, rounded down.
    """
    gain, beta, S = (np.asarray(x, np.float64) for x in (gain, beta, bound))
    a, r, u = (np.asarray(x, np.float64) for x in (target, always_open, irrelevant))
    with np.errstate(over="ignore", invalid="ignore"):
        closed = np.where(u > 0, u * np.exp(-beta), 0.0)
        beside = (r + closed) / a
        leak = np.where(beside > 0, beside * np.exp(2 * S - gain), 0.0)
    return np.where(leak == 0, 1.0, np.nextafter((1 - 1e-5) / (1 + leak), 0.0))


def gain_for_fidelity(fidelity, bound, target, others) -> np.ndarray:
    """Return γ = max(0, 2S + ln(m/a) + ln(F/(1−F))), which guarantees F_T ≥ F for every input and dial; rounded up.

    Args:
      fidelity: F in (0, 1).
      bound: S in nats.
      target, others: a ≥ 1 target keys, and m other visible keys.

    >>> gain = gain_for_fidelity(0.9, 2.0, target=3, others=61)
    >>> bool(target_fidelity_bound(gain, 0.0, 2.0, 3, 61, 0) >= 0.9)
    True
    """
    F, a, m = (np.asarray(x, np.float64) for x in (fidelity, target, others))
    with np.errstate(divide="ignore"):
        gain = 2 * np.asarray(bound, np.float64) + np.log(m / a) + np.log(F / (1 - F))
    up = gain + 2e-5 / (1 - F) + 1e-6 * np.abs(np.where(m > 0, gain, 0.0))
    return np.where(m > 0, np.maximum(0.0, up), 0.0)

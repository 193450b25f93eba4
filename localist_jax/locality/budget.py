"""Which gates to open for a budget of query–key pairs, and where each head files its keys (T17).

A group is one gate: (layer, head, query block, key block), with the attention mass m that it would let through and the
number c of causal pairs that it decides. Among binary gates whose open pairs add up to at most C the closed mass is
least for the groups sorted by m/c, opened until C is met: optimal where the order meets C exactly, and within one
group's mass otherwise. What is measured on little text is a guess at m/c; each group is then counted with a few pairs
more, κ, and m/(c + κ) is optimal among all choices that open no more pairs and no more groups.
Plain NumPy in float64: this runs once per calibration, on the host.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

Tables = Float[np.ndarray, "F L N K K"]


PRIOR_PAIRS = 1.0  # a group seen once says little about its mass


def by_density(
    mass: Float[np.ndarray, "*groups"], pairs: Float[np.ndarray, "*groups"], prior_pairs: float = PRIOR_PAIRS
) -> Int[np.ndarray, " P"]:
    """Return the flat indices of the groups that have pairs, the most m/(c + κ) first.

    Args:
      mass, pairs: m and c of each group.
      prior_pairs: κ ≥ 0, pairs without mass that every group is counted with beside its own; 0 takes the measured
        density at its word.
    """
    mass, pairs = np.ravel(mass), np.ravel(pairs)
    some = np.flatnonzero(pairs > 0)
    return some[np.argsort(-mass[some] / (pairs[some] + prior_pairs), kind="stable")]


def open_by_mass(
    mass: Float[np.ndarray, "*groups"],
    pairs: Float[np.ndarray, "*groups"],
    budget: float,
    prior_pairs: float = PRIOR_PAIRS,
) -> Bool[np.ndarray, "*groups"]:
    """Return which gates to open: by mass per pair, as many as the budget allows.

    Args:
      mass: attention mass of each group beyond the always-open pairs, summed over queries.
      pairs: causal pairs of each group.
      budget: C, the most pairs to open.
      prior_pairs: as of `by_density`.

    Raises:
      ValueError: a negative budget.

    >>> mass, pairs = np.array([6.0, 1.0]), np.array([10.0, 1.0])
    >>> open_by_mass(mass, pairs, 10.0).tolist(), open_by_mass(mass, pairs, 10.0, prior_pairs=0.0).tolist()
    ([True, False], [False, True])
    """
    if budget < 0:
        raise ValueError(f"budget: expected at least 0 pairs, got {budget:g}")
    order = by_density(mass, pairs, prior_pairs)
    opened = np.zeros(np.size(mass), bool)
    opened[order[: np.searchsorted(np.cumsum(np.ravel(pairs)[order]), budget, side="right")]] = True
    return opened.reshape(np.shape(mass))


def captured(mass: Float[np.ndarray, "*groups"], pairs: Float[np.ndarray, "*groups"], budget: float) -> float:
    """Return the mass that `open_by_mass` lets through."""
    return float(np.where(open_by_mass(mass, pairs, budget), mass, 0.0).sum())


def choose_filing(
    mass: Tables, pairs: Float[np.ndarray, "F K K"], share: float, kv_heads: int
) -> Int[np.ndarray, "L G"]:
    """Return, for each layer and key/value head, the filing that captures most mass.

    Each query head spends the share of the pairs alone; the heads that read one key/value head decide together, since
    its pages hold the keys once.

    Args:
      mass: by filing, layer, query head, query block and key block.
      pairs: by filing, query block and key block: the same for all layers and heads.
      share: of the pairs, in [0, 1].
      kv_heads: G.
    """
    F, L, N = mass.shape[:3]
    each = np.empty((F, L, N))
    for f, layer, head in np.ndindex(F, L, N):
        each[f, layer, head] = captured(mass[f, layer, head], pairs[f], share * pairs[f].sum())
    return each.reshape(F, L, kv_heads, N // kv_heads).sum(-1).argmax(0).astype(np.int32)


def chosen_tables(
    mass: Tables, pairs: Float[np.ndarray, "F K K"], filing: Int[np.ndarray, "L G"]
) -> tuple[Float[np.ndarray, "L N K K"], Float[np.ndarray, "L N K K"]]:
    """Return the mass and the pairs of every gate under the filing that its head goes by."""
    _, L, N = mass.shape[:3]
    heads = np.repeat(filing, N // filing.shape[1], 1)
    layer, head = np.ogrid[:L, :N]
    return mass[heads, layer, head], pairs[heads]

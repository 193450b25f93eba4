"""The locality dial: from distributed (λ=0) to localist (λ=1) attention, without retraining.

A `Dial` stores the log-odds β = −ln(1−λ) ∈ [0, ∞] and not λ, so that settings next to 1 stay representable and dials
compose by addition: global, layer, head, request and rule dials are summed before `gates.odds` computes the odds
ω = A + (1−A)·e^{−β}. A dial is a pytree, hence a *traced* input of every compiled function: moving it recompiles
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.locality import certificates

REGIMES = {
    "audit": (1.0, 0.0),  # exact block-sparse attention in every localist layer
    "regulated": (0.99, 0.0),
    "balanced": (0.9, 3.0),  # progressive: early layers stay distributed
    "distributed": (0.0, 0.0),  # ordinary attention, whatever the gates
}


@jax.tree_util.register_pytree_node_class
class Dial:
    """Log-odds of locality, broadcastable to [batch, layer, head].

    Args:
      locality: λ ∈ [0, 1]; a number, or an array with the three axes [B|1, L|1, N|1].

    Raises:
      ValueError: if λ is outside [0, 1], or an array does not have three axes.

    Dials compose by `+`: 1−λ = Π(1−λ_m).

    >>> float((Dial(0.9) + Dial(0.9)).locality.item())  # doctest: +ELLIPSIS
    0.99...
    """

    __slots__ = ("beta",)
    beta: jax.Array

    def __init__(self, locality: float | np.ndarray | jax.Array = 0.0):
        if isinstance(locality, jax.core.Tracer):
            beta: np.ndarray | jax.Array = -jnp.log1p(-locality)
        else:
            value = np.asarray(locality, np.float64)
            if not (np.all(value >= 0) and np.all(value <= 1)):  # also refuses NaN
                raise ValueError(f"dial: λ must lie in [0, 1], got {locality}; 0 is distributed, 1 localist")
            with np.errstate(divide="ignore"):
                beta = -np.log1p(-value)
        self.beta = _three_axes(beta)

    @classmethod
    def from_log_odds(cls, beta: float | np.ndarray | jax.Array) -> Dial:
        """Return a dial from β ≥ 0 in nats; ∞ is λ=1."""
        if not isinstance(beta, jax.core.Tracer) and not np.all(np.asarray(beta) >= 0):
            raise ValueError(f"dial: log-odds β must be at least 0, got {beta}")
        return cls._of(_three_axes(beta))

    @classmethod
    def _of(cls, beta) -> Dial:
        dial = object.__new__(cls)
        dial.beta = beta
        return dial

    @classmethod
    def per_layer(cls, localities: Sequence[float]) -> Dial:
        """Return a dial with one λ for each of the L layers."""
        return cls(np.asarray(localities, np.float64)[None, :, None])

    @classmethod
    def per_head(cls, localities: Sequence[Sequence[float]]) -> Dial:
        """Return a dial with one λ for each layer and head, [L, N] (or [1, N] for all layers)."""
        return cls(np.asarray(localities, np.float64)[None])

    @classmethod
    def progressive(cls, locality: float, power: float, layers: int) -> Dial:
        """Return a dial that gives layer ℓ of L the value λ·((ℓ+1)/L)^power; power 0 is the same λ everywhere."""
        return cls.per_layer([locality * ((layer + 1) / layers) ** power for layer in range(layers)])

    @classmethod
    def regime(cls, name: str, layers: int) -> Dial:
        """Return a preset: audit, regulated, balanced or distributed (`REGIMES`: λ and progressive power)."""
        if name not in REGIMES:
            raise ValueError(f"dial: unknown regime {name!r}; choose one of {', '.join(REGIMES)}")
        return cls.progressive(*REGIMES[name], layers=layers)

    @classmethod
    def for_fidelity(
        cls,
        epsilon: float,
        logit_bound: np.ndarray | float,
        relevant: np.ndarray | float,
        irrelevant: np.ndarray | float,
    ) -> Dial:
        """Return the smallest dial that guarantees pointer fidelity ≥ 1−ε for *every* input (T5).

        Args:
          epsilon: admitted mass outside the relevant keys, in (0, 1).
          logit_bound: S with |s_ij| ≤ S in nats, a number or [L], [L, N] (`certificates.logit_bound`).
          relevant: b ≥ 1, the least number of relevant keys; with graded gates the *sum* of their gates. Shaped like S.
          irrelevant: u, the largest number of irrelevant keys. Shaped like S.
        """
        beta = certificates.log_odds_for_fidelity(epsilon, logit_bound, relevant, irrelevant)
        shape = (1,) + beta.shape + (1,) * (2 - beta.ndim) if beta.ndim else (1, 1, 1)
        return cls.from_log_odds(beta.reshape(shape))

    @classmethod
    def for_requests(cls, dials: Sequence[float | Dial]) -> Dial:
        """Return one dial per request of a batch; numbers and dials of any extent may be mixed."""
        each = [dial if isinstance(dial, Dial) else cls(dial) for dial in dials]
        inner = jnp.broadcast_shapes(*(dial.beta.shape[1:] for dial in each))
        for dial in each:
            if dial.beta.shape[0] != 1:
                raise ValueError(
                    f"dial: each request takes one dial, got one with {dial.beta.shape[0]} requests"
                )
        return cls._of(jnp.concatenate([jnp.broadcast_to(dial.beta, (1, *inner)) for dial in each]))

    @property
    def locality(self) -> jax.Array:
        """The locality λ = 1 − e^{−β}."""
        return -jnp.expm1(-self.beta)

    @property
    def is_localist(self) -> bool:
        """Whether every setting is λ=1 (for concrete dials)."""
        return bool(np.all(np.isinf(np.asarray(self.beta))))

    def broadcast(self, batch: int, layers: int, heads: int) -> Dial:
        """Return the dial broadcast to [B, L, N], so that every setting has one compiled shape.

        Raises:
          ValueError: if an axis is neither 1 nor the model's size.
        """
        wanted = (batch, layers, heads)
        for axis, got, size in zip(("batch", "layer", "head"), self.beta.shape, wanted, strict=True):
            if got not in (1, size):
                raise ValueError(f"dial: {got} settings on the {axis} axis, but the model has {size}")
        return self._of(jnp.broadcast_to(self.beta, wanted))

    def __add__(self, other: Dial) -> Dial:
        return self._of(self.beta + other.beta)

    def __repr__(self) -> str:
        if isinstance(self.beta, jax.core.Tracer) or not hasattr(self.beta, "size"):
            return f"Dial(beta={self.beta!r})"
        if self.beta.size == 1:
            return f"Dial({1 - math.exp(-float(self.beta.item())):.6g})"
        return f"Dial(shape={tuple(self.beta.shape)})"

    def tree_flatten(self):
        """Return β as the only child of the pytree."""
        return (self.beta,), None

    @classmethod
    def tree_unflatten(cls, _, children):
        """Rebuild a dial from its child."""
        return cls._of(children[0])


def _three_axes(beta) -> jax.Array:
    beta = jnp.asarray(beta, float)  # float64 where JAX has it enabled
    if beta.ndim == 0:
        return beta.reshape(1, 1, 1)
    if beta.ndim != 3:
        raise ValueError(
            f"dial: an array needs the axes [batch, layer, head], got shape {beta.shape}; "
            "see Dial.per_layer, Dial.per_head and Dial.for_requests"
        )
    return beta

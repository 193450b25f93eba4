"""Gates: how much a query of block k may attend to keys of block l, and how gates become exactly zero.

A gate is A[k,l] ∈ [0, 1] per layer and head. With the dial's log-odds β it gives the odds
ω = A + (1−A)·e^{−β} by which attention weights are multiplied: 1 at β=0 whatever A is, A itself at β=∞.
Column 0 (the sink and, if configured, the background block) is open to all queries.

Gates are trained by proximal gradient steps, which reach exactly zero and stay there until the gradient exceeds the
price (T6, T7).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from localist_jax.types import Numeric


def with_open_column(gates: Float[Array, "... K K"]) -> Float[Array, "... K K"]:
    """Return the effective gates, in which column 0 is 1 for every query block."""
    return gates.at[..., 0].set(1.0)


def odds(gates: Float[Array, "N K K"], beta: Float[Array, "B N"]) -> Float[Array, "B N K K"]:
    """Return ω = A + (1−A)·e^{−β}, with column 0 open.

    It is exact at both ends in floating point: 1 at β=0, A at β=∞. (`ln ω` would be NaN at A=0, β=∞.)
    """
    acting = with_open_column(gates)
    return acting + (1 - acting) * jnp.exp(-beta)[..., None, None]


def relevant(gates: Float[Array, "N K K"]) -> Bool[Array, "N K K"]:
    """Return the pairs of blocks that statistics count as relevant: gates above 0, column 0 included."""
    return with_open_column(gates) > 0


def proximal_step(
    gates: Float[Array, "..."], gradient: Float[Array, "..."], step: Numeric, price: Numeric
) -> Float[Array, "..."]:
    """Return A ← argmin over [0,1] of ⟨∇,A⟩ + price·A + ‖A−A_t‖²/(2·step) = clip(A − step·(∇ + price), 0, 1).

    Its fixed points are the stationary points of T6. `step` and `price` broadcast, one scalar per gate.

    >>> proximal_step(jnp.array([0.5, 0.05]), jnp.array([-2.0, 0.0]), 0.1, 1.0).tolist()
    [0.6000000238418579, 0.0]
    """
    return jnp.clip(gates - step * (gradient + price), 0.0, 1.0)


def kkt_residual(
    gates: Float[Array, "..."], gradient: Float[Array, "..."], price: Numeric
) -> Float[Array, "..."]:
    """Return each gate's distance from T6's conditions, in the unit of the gradient; 0 at a stationary point.

    A=0 requires −∂L/∂A ≤ price, A=1 requires −∂L/∂A ≥ price, and gates in between require equality.
    """
    pull = -gradient - price
    at_zero = jnp.maximum(pull, 0.0)
    at_one = jnp.maximum(-pull, 0.0)
    return jnp.where(gates <= 0, at_zero, jnp.where(gates >= 1, at_one, jnp.abs(pull)))


def group_soft_threshold(
    values: Float[Array, "..."], amount: Numeric, axes: tuple[int, ...]
) -> Float[Array, "..."]:
    """Apply the proximal step of amount·‖θ_g‖₂, which shrinks each group (over `axes`) towards an exact zero.

    θ_g ← θ_g · max(0, 1 − amount/‖θ_g‖₂).

    >>> group_soft_threshold(jnp.array([[3.0, 4.0], [0.3, 0.4]]), 2.5, axes=(1,)).tolist()
    [[1.5, 2.0], [0.0, 0.0]]
    """
    square = jnp.sum(jnp.square(values), axes, keepdims=True)
    norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    return values * jnp.where(square > 0, jnp.maximum(0.0, 1.0 - amount / norm), 0.0)


def closed_share(gates: Float[Array, "... K K"], active: Bool[Array, " K"]) -> Float[Array, ""]:
    """Return the share of priced gates (those of active blocks, without column 0) that are exactly 0."""
    priced = active[:, None] & active[None, :] & (jnp.arange(active.size) > 0)
    closed = jnp.where(priced, gates == 0, False).sum()
    return closed / jnp.maximum(1, priced.sum() * (gates.size // active.size**2))


def inside(gates: jax.Array) -> Bool[Array, ""]:
    """Return whether every gate lies in [0, 1]."""
    return jnp.all((gates >= 0) & (gates <= 1))

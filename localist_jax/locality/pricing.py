"""The price of a gate: when it starts, how it rises, and how far it rises.

There are two phases. **Open**: gates stay at 1 and cost nothing until the loss has flattened, so that circuits can form
before anything is closed (pruning from the start loses associative recall). **Price**: μ rises, either to a fixed value
(`gate_bits`) or until the open share meets its target (dual ascent on the constraint open share ≤ target, whose
multiplier is μ).

A gate's price is scaled by w, the share of causal pairs that it decides (mean 1 over the gates at the start), and its
step by 1/w. So a gate that decides twice the pairs costs twice as much, all useless gates travel equally fast, and
splitting a block changes neither the penalty nor its gradient (T15). T6 holds per gate with threshold μ·w.
"""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from localist_jax import bits, config
from localist_jax.types import Numeric, struct

PAIR_MEMORY = 0.98  # decay of the running means of pairs and gate gradients
FIRST_PRICE = 1e-6  # nats per token; the gradient of gates that hardly matter
# Nats per token; above the gradient of any gate, and reached only if the target is below the share of the window.
LARGEST_PRICE = 1e-2
PRICE_DECADES = 3.0  # how far one ramp of dual ascent may raise the price, in powers of ten
SMALLEST_WEIGHT = 0.05  # lower bound of w, which bounds the step of gates that hardly any pair uses


@struct
class Pricing:
    """State of the price; scalars except where shapes are given.

    Attributes:
      price: μ, nats per token of a gate with w = 1.
      opened_at: step at which the price phase began; −1 before.
      fast, slow: running means of the loss, nats per token.
      pairs: float32 [K, K], running share of causal pairs by (query block, key block).
      always: running share of causal pairs that no gate decides.
      gradient: float32 [L, N, K, K], running mean of ∂loss/∂gate, nats per token.
    """

    price: chex.Array
    opened_at: chex.Array
    fast: chex.Array
    slow: chex.Array
    pairs: chex.Array
    always: chex.Array
    gradient: chex.Array

    @classmethod
    def create(cls, gates: Float[Array, "L N K K"]) -> Pricing:
        """Return the state before the first step."""
        capacity = gates.shape[-1]
        return cls(
            price=jnp.zeros(()),
            opened_at=jnp.full((), -1, jnp.int32),
            fast=jnp.zeros(()),
            slow=jnp.zeros(()),
            pairs=jnp.zeros((capacity, capacity)),
            always=jnp.ones(()),
            gradient=jnp.zeros(gates.shape),
        )

    @property
    def priced(self) -> Bool[Array, ""]:
        """Whether the price phase has begun."""
        return self.opened_at >= 0


def weights(pairs: Float[Array, "K K"], blocks: int) -> Float[Array, "K K"]:
    """Return w, the share of pairs a gate decides over its mean at the start of the run; 1 before the first batch.

    Σ w = blocks·(blocks − 1) however many blocks have been recruited since. A total that grew with their number would
    raise the price of every gate whenever a block is split (T15).

    Args:
      pairs: share of causal pairs by (query block, key block).
      blocks: number of blocks in use at the start, block 0 included.
    """
    mean = pairs.sum() / (blocks * max(1, blocks - 1))
    return jnp.where(mean > 0, jnp.maximum(pairs / jnp.where(mean > 0, mean, 1.0), SMALLEST_WEIGHT), 1.0)


def step_size(settings: config.Gates, price: Numeric, steps: int) -> jax.Array:
    """Return the step size η of the proximal step.

    With it a useless gate travels `step_travel` times from 1 to 0 in the shortest price phase.
    η·μ is kept constant while μ rises, so gates close in the order of their value: those without gradient close at the
    first price, the others when μ exceeds their gradient.
    """
    return settings.step_travel / (steps * (1 - settings.open_at_most) * jnp.maximum(price, FIRST_PRICE))


def observe(
    state: Pricing,
    loss: Float[Array, ""],
    gradient: Float[Array, "L N K K"],
    pairs: tuple[Float[Array, "K K"], Float[Array, ""], Float[Array, ""]],
    window: int,
) -> Pricing:
    """Update the running means with one step's loss (nats/token), gate gradient and pair counts."""
    gated, always, total = pairs
    total = jnp.maximum(total, 1.0)
    first = state.slow == 0

    def mean(old, new, memory):
        return jnp.where(first, new, memory * old + (1 - memory) * new)

    return dataclasses.replace(
        state,
        fast=mean(state.fast, loss, 1 - 2 / window),
        slow=mean(state.slow, loss, 1 - 0.5 / window),
        pairs=mean(state.pairs, gated / total, PAIR_MEMORY),
        always=mean(state.always, always / total, PAIR_MEMORY),
        gradient=PAIR_MEMORY * state.gradient + (1 - PAIR_MEMORY) * gradient,
    )


def advance(
    state: Pricing,
    settings: config.Gates,
    step: Numeric,
    steps: int,
    open_share: Float[Array, ""],
    tokens: int,
) -> Pricing:
    """Open the price phase when the loss is flat, and set μ for this step.

    Args:
      step, steps: steps done, and steps of the whole run.
      open_share: current share of causal pairs that are open at λ=1.
      tokens: training tokens of the whole run, over which `gate_bits` are spread.
    """
    progress = step / steps
    # The slow mean lags the fast one by about 1.5 windows, so their relative gap is the decrease over that time.
    flat = (state.slow - state.fast) < settings.flat_tolerance * state.slow
    begin = (flat & (progress >= settings.open_at_least)) | (progress >= settings.open_at_most)
    begin &= settings.open_share_target < 1  # a target of 1 means that no gate has to close
    opened_at = jnp.where(state.priced, state.opened_at, jnp.where(begin, step, -1)).astype(jnp.int32)
    length = jnp.maximum(1.0, settings.ramp * (steps - opened_at))
    ramp = jnp.clip((step - opened_at) / length, 0.0, 1.0)
    if settings.gate_bits:
        price = ramp * bits.to_nats(settings.gate_bits) / tokens
    else:
        price = _dual_ascent(state.price, open_share - settings.open_share_target, length)
    price = jnp.where(opened_at >= 0, price, 0.0)
    price = price.astype(state.price.dtype)  # a weak type would make the next step compile again
    return dataclasses.replace(state, price=price, opened_at=opened_at)


def settled(
    stepped: Float[Array, "*K"],
    gates: Float[Array, "*K"],
    settings: config.Gates,
    progress: Numeric,
    open_share: Float[Array, ""],
) -> Float[Array, "*K"]:
    """Return the gates after a step; in the last part of a run they only close, and only while too many are open.

    The weights then train with the gates that they will be used with, and a late outlier of the loss, whose gradient
    exceeds any price, cannot reopen closed gates.
    """
    late = progress >= 1 - settings.settle
    closing = jnp.where(open_share > settings.open_share_target, jnp.minimum(stepped, gates), gates)
    return jnp.where(late, closing, stepped)


def _dual_ascent(price, excess, length):
    """Do a step of multiplicative dual ascent: ln μ moves with the excess, at most `PRICE_DECADES` per ramp."""
    rate = PRICE_DECADES * jnp.log(10.0) / length
    risen = price * jnp.exp(rate * jnp.clip(excess * 10, -1.0, 1.0))
    return jnp.clip(risen, FIRST_PRICE, LARGEST_PRICE)

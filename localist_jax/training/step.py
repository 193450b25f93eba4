"""One training step: loss in bits, an optimizer update, then the proximal step on the gates.

`train_step(state, batch) → (state, metrics)` is jitted once, donates its state, and does no Python branching on arrays:
dial, price, active blocks and anchors are all traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import Dial, measures, pricing, router
from localist_jax.locality import gates as gating
from localist_jax.locality.pricing import Pricing
from localist_jax.model import Output, Transformer, forward
from localist_jax.training.dials import training_dial
from localist_jax.training.state import (
    GATES,
    UNITS,
    TrainState,
    at_path,
    learning_rate,
    optimizer,
    trunk_mask,
    with_leaf,
)
from localist_jax.types import Key, PyTree

Metrics = dict[str, jax.Array]


class LossTerms(NamedTuple):
    """The parts of a batch's loss, and the output that they come from.

    Attributes:
      output: output of the model.
      code_bits: code length of all scored tokens, bits.
      usage: mean probability of each block, [K].
      doubt: mean entropy of the router, nats.
      switching: chance that neighbours are in different blocks.
      nats: mean code length, nats per scored token.
    """

    output: Output
    code_bits: jax.Array
    usage: jax.Array
    doubt: jax.Array
    switching: jax.Array
    nats: jax.Array


class GateStep(NamedTuple):
    """The result of the proximal step on the gates.

    Attributes:
      gates: the new gates, [L, N, K, K].
      pricing: the new state of the price.
      weight: w of each gate, by which price and step are scaled, [K, K].
      moves: which gates may change in this step, [K, K].
      open_share: share of causal pairs open at λ=1 before the step.
    """

    gates: jax.Array
    pricing: Pricing
    weight: jax.Array
    moves: jax.Array
    open_share: jax.Array

    def kkt_residual(self) -> jax.Array:
        """Return each gate's distance from stationarity, `gates.kkt_residual`."""
        return gating.kkt_residual(self.gates, self.pricing.gradient / self.weight, self.pricing.price)


def compile_step(
    model: Transformer, settings: config.Config, byte_lengths: np.ndarray, state: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return `make_train_step`, jitted for states sharded like this one; it donates them and keeps their sharding.

    Without fixed output shardings the compiler may choose equivalent ones under other names, and the second step would
    be compiled again.
    """
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(model, settings, byte_lengths)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def perception_share(batch: Batch, model: config.Model) -> Float[Array, " P"]:
    """Return the open share of each perception layer: that of its window and the sink, or 1 where it is dense."""
    if not model.perception_window:
        return jnp.ones(model.router_layer)
    block = jnp.where(batch.positions < model.sink, 0, 1)
    _, always, total = measures.pair_counts(
        block, batch.positions, batch.segments, model.perception_window, 2
    )
    return jnp.full(model.router_layer, always / jnp.maximum(total, 1.0))


def pairs_of(output: Output, batch: Batch, model: config.Model):
    """Count a batch's causal pairs by query block, key block and, if there are two, filing: `measures.pair_counts`."""
    return measures.pair_counts(
        output.blocks,
        batch.positions,
        batch.segments,
        model.window,
        model.block_capacity,
        output.filed if model.filings > 1 else None,
    )


def make_train_step(
    model: Transformer, settings: config.Config, byte_lengths: np.ndarray
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """Return the pure step function of a run, ready for `jax.jit(…, donate_argnums=0)`.

    Args:
      model: the network.
      settings: the run's configuration.
      byte_lengths: int [V], bytes that each token stands for.
    """
    tx, rate = optimizer(settings), learning_rate(settings)
    grad_fn = jax.value_and_grad(partial(_loss, model, settings), has_aux=True)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dial_key, router_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        progress = state.step / settings.train.steps
        dial = training_dial(dial_key, settings.dial, progress, settings.model.layers)
        (_, terms), grads = grad_fn(state.params, state, batch, dial, router_key)

        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = _keep_frozen(settings, optax.apply_updates(state.params, updates), state.params)
        with jax.named_scope("gates"):
            step = _gate_step(settings, state, batch, terms, at_path(grads, GATES))
            params = with_leaf(params, GATES, step.gates)
        if settings.optimizer.unit_price and settings.model.block_units:
            with jax.named_scope("unit_groups"):
                params = _shrink_units(params, rate(state.step) * settings.optimizer.unit_price)

        price, residual = step.pricing, step.kkt_residual()
        sizes = jnp.asarray(byte_lengths)[batch.targets]
        metrics = {
            "bits_per_token": bits.from_nats(terms.nats),
            "bits_per_byte": terms.code_bits / jnp.maximum(1, jnp.where(batch.scored, sizes, 0).sum()),
            "locality": jnp.abs(dial.locality.mean()),
            "learning_rate": rate(state.step),
            "gradient_norm": optax.tree.norm(with_leaf(grads, GATES, jnp.zeros(()))),
            "parameter_norm": optax.tree.norm(params),
            "phase": price.priced.astype(jnp.float32),
            "gate_price": price.price,
            "gates_closed": gating.closed_share(step.gates, state.blocks.active),
            "open_share": step.open_share,
            "kkt_residual": jnp.where(step.moves, residual, 0.0)[..., 1:].sum()
            / max(1, residual[..., 1:].size),
            "usage_min": jnp.where(terms.usage > 0, terms.usage, 1.0).min(),
            "usage_entropy_bits": bits.entropy(terms.usage),
            "router_doubt_bits": bits.from_nats(terms.doubt),
            "router_switching": terms.switching,
        }
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, pricing=price
        )
        return new, metrics

    return train_step


def _keep_frozen(settings: config.Config, params: PyTree, frozen: PyTree) -> PyTree:
    """Return `params`, in which a frozen trunk is replaced by that of `frozen`."""
    if settings.optimizer.trunk:
        return params
    return jax.tree.map(
        lambda in_trunk, new, old: old if in_trunk else new, trunk_mask(params), params, frozen
    )


def _loss(
    model: Transformer,
    settings: config.Config,
    params: PyTree,
    state: TrainState,
    batch: Batch,
    dial: Dial,
    key: Key,
) -> tuple[jax.Array, LossTerms]:
    """Return the loss of a batch in nats per token: code length and the router's terms."""
    c, weights = settings.model, settings.router
    params = _keep_frozen(settings, params, jax.lax.stop_gradient(params))  # saves computing its gradient
    out = forward(
        model,
        params,
        batch.tokens,
        dial,
        state.blocks,
        positions=batch.positions,
        segments=batch.segments,
        noise=weights.noise,
        rngs={"router": key},
    )
    valid, scored = batch.segments > 0, batch.scored
    code = jnp.where(scored, bits.code_length(out.logits, batch.targets), 0.0).sum()
    allowed = router.allowed_blocks(state.blocks.active, c.background)
    routed = valid & (batch.positions >= c.sink)
    usage = router.usage(out.block_probs, routed)
    penalty = router.usage_penalty(usage, allowed, weights.usage_floor)
    nats = bits.to_nats(code) / jnp.maximum(1, scored.sum())
    doubt = router.doubt(out.block_probs, routed)
    together = routed[:, 1:] & routed[:, :-1] & (batch.segments[:, 1:] == batch.segments[:, :-1])
    switching = router.switching(out.block_probs, together)
    loss = nats + weights.usage_weight * penalty + weights.doubt_weight * doubt
    loss += weights.switching_weight * switching
    return loss, LossTerms(out, code, usage, doubt, switching, nats)


def _gate_step(
    settings: config.Config, state: TrainState, batch: Batch, terms: LossTerms, gradient: jax.Array
) -> GateStep:
    """Update the price of gates, and take a proximal step on those that may move."""
    c, steps, active = settings.model, settings.train.steps, state.blocks.active
    gates, pairs = at_path(state.params, GATES), pairs_of(terms.output, batch, c)
    price = pricing.observe(state.pricing, terms.nats, gradient, pairs, settings.gates.flat_window)
    gated, always, total = pairs
    opened = measures.open_share(gates, gated, always, total, perception_share(batch, c))
    tokens = steps * settings.data.batch * settings.data.context
    price = pricing.advance(price, settings.gates, state.step, steps, opened, tokens)
    weight = pricing.weights(price.pairs, c.blocks)
    scaled = price.gradient / weight
    step = pricing.step_size(settings.gates, price.price, steps)
    stepped = gating.proximal_step(gates, scaled, step, price.price)
    stepped = pricing.settled(stepped, gates, settings.gates, state.step / steps, opened)
    moves = (settings.gates.pattern == "learned") & price.priced & active[:, None] & active
    return GateStep(jnp.where(moves, stepped, gates), price, weight, moves, opened)


def _shrink_units(params: PyTree, amount: jax.Array) -> PyTree:
    """Take a proximal step on the group penalty of localist units, [L, K, U, D]: one group per unit."""
    return with_leaf(params, UNITS, gating.group_soft_threshold(at_path(params, UNITS), amount, axes=(3,)))

"""One training step: loss in bits, an AdamW update, then the proximal step on the gates.

`train_step(state, batch) → (state, metrics)` is jitted once, donates its state, and does no Python
branching on arrays: dial, price, active blocks and anchors are all traced.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import gates as gating
from localist_jax.locality import measures, pricing, router
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

Metrics = dict[str, jax.Array]


def compile_step(
    model: Transformer, settings: config.Config, byte_lengths: np.ndarray, state: TrainState
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """`make_train_step`, jitted for states that lie where this one does; donates them, and leaves them where they are.

    Left to choose, the compiler names places otherwise than the table of axes does, and the second step would be
    compiled anew.
    """
    where = jax.tree.map(lambda leaf: leaf.sharding, state)
    step = make_train_step(model, settings, byte_lengths)
    return jax.jit(step, donate_argnums=0, out_shardings=(where, None))


def perception_share(batch: Batch, model: config.Model) -> Float[Array, " P"]:
    """Open share of each perception layer: its window and the sink, or 1 where dense."""
    if not model.perception_window:
        return jnp.ones(model.router_layer)
    block = jnp.where(batch.positions < model.sink, 0, 1)
    _, always, total = measures.pair_counts(
        block, batch.positions, batch.segments, model.perception_window, 2
    )
    return jnp.full(model.router_layer, always / jnp.maximum(total, 1.0))


def pairs_of(output: Output, batch: Batch, model: config.Model):
    """Causal pairs of a batch by query block and key block (and filing, if there are two): `measures.pair_counts`."""
    return measures.pair_counts(
        output.blocks, batch.positions, batch.segments, model.window, model.block_capacity,
        output.filed if model.filings > 1 else None,
    )  # fmt: skip


def make_train_step(
    model: Transformer, settings: config.Config, byte_lengths: np.ndarray
) -> Callable[[TrainState, Batch], tuple[TrainState, Metrics]]:
    """The pure step function of a run, ready for `jax.jit(…, donate_argnums=0)`.

    Args:
      model: the network.
      settings: the run's configuration.
      byte_lengths: int [V], bytes that each token stands for.
    """
    c, steps = settings.model, settings.train.steps
    tokens_in_all = steps * settings.data.batch * settings.data.context
    tx, rate = optimizer(settings), learning_rate(settings)

    def frozen(params, instead):
        """`params`, with what is frozen taken from `instead`."""
        if settings.optimizer.trunk:
            return params
        return jax.tree.map(lambda mine, new, old: old if mine else new, trunk_mask(params), params, instead)

    def loss_fn(params, state: TrainState, batch: Batch, dial, key):
        params = frozen(params, jax.lax.stop_gradient(params))  # its gradient is not even computed
        out = forward(
            model, params, batch.tokens, dial, state.blocks,
            positions=batch.positions, segments=batch.segments,
            noise=settings.router.noise, rngs={"router": key},
        )  # fmt: skip
        valid, scored = batch.segments > 0, batch.scored
        code = jnp.where(scored, bits.code_length(out.logits, batch.targets), 0.0).sum()
        allowed = router.allowed_blocks(state.blocks.active, c.background)
        routed = valid & (batch.positions >= c.sink)
        usage = router.usage(out.block_probs, routed)
        penalty = router.usage_penalty(usage, allowed, settings.router.usage_floor)
        nats = bits.to_nats(code) / jnp.maximum(1, scored.sum())
        doubt = router.doubt(out.block_probs, routed)
        together = routed[:, 1:] & routed[:, :-1] & (batch.segments[:, 1:] == batch.segments[:, :-1])
        switching = router.switching(out.block_probs, together)
        weights = settings.router
        loss = nats + weights.usage_weight * penalty + weights.doubt_weight * doubt
        loss += weights.switching_weight * switching
        return loss, (out, code, usage, doubt, switching, nats)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        dial_key, router_key = jax.random.split(jax.random.fold_in(state.key, state.step))
        dial = training_dial(dial_key, settings.dial, state.step / steps, c.layers)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (_, (out, code, usage, doubt, switching, nats)), grads = grad_fn(
            state.params, state, batch, dial, router_key
        )

        with jax.named_scope("optimizer"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params)
            params = frozen(optax.apply_updates(state.params, updates), state.params)
        with jax.named_scope("gates"):
            pairs = pairs_of(out, batch, c)
            gates = at_path(state.params, GATES)
            price = pricing.observe(
                state.pricing, nats, at_path(grads, GATES), pairs, settings.gates.flat_window
            )
            gated, always, total = pairs
            opened = measures.open_share(gates, gated, always, total, perception_share(batch, c))
            price = pricing.advance(price, settings.gates, state.step, steps, opened, tokens_in_all)
            weight = pricing.weights(price.pairs, c.blocks)
            stepped = gating.proximal_step(
                gates,
                price.gradient / weight,
                pricing.step_size(settings.gates, price.price, steps),
                price.price,
            )
            stepped = pricing.settled(stepped, gates, settings.gates, state.step / steps, opened)
            learned = settings.gates.pattern == "learned"
            moves = learned & price.priced & state.blocks.active[:, None] & state.blocks.active
            new_gates = jnp.where(moves, stepped, gates)
            params = with_leaf(params, GATES, new_gates)
        if settings.optimizer.unit_price and c.block_units:
            with jax.named_scope("unit_groups"):
                units = at_path(params, UNITS)  # [L, K, U, D]: one group per unit
                amount = rate(state.step) * settings.optimizer.unit_price
                params = with_leaf(params, UNITS, gating.group_soft_threshold(units, amount, axes=(3,)))

        residual = gating.kkt_residual(new_gates, price.gradient / weight, price.price)
        sizes = jnp.asarray(byte_lengths)[batch.targets]
        metrics = {
            "bits_per_token": bits.from_nats(nats),
            "bits_per_byte": code / jnp.maximum(1, jnp.where(batch.scored, sizes, 0).sum()),
            "locality": jnp.abs(dial.locality.mean()),
            "learning_rate": rate(state.step),
            "gradient_norm": optax.tree.norm(with_leaf(grads, GATES, jnp.zeros(()))),
            "parameter_norm": optax.tree.norm(params),
            "phase": price.priced.astype(jnp.float32),
            "gate_price": price.price,
            "gates_closed": gating.closed_share(new_gates, state.blocks.active),
            "open_share": opened,
            "kkt_residual": jnp.where(moves, residual, 0.0)[..., 1:].sum() / max(1, residual[..., 1:].size),
            "usage_min": jnp.where(usage > 0, usage, 1.0).min(),
            "usage_entropy_bits": bits.entropy(usage),
            "router_doubt_bits": bits.from_nats(doubt),
            "router_switching": switching,
        }
        new = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, pricing=price
        )
        return new, metrics

    return train_step

"""The training state, and the optimizer group of each parameter."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax import traverse_util

from localist_jax import config
from localist_jax.locality import Blocks, Dial
from localist_jax.locality.pricing import Pricing
from localist_jax.model import Transformer
from localist_jax.types import Key, PyTree, struct

GATES = ("localist", "attention", "gates")
FILING = ("localist", "attention", "filing")
UNITS = ("localist", "units", "out")
ROUTER = ("router", "kernel")
DELTAS = tuple((f"{name}_delta",) for name in ("query", "key", "value", "out"))
MUON_MOMENTUM = 0.95
ADAM_SIZE = 0.2  # root mean square of an AdamW update at learning rate 1
INITIAL_GATES = {  # gates [K, K] at the start, by `config.Gates.pattern`
    "learned": lambda c: jnp.ones((c.block_capacity,) * 2),
    "closed": lambda c: jnp.zeros((c.block_capacity,) * 2),
    "own": lambda c: jnp.eye(c.block_capacity),
}


@struct
class TrainState:
    """Everything that a step reads and writes.

    Attributes:
      step: int32, number of steps done.
      params: the model's parameter pytree.
      opt_state: state of the optimizer (gates have none, since they take proximal steps).
      blocks: active blocks and anchors.
      pricing: price of a gate, and the running means that set it.
      key: random key of the run; each step folds its number in.
    """

    step: chex.Array
    params: PyTree
    opt_state: PyTree
    blocks: Blocks
    pricing: Pricing
    key: chex.PRNGKey


def at_path(params: PyTree, path: tuple[str, ...]) -> Any:
    """Return the leaf of a nested dictionary at `path`."""
    for name in path:
        params = params[name]
    return params


def with_leaf(params: PyTree, path: tuple[str, ...], leaf: Any) -> PyTree:
    """Return a copy of a nested dictionary with another leaf at `path`."""
    head, *rest = path
    return {**params, head: with_leaf(params[head], tuple(rest), leaf) if rest else leaf}


def filing_of(params: PyTree, model: config.Model) -> jax.Array | None:
    """Return the filing of each localist layer and query head, int32 [L, N]; None if there is only one.

    The certificates of `locality` take it.
    """
    if model.filings == 1:
        return None
    return jnp.repeat(jnp.round(at_path(params, FILING)).astype(jnp.int32), model.heads // model.kv_heads, 1)


def create(model: Transformer, settings: config.Config, key: Key) -> TrainState:
    """Create a fresh state, with parameters boxed with their logical axis names."""
    init_key, run_key = jax.random.split(key)
    c = settings.model
    blocks = Blocks.create(c.blocks, c.block_capacity, c.anchor_capacity)
    # Parameter shapes do not depend on this batch; it has a row per data shard.
    tokens = jnp.zeros((model.data_shards, 2), jnp.int32)
    params = model.init(init_key, tokens, Dial(0.0), blocks)["params"]
    gates = at_path(params, GATES)
    params = with_leaf(
        params, GATES, jax.tree.map(lambda x: x * INITIAL_GATES[settings.gates.pattern](c), gates)
    )
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer(settings).init(params),
        blocks=blocks,
        pricing=Pricing.create(at_path(nn.unbox(params), GATES)),
        key=run_key,
    )


def learning_rate(settings: config.Config) -> optax.Schedule:
    """Return the schedule: linear warm-up, then a cosine down to `final` of the peak."""
    o, steps = settings.optimizer, settings.train.steps
    warmup = max(1, round(o.warmup * steps))
    return optax.warmup_cosine_decay_schedule(
        0.0, o.learning_rate, warmup, max(steps, warmup + 1), o.final * o.learning_rate
    )


def optimizer(settings: config.Config) -> optax.GradientTransformation:
    """Return AdamW, or Muon for the layers' matrices, with clipping, for all but the gates; gains are not decayed."""
    o, rate = settings.optimizer, learning_rate(settings)

    def adam(decay: float) -> optax.GradientTransformation:
        return optax.adamw(rate, b1=o.b1, b2=o.b2, weight_decay=decay)

    none = optax.set_to_zero()
    transforms = {"table": adam(o.weight_decay), "vector": adam(0.0), "gate": none, "frozen": none}
    transforms["matrix"] = transforms["table"] if o.kind == "adamw" else _muon(settings, rate)
    groups = partial(optimizer_groups, trunk=o.trunk)
    clip = optax.masked(
        optax.clip_by_global_norm(o.clip_norm),
        lambda p: jax.tree.map(lambda group: group not in ("gate", "frozen"), groups(p)),
    )
    slower = optax.masked(optax.scale(o.trunk), trunk_mask)
    return optax.chain(
        clip, optax.partition(transforms, groups), slower if 0 < o.trunk < 1 else optax.identity()
    )


def _muon(settings: config.Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024), with updates as large as AdamW's, so that one learning rate fits both."""

    def sized(updates: PyTree, _) -> PyTree:
        def resize(update, axes):
            rows, columns = (math.prod(update.shape[i] for i in part) for part in axes)
            return update * ADAM_SIZE * max(rows, columns) ** 0.5

        return jax.tree.map(resize, updates, _matrices(updates))

    return optax.chain(
        optax.contrib.scale_by_muon(beta=MUON_MOMENTUM, weight_dimension_numbers=_matrices),
        optax.stateless(sized),
        optax.add_decayed_weights(settings.optimizer.weight_decay),
        optax.scale_by_learning_rate(rate),
    )


def _matrices(params: PyTree) -> PyTree:
    """Return which axes of each leaf are rows and columns of matrices; a leaf may hold one for each layer or block."""

    def axes_of(path, leaf):
        if isinstance(leaf, optax.MaskedNode):
            return leaf
        if path[-2] != "attention":
            return optax.contrib.MuonDimensionNumbers((-2,), (-1,))
        inwards = path[-1] != "out"  # [D, N, H]; "out" is [N, H, D]
        return optax.contrib.MuonDimensionNumbers(*(((-3,), (-2, -1)) if inwards else ((-3, -2), (-1,))))

    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: axes_of(path, leaf) for path, leaf in flat.items()})


OPTIMIZER_GROUPS = {  # by the last name of a parameter's path; every parameter must be listed
    "gates": "gate",
    "filing": "frozen",  # chosen by calibration, not learned
    "block_of_cell": "frozen",  # chosen by recruitment
    **dict.fromkeys(("gain", "bias", "query_bias", "key_bias", "value_bias"), "vector"),
    **dict.fromkeys(("embedding", "head", "kernel"), "table"),
    **dict.fromkeys(("query", "key", "value", "out", "gate", "up", "down", "in"), "matrix"),
}


def optimizer_groups(params: PyTree, trunk: float = 1.0) -> PyTree:
    """Return the optimizer group of every parameter; with `trunk` 0 those of the trunk are "frozen".

    Raises:
      ValueError: if a parameter has no group; names its path.
    """
    flat = traverse_util.flatten_dict(params)
    for path in flat:
        if path[-1] not in OPTIMIZER_GROUPS:
            raise ValueError(
                f"optimizer: parameter {'/'.join(path)} has no group; add it to training.state.OPTIMIZER_GROUPS"
            )
    groups = {path: OPTIMIZER_GROUPS[path[-1]] if trunk or not in_trunk(path) else "frozen" for path in flat}
    return traverse_util.unflatten_dict(groups)


def in_trunk(path: tuple[str, ...]) -> bool:
    """Return whether a parameter is one that any transformer has: all but router, gates, filing, deltas and units.

    >>> in_trunk(("embedding",)), in_trunk(("router", "norm", "gain")), in_trunk(GATES)
    (True, False, False)
    """
    localist = "units" in path or path[-1] in ("gates", "filing") or path[-2:-1] in DELTAS
    return path[0] != "router" and not localist


def trunk_mask(params: PyTree) -> PyTree:
    """Return `in_trunk` for every parameter."""
    flat = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: in_trunk(path) for path in flat})

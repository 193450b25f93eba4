"""The conditions that are trained: the dialled model, its two ends, schedules, and controls at the same open share.

Every condition has the same architecture, parameters, data and steps; they differ in the dial of training and
in what the gates may be.
"""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from localist_jax.config import Config
from localist_jax.data import Batch
from localist_jax.locality import measures
from localist_jax.training.evaluate import SWEEP
from localist_jax.training.step import perception_share

OWN_END, BOTH_ENDS = (1.0,), (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Condition:
    """One way to train.

    Attributes:
      what: in words, for the page.
      settings: the task's configuration and, for controls, the one number that matches an open share → the run's.
      localities: dials at which it is measured.
      matches: which of `fitted`'s controls it is; empty for the others.
      every_seed: of a variant, whether it is trained with all seeds: configurations ship with it.
    """

    what: str
    settings: Callable[[Config, int], Config]
    localities: tuple[float, ...]
    matches: str = ""
    every_seed: bool = False


def _progressive(power: float) -> Condition:
    def settings(c: Config, _: int) -> Config:
        return c.replace(dial={"mode": "schedule", "locality": 1.0, "power": power})

    return Condition(f"λ rises 0 → 1 over the run; layer ℓ of L gets λ·(ℓ/L)^{power:g}", settings, SWEEP)


CONDITIONS: dict[str, Condition] = {
    "any": Condition("any-dial: λ drawn anew at each step", lambda c, _: c, SWEEP),
    "dense": Condition(
        "λ=0 throughout, perception dense too: ordinary attention everywhere",
        lambda c, _: _fixed(c, 0.0).replace(model={"perception_window": 0}),
        (0.0,),
    ),
    "dense_above": Condition(
        "λ=0 throughout, perception local as in any-dial", lambda c, _: _fixed(c, 0.0), (0.0,)
    ),
    "always": Condition(
        "λ=1, all gates closed: self, sink and window alone",
        lambda c, _: _fixed(c, 1.0).replace(gates={"pattern": "closed"}),
        OWN_END,
    ),
    "localist": Condition("λ=1 throughout", lambda c, _: _fixed(c, 1.0), SWEEP),
    "progressive_1": _progressive(1.0),
    "progressive_3": _progressive(3.0),
    "progressive_5": _progressive(5.0),
    "window": Condition(
        "control: a wider window instead of gates, at any-dial's open share",
        lambda c, size: _fixed(c, 1.0).replace(gates={"pattern": "closed"}, model={"window": size}),
        OWN_END,
        matches="window",
    ),
    "neighbours": Condition(
        "control: fixed blocks of neighbours that see themselves, at any-dial's open share",
        lambda c, size: _fixed(c, 1.0).replace(gates={"pattern": "own"}, model={"neighbours": size}),
        OWN_END,
        matches="neighbours",
    ),
}


def _variant(what: str, every_seed: bool = False, **sections: dict[str, Any]) -> Condition:
    return Condition(what, lambda c, _: c.replace(**sections), BOTH_ENDS, every_seed=every_seed)


# What any-dial could have done otherwise: one change each, on text; most with one seed.
VARIANTS: dict[str, Condition] = {
    "power_1": _variant("any-dial progressive over the layers, power 1", dial={"power": 1.0}),
    "fewer_localist": _variant("λ=1 in 20 % of the steps, not 40 %", dial={"share_localist": 0.2}),
    "more_localist": _variant("λ=1 in 60 % of the steps", True, dial={"share_localist": 0.6}),
    "early_price": _variant(
        "gates priced from 15 % of the run", gates={"open_at_least": 0.15, "open_at_most": 0.15}
    ),
    "late_price": _variant(
        "gates priced from 60 % of the run", gates={"open_at_least": 0.6, "open_at_most": 0.6}
    ),
    "half_open": _variant("half the open share", gates={"open_share_target": 0.12}),
    "blocks_8": _variant("8 blocks, not 16", model={"blocks": 8, "block_capacity": 8}),
    "blocks_32": _variant("32 blocks", model={"blocks": 32, "block_capacity": 32}),
    "window_8": _variant("window 8 in all layers", model={"window": 8, "perception_window": 8}),
    "window_16": _variant("window 16 in the localist layers", model={"window": 16}),
    "router_2": _variant("router after layer 2, not 1", model={"router_layer": 2}),
}
ALL = {**CONDITIONS, **VARIANTS}


def _fixed(c: Config, locality: float) -> Config:
    return c.replace(dial={"mode": "fixed", "locality": locality})


def fitted(settings: Config, control: str, batches: Sequence[Batch], share: float) -> int:
    """Return the smallest window, or run of neighbours, whose open share over all layers is at least `share`."""
    smallest = 1 if control == "window" else -(-settings.data.context // (settings.model.blocks - 1))
    sizes = range(smallest, settings.data.context)
    return smallest + bisect_left(sizes, share, key=lambda size: _share_of(settings, control, batches, size))


def _share_of(settings: Config, control: str, batches: Sequence[Batch], size: int) -> float:
    c = settings.model
    K, localist = c.block_capacity, c.layers - c.router_layer
    window = size if control == "window" else c.window
    pattern = jnp.zeros((K, K)) if control == "window" else jnp.eye(K)
    gates = jnp.broadcast_to(pattern, (localist, c.heads, K, K))
    count = jax.jit(measures.pair_counts, static_argnums=(3, 4))
    shares = []
    for batch in batches:
        positions, segments = jnp.asarray(batch.positions), jnp.asarray(batch.segments)
        block = jnp.where(positions == 0, 0, jnp.minimum(1 + positions // size, K - 1))
        gated, always, total = count(block, positions, segments, window, K)
        shares.append(float(measures.open_share(gates, gated, always, total, perception_share(batch, c))))
    return sum(shares) / len(shares)

"""Runs that were made localist by looking at them, opened up: T17 layer by layer on held-out text."""

from __future__ import annotations

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.locality import Dial
from localist_jax.training.run import Run
from localist_jax.training.state import FILING, GATES, at_path
from localist_jax.types import struct
from proofs_check.models import tables, trained
from proofs_check.models.stacks import Text

READ = 64  # positions of a validation row
FLOAT32 = 1e-4  # rounding of sums of attention weights and of their logarithms, relative to 1 + |bound|


@struct
class Localised:
    """The L localist layers of a run on one text, in float64 from float32.

    Attributes:
      seen: as of `tables.see`, leaves [L, …].
      slopes: ∂(Σ lse)/∂ ln ω under each layer's filing, [L, N, K, K].
      values: of every key, [L, 1, T, G, H].
      gates, filing: [L, N, K, K], 0 or 1, and [L, G].
      off: largest difference of the attention read here from the model's own at λ=0, [L].
    """

    seen: tables.Seen
    slopes: chex.Array
    values: chex.Array
    gates: chex.Array
    filing: chex.Array
    off: chex.Array


def speaks_of(run: Run) -> bool:
    """Whether T17 says something of a run: heads file keys in two ways, and every gate is open or closed."""
    gates = np.asarray(at_path(run.state.params, GATES))
    return run.settings.model.filings == 2 and bool(np.isin(gates[..., 1:], (0.0, 1.0)).all())


def opened(run: Run) -> Localised:
    """Reads a validation row at λ=0, then every localist layer alone on what it read there, in float32.

    Low-rank deltas weigh λ and would change the inputs of attention: the layers are read without them.
    """
    with jax.enable_x64(False):  # as it was trained
        c = run.settings.model
        tokens, positions, segments = (
            getattr(run.valid[0], name)[:1, :READ] for name in ("tokens", "positions", "segments")
        )
        dial = Dial(0.0).broadcast(1, c.layers, c.heads)
        is_read = lambda module, _: module.name == "attention_norm"  # noqa: E731
        read = partial(run.model.apply, mutable=["intermediates"], capture_intermediates=is_read)
        places = {"positions": positions, "segments": segments}
        out, sown = jax.jit(read)({"params": run.state.params}, tokens, dial, run.state.blocks, **places)
        sown = sown["intermediates"]["localist"]
        states = sown["attention_norm"]["__call__"][0].astype(jnp.float32)
        text = Text(block=out.blocks, positions=jnp.asarray(positions), segments=jnp.asarray(segments))
        gates, filing = at_path(run.state.params, GATES), jnp.round(at_path(run.state.params, FILING))
        one = jax.jit(partial(_layer, dataclasses.replace(c, delta_rank=0)))
        numbers = np.arange(1, 1 + c.layers)[c.router_layer :]
        turned = numbers % c.unturned_every > 0 if c.unturned_every else np.ones_like(numbers)
        layers = [
            one(
                trained.layer_params(run, layer)["attention"], states[layer], text, out.filed, gates[layer],
                filing[layer].astype(int), jnp.asarray(turned[layer], int),
            )
            for layer in range(len(states))
        ]  # fmt: skip
        seen, slopes, values = jax.tree.map(lambda *leaves: np.stack(leaves), *layers)
        own = np.asarray(sown["attention"]["attention"][0]).swapaxes(2, 3)
    off = np.abs(seen.dense - own).max((1, 2, 3, 4))
    found = Localised(
        seen=seen, slopes=slopes, values=values, gates=gates, filing=filing.astype(int), off=off
    )
    return jax.tree.map(_doubled, found)


def _layer(c, params, states, text, filed, gates, filing, turned):
    """One layer: what it sees, the slopes, and the values of its keys."""
    at = tables.placed(text, filed)
    values = jnp.einsum("BTD,DGH->BTGH", states, params["value"]) + params.get("value_bias", 0.0)
    chosen = c, params, states, at
    return (
        tables.see(*chosen, gates, filing, turned),
        tables.slope(*chosen, filing, turned),
        values,
    )


def _doubled(leaf):
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf.astype(np.float64) if leaf.dtype == np.float32 else leaf)

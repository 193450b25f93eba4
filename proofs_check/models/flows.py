"""Who influences whom at λ=1, measured: exact Jacobians and other states, on small stacks and on trained runs (T16)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from operator import itemgetter

import chex
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from localist_jax.locality import Dial
from localist_jax.locality import reach as flow
from localist_jax.model import Transformer, forward
from localist_jax.model.layers import Norm
from localist_jax.report import figures
from localist_jax.training.run import Run
from localist_jax.training.state import GATES, at_path
from localist_jax.types import struct
from proofs_check.models import stacks
from proofs_check.models.stacks import Text
from proofs_check.theorem import Claim, at_most, equal

READ = 64  # positions of a trained model's text
LOGITS = 1e-3  # float32: the layers one by one against the scanned model


def certified(gates, text: Text, window: int) -> jax.Array:
    """reach [B, T, T] of one stack's texts."""
    return flow.reach(flow.open_pairs(gates, text.block, text.positions, text.segments, window))


def certified_by_blocks(gates, active, background, text: Text) -> jax.Array:
    """Return whether position i may depend on j ≠ i, spread over the positions of these texts, [B, T, T]."""
    relay = flow.block_reach(gates, active, background)
    return relay[text.block[:, :, None], text.block[:, None, :]]


def earlier(text: Text) -> jax.Array:
    """The causal pairs j < i of one segment, [..., T, T]."""
    same = text.segments[..., :, None] == text.segments[..., None, :]
    return same & (text.positions[..., :, None] > text.positions[..., None, :])


def influence(outputs: Callable, states, reached) -> tuple[jax.Array, jax.Array]:
    """The size of each Jacobian block of one stack, and how far other states move what they should not.

    Args:
      outputs: states [B, T, D] → outputs [B, T, D].
      states: where the Jacobian is taken.
      reached: bool [B, T, T]; the states that do not reach i are replaced to see whether i moves.

    Returns:
      [B, T, T]: largest entry of the derivative of a fixed combination of i's channels by j's; [B, T]: largest
      change of i's channels.
    """
    mix, plain, other = 1 + jnp.cos(jnp.arange(states.shape[-1])), outputs(states), 20 * jnp.cos(9 * states)

    def query(i):
        slope = jax.grad(lambda x: (outputs(x)[:, i] * mix).sum())(states)
        replaced = outputs(jnp.where(reached[:, i, :, None], states, other))
        return jnp.abs(slope).max(-1), jnp.abs(replaced - plain)[:, i].max(-1)

    slopes, moved = jax.lax.map(query, jnp.arange(states.shape[1]))
    return slopes.swapaxes(0, 1), moved.swapaxes(0, 1)


@struct
class Trained:
    """A trained run's localist layers on the opening of a validation row, as NumPy arrays.

    Attributes:
      text: its blocks as the model's own router assigned them, [1, T].
      reached, slopes, moved: as in `influence`, [1, T, T] and [1, T].
      by_blocks: what holds for all texts, bool [1, T, T]; says something about window 1 only.
      off: largest difference of the logits read here, layer by layer, from the model's own.
    """

    text: Text
    reached: chex.Array
    slopes: chex.Array
    moved: chex.Array
    by_blocks: chex.Array
    off: chex.Array


def trained(run: Run, window: int, depth: int) -> Trained:
    """Measures the last `depth` layers of a run at λ=1 with this window, in the arithmetic it was trained in.

    With all localist layers the states are those of the router; with fewer, those before the first of them.
    """
    with jax.enable_x64(False):
        c = dataclasses.replace(run.settings.model, window=window)
        params, batch = run.state.params, run.valid[0]
        tokens, positions, segments = (x[:1, :READ] for x in (batch.tokens, batch.positions, batch.segments))
        dial = Dial(1.0).broadcast(1, c.layers, c.heads)
        model = Transformer(c, run.tokenizer.vocab_size)
        out = jax.jit(partial(forward, model))(
            params, tokens, dial, run.state.blocks, positions=positions, segments=segments
        )
        beta = jnp.moveaxis(dial.beta, 1, 0)
        text = Text(
            block=out.blocks, positions=jnp.asarray(positions), segments=jnp.asarray(segments),
            parent=run.state.blocks.parent,
        )  # fmt: skip
        sinks = dataclasses.replace(text, block=jnp.where(text.positions == 0, 0, 1))
        states = params["embedding"][tokens].astype(c.dtype)
        states = stacks.read(c, params["perception"], beta[: c.router_layer], states, sinks, False)
        cut = c.layers - c.router_layer - depth
        above = params["localist"], beta[c.router_layer :]
        below = jax.tree.map(itemgetter(slice(cut)), above)
        above = jax.tree.map(itemgetter(slice(cut, None)), above)
        states = stacks.read(c, below[0], below[1], states, text)
        outputs = jax.jit(partial(stacks.read, c, above[0], above[1], text=text))
        normed = Norm(c.norm_eps).apply({"params": params["final_norm"]}, outputs(states))
        gates = at_path(params, GATES)[cut:]
        reached = certified(gates, text, window)
        slopes, moved = jax.jit(partial(influence, outputs))(states, reached)
        by_blocks = certified_by_blocks(gates, run.state.blocks.active, c.background, text)
        off = jnp.abs(normed @ params["embedding"].T - out.logits).max()
        found = Trained(text=text, reached=reached, slopes=slopes, moved=moved, by_blocks=by_blocks, off=off)
        return jax.tree.map(np.asarray, found)


def certificate(run: Run) -> tuple[dict[str, Claim], Figure]:
    """(a) on a validation text of a trained run, for the last layer, the last two, all; (c) with window 1."""
    c, found, panels = run.settings.model, {}, {}
    layers = c.layers - c.router_layer
    settings = [(c.window, depth) for depth in sorted({1, min(2, layers), layers})]
    for window, depth in settings + [(1, layers)] * (c.window > 1):
        seen, name = trained(run, window, depth), f"window {window}, {_layers(depth, layers)}"
        pairs, slopes = np.asarray(earlier(seen.text))[0], seen.slopes[0]
        free = pairs & ~seen.reached[0]
        some = free.any(-1)
        found[f"a: Jacobian, {name}"] = equal(np.where(free, slopes, 0.0).max(-1), 0.0, some)
        found[f"a: other states, {name}"] = equal(seen.moved[0], 0.0, some)
        panels[f"this text, {name}"] = seen.reached[0], slopes, pairs
    apart = pairs & ~seen.by_blocks[0]
    some = apart.any(-1)
    found["c: Jacobian, all texts"] = equal(np.where(apart, slopes, 0.0).max(-1), 0.0, some)
    found["c: not above (a)"] = at_most((apart & seen.reached[0]).sum(-1), 0, some)
    found["the layers are the model's"] = at_most(seen.off[None], LOGITS)
    panels[f"all texts, window 1, {_layers(layers, layers)}"] = seen.by_blocks[0], slopes, pairs
    return found, draw(panels)


def _layers(depth, of):
    return f"all {of} localist layers" if depth == of else f"last {depth}" if depth > 1 else "last layer"


def draw(panels: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Per panel (reached, slopes, causal pairs) [T, T]: influence where it is, and what is certified to be without."""
    with matplotlib.rc_context({**figures.STYLE, "axes.grid": False}):
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(3.9 * columns, 3.7 * rows), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes, (name, (reached, slopes, causal)) in zip(grid, panels.items(), strict=False):
            free, some = causal & ~reached, causal & reached & (slopes > 0)
            image = axes.imshow(np.where(some, np.log10(np.where(some, slopes, 1)), np.nan), cmap="magma_r")
            axes.imshow(np.where(free, 1.0, np.nan), cmap=ListedColormap([figures.GREEN]), alpha=0.35)
            share = free.sum() / max(1, causal.sum())
            axes.set_title(f"{name}\n{share:.0%} of the pairs certified independent")
            axes.set_xlabel("state of position j")
            axes.set_ylabel("output at position i")
            label = "log₁₀ |∂ output / ∂ state|; green: certified 0, white: 0"
            figure.colorbar(image, ax=axes, shrink=0.75, label=label)
        return figure

"""T6 on a trained run, measured and not claimed: stochastic steps do not come to rest, so how near are its gates?"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from localist_jax import bits
from localist_jax.locality import pricing
from localist_jax.model import forward
from localist_jax.report import figures
from localist_jax.training.dials import training_dial
from localist_jax.training.run import Run
from localist_jax.training.state import GATES, at_path, with_leaf
from proofs_check.theorem import Claim

DRAWS = 8  # dials drawn as in training, each on a validation batch
LOWEST = 1e-3  # pulls below this part of the price, negative ones included, are drawn there


def measured(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gates, pulls −∂L/∂A and prices [L, N, K, K]; prices are NaN where no pair asks the gate.

    L is the code length of validation text in nats per token, its mean over training's dials.
    """
    with jax.enable_x64(False):
        c, params, state = run.settings.model, run.state.params, run.state

        def nats(gates, batch, dial):
            out = forward(
                run.model, with_leaf(params, GATES, gates), batch.tokens, dial, state.blocks,
                positions=batch.positions, segments=batch.segments,
            )  # fmt: skip
            code = jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0).sum()
            return bits.to_nats(code) / batch.scored.sum()

        slope, gates = jax.jit(jax.grad(nats)), at_path(params, GATES)
        drawn = [training_dial(jax.random.key(i), run.settings.dial, 1.0, c.layers) for i in range(DRAWS)]
        total = sum(slope(gates, run.valid[i % len(run.valid)], dial) for i, dial in enumerate(drawn))
        weight = pricing.weights(state.pricing.pairs, run.settings.model.blocks)
        price = jnp.where(state.pricing.pairs > 0, state.pricing.price * weight, jnp.nan)
        found = gates, -total / DRAWS, jnp.broadcast_to(price, gates.shape)
        return tuple(np.asarray(x, np.float64) for x in found)  # type: ignore[return-value]


def certificate(run: Run) -> tuple[dict[str, Claim], Figure]:
    """No claim; the pull of every gate over its price, by whether the gate is closed, between or open."""
    gates, pull, price = measured(run)
    asked = price > 0
    kinds = {
        "closed, A = 0": (gates == 0, "below", figures.BLUE),
        "between": ((gates > 0) & (gates < 1), "above", figures.PURPLE),
        "open, A = 1": (gates == 1, "above", figures.ORANGE),
    }
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(8.0, 3.0), layout="constrained")
        axes = figure.subplots()
        bins = np.geomspace(LOWEST, 1 / LOWEST, 49).tolist()
        for name, (where, side, colour) in kinds.items():
            ratio = pull[where & asked] / price[where & asked]
            share = np.mean(ratio < 1 if side == "below" else ratio > 1) if ratio.size else np.nan
            label = f"{name}: {ratio.size} gates, {share:.0%} pulled {side} their price"
            axes.hist(np.clip(ratio, bins[0], bins[-1]), bins=bins, color=colour, alpha=0.6, label=label)
        axes.axvline(1.0, color=figures.INK, lw=0.8, ls="--")
        axes.set_xscale("log")
        axes.set_xlabel("pull −∂L/∂A of a gate over its price; none and negative at the left end")
        axes.set_title(f"gates of {run.workdir.name} after training, on validation text at training's dials")
        axes.legend()
        return {}, figure

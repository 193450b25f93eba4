"""Trained runs opened up: one localist layer at a time, on real text and on inputs that an adversary chooses."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from matplotlib.figure import Figure

from localist_jax.locality import Dial, certificates
from localist_jax.locality import gates as gating
from localist_jax.model.layers import Attention, Placement
from localist_jax.report import collect, figures
from localist_jax.training.run import Run
from localist_jax.types import PyTree
from proofs_check.theorem import Claim, at_least

TOKENS, STEPS, RATE = 64, 400, 0.05  # text length; the adversary's Adam
PROMISED = 0.95  # fidelity that `Dial.for_fidelity` is asked for
FLOAT32 = 1e-6  # rounding of a sum of attention weights as the model computes it
DIALS = (0.99, 0.9999)  # settings certified beside it


def layer_params(run: Run, layer: int) -> PyTree:
    """Parameters of one localist layer (counted from 0 behind the router), unstacked from the scan."""
    return jax.tree.map(lambda leaf: leaf[layer], run.state.params["localist"])


def placement(block: jax.Array, positions: jax.Array) -> Placement:
    """Where the T positions of one segment stand, for a batch with the same blocks."""
    segments = jnp.ones_like(positions)
    return Placement(
        block=block, positions=positions, segments=segments,
        k_block=block, k_positions=positions, k_segments=segments,
    )  # fmt: skip


def fidelity_certificate(run: Run) -> tuple[dict[str, Claim], Figure]:
    """T5 on a trained model: guaranteed fidelity of every head against the least on text and the least an attack finds.

    The guarantee holds for all inputs; the attack moves the layer's input states freely and keeps the blocks, at
    the query with the most irrelevant keys per relevant one.
    """
    with jax.enable_x64(False):  # as it was trained
        c = run.settings.model
        text = collect.opening(run, TOKENS)
        blocks = np.asarray(collect.reading(run, text, Dial(0.0))[0].blocks[0])
        attention = run.state.params["localist"]["attention"]
        q_gain, k_gain = (np.asarray(attention[f"{side}_norm"]["gain"]) for side in ("query", "key"))
        S = np.repeat(certificates.logit_bound(q_gain, k_gain, c.dtype)[:, None], c.heads, 1)
        b, u = _counts(np.asarray(attention["gates"]), blocks, c.window)
        worst = (u / b).argmax(-1)
        promised = Dial.for_fidelity(1 - PROMISED, S, _at(b, worst), _at(u, worst))
        settings = {f"λ = {x:g}": Dial(x) for x in DIALS} | {f"dial for F ≥ {PROMISED:g}": promised}
        found = {name: _read(run, text, dial, b, u, S, blocks, worst) for name, dial in settings.items()}
    claims = {}
    for name, (guaranteed, real, attacked) in found.items():
        claims[f"on text, {name}"] = at_least(real.ravel(), guaranteed.ravel() - FLOAT32)
        claims[f"attacked, {name}"] = at_least(attacked.ravel(), _at(guaranteed, worst).ravel() - FLOAT32)
    return claims, _draw(found, worst, c.router_layer)


def _counts(gates: np.ndarray, blocks: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """b, the sum of the gates over R (T5: graded gates), and u of every query, [L, N, T]."""
    acting = np.asarray(gating.with_open_column(jnp.asarray(gates)), float)[
        :, :, blocks[:, None], blocks[None, :]
    ]
    gap = np.arange(blocks.size)[:, None] - np.arange(blocks.size)
    acting = np.where(gap < window, 1.0, acting) * (gap >= 0)
    return acting.sum(-1), ((acting == 0) & (gap >= 0)).sum(-1)


def _read(run: Run, text: str, dial: Dial, b, u, S, blocks, worst):
    """Guaranteed and measured fidelity [L, N, T], and the least that the attack found [L, N]."""
    c = run.settings.model
    beta = np.asarray(dial.broadcast(1, *S.shape).beta)[0]
    guaranteed = certificates.fidelity_bound(beta[..., None], -2 * S[..., None], b, u)
    below = np.zeros((c.router_layer, c.heads))  # perception stays distributed
    out, _, _ = collect.reading(run, text, Dial.from_log_odds(np.concatenate([below, beta])[None]))
    assert out.stats is not None
    real = np.asarray(out.stats.fidelity)[c.router_layer :, 0]
    attacked = np.stack(
        [_attack(run, layer, beta[layer], blocks, worst[layer]) for layer in range(len(beta))]
    )
    return guaranteed, real, attacked


def _attack(run: Run, layer: int, beta: np.ndarray, blocks: np.ndarray, worst: np.ndarray) -> np.ndarray:
    """Least fidelity per head that Adam finds over the layer's inputs: one copy of the text for each head."""
    c, N = run.settings.model, len(beta)
    shape = (N, blocks.size)
    at = placement(jnp.broadcast_to(blocks, shape), jnp.broadcast_to(jnp.arange(blocks.size), shape))
    start = jax.random.normal(jax.random.key(layer), (*shape, c.width))
    params = {"params": layer_params(run, layer)["attention"]}
    return np.asarray(
        _descend(Attention(c, True, "open"), params, start, jnp.asarray(beta), at, jnp.asarray(worst))
    )


@partial(jax.jit, static_argnums=0)
def _descend(
    module: Attention, params: PyTree, start: jax.Array, beta: jax.Array, at: Placement, worst: jax.Array
):
    N = beta.size
    tx = optax.adam(RATE)

    def leaked(x):
        stats: Any = module.apply(params, x, jnp.broadcast_to(beta, (N, N)), at, None)[1]
        fidelity = stats.fidelity[jnp.arange(N), jnp.arange(N), worst]
        return -jnp.log(1 - fidelity + FLOAT32).sum(), fidelity

    def step(carry, _):
        x, state, least = carry
        (_, fidelity), slope = jax.value_and_grad(leaked, has_aux=True)(x)
        updates, state = tx.update(slope, state)
        return (optax.apply_updates(x, updates), state, jnp.minimum(least, fidelity)), None

    return jax.lax.scan(step, (start, tx.init(start), jnp.ones(N)), length=STEPS)[0][2]


def _at(values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """[L, N, T] at one query per head, [L, N]."""
    return np.take_along_axis(values, query[..., None], -1)[..., 0]


def _draw(found, worst, first: int) -> Figure:
    """Per head: guaranteed for all inputs, least under attack, least on text."""
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(10.5, 2.9), layout="constrained")
        panels = figure.subplots(1, len(found), sharey=True)
        for axes, (name, (guaranteed, real, attacked)) in zip(panels, found.items(), strict=True):
            L, N = attacked.shape
            x = np.arange(L * N)
            axes.plot(x, real.min(-1).ravel(), "o", ms=4, color=figures.GREEN, label="least on held-out text")
            axes.plot(x, attacked.ravel(), "x", ms=5, color=figures.RED, label="least found by attack")
            axes.plot(
                x, _at(guaranteed, worst).ravel(), "_", ms=11, mew=2, color=figures.INK, label="guaranteed"
            )
            axes.set_xticks(x, [f"{first + i // N}.{i % N}" for i in x], fontsize=6.5, rotation=60)
            axes.set_title(f"pointer fidelity, {name}")
            axes.set_xlabel("layer.head")
            axes.set_ylim(-0.03, 1.03)
        panels[0].legend(loc="center right")
        return figure

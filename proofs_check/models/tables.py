"""Attention layers whose gates are open or closed, and what the library reads off them: the instances of T17.

One layer at a time, its inputs held fixed: the mass tables, the slope of Σ lse, the attention at λ=0 and λ=1.
"""

from __future__ import annotations

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from localist_jax import config
from localist_jax.locality import reach
from localist_jax.model.layers import Attention, Placement
from localist_jax.types import PyTree, struct
from proofs_check.models.stacks import Text
from proofs_check.theorem import pick

TEXTS, POSITIONS, VALUE = 2, 12, 3  # of a layer; size of a value
MODEL = config.Model(
    layers=2, width=8, heads=4, kv_heads=2, head_size=4, router_layer=1, blocks=4, block_capacity=4, block_units=0,
    filings=2, window=2, dtype="float64",
)  # fmt: skip


@struct
class Layers:
    """n layers with binary gates, each with B texts.

    Attributes:
      params: of `Attention`, leaves [n, …]; what its gates and filing hold is not read.
      states: what the layer reads, [n, B, T, D].
      text: where the positions stand.
      gates: bool [n, N, K, K].
      filing: int [n, G]; 0 or 1.
      values: v of every key, [n, B, T, G, V]; whatever the projections would make of the states.
    """

    params: PyTree
    states: chex.Array
    text: Text
    gates: chex.Array
    filing: chex.Array
    values: chex.Array


@struct
class Seen:
    """The results of one layer on its texts.

    Attributes:
      table: the library's attention mass by filing, head, query block, key block at λ=0, [F, N, K, K].
      dense, local: attention α at λ=0 and at λ=1, [B, N, T, S].
      price: the library's price of locality at λ=1, bits [B, N, T].
      visible, closed: bool [B, N, T, S], pairs that a query sees, and those of them that its gates close at λ=1.
    """

    table: chex.Array
    dense: chex.Array
    local: chex.Array
    price: chex.Array
    visible: chex.Array
    closed: chex.Array


@struct
class Effect:
    """The effects of closing gates on outputs, [B, N, T] each.

    Attributes:
      moved: ‖o(1) − o(0)‖.
      lost, kept: ε and 1 − ε, the mass at λ=0 on closed keys and on the others.
      apart: ‖o^R − o^U‖, between the averages over the keys that stay and those that go; 0 where one has no mass.
      diameter: of the values that the query sees.
    """

    moved: chex.Array
    lost: chex.Array
    kept: chex.Array
    apart: chex.Array
    diameter: chex.Array


def sample(key: jax.Array, n: int) -> Layers:
    """Sharp and flat heads; rows that are packed, padded, or both; gates that are closed, open, or either."""
    keys = jax.random.split(key, 6)
    c, B, T, K = MODEL, TEXTS, POSITIONS, MODEL.block_capacity
    u = jax.random.uniform(keys[0], (2, n, B, T))
    at = jnp.arange(T)
    starts = ((u[0] < 0.2) & (u[1, ..., :1] < 0.5)).at[..., 0].set(True)
    begun = starts[..., None, :] & (at <= at[:, None])  # [i, j]: a segment begins at j, not after i
    positions = at - jnp.where(begun, at, 0).max(-1)
    segments = jnp.where((at >= T - 2) & (u[1, ..., 1:2] < 0.3), 0, begun.sum(-1))
    block = jnp.where(positions == 0, 0, 1 + jnp.floor((K - 1) * u[1]).astype(int))
    gates = jax.random.uniform(keys[1], (n, c.heads, K, K))
    drawn = jax.random.normal(keys[2], (n, B * T * (c.width + c.kv_heads * VALUE)))
    states, values = jnp.split(drawn, [B * T * c.width], 1)
    return Layers(
        params=_parameters(keys[3], n), states=3 * states.reshape(n, B, T, c.width),
        text=Text(block=block, positions=positions, segments=segments),
        gates=gates < pick(keys[4], n, (jnp.full(n, 0.5), jnp.zeros(n), jnp.full(n, 0.9)))[:, None, None, None],
        filing=jax.random.randint(keys[5], (n, c.kv_heads), 0, c.filings),
        values=values.reshape(n, B, T, c.kv_heads, VALUE),
    )  # fmt: skip


def _parameters(key, n) -> PyTree:
    """Return parameters of `Attention`: normal weights, query gains from 0.1 to 10, and an output matrix of 0."""
    c = MODEL
    query, keys = (c.width, c.heads, c.head_size), (c.width, c.kv_heads, c.head_size)
    sizes = math.prod(query), math.prod(keys)
    drawn = jax.random.normal(key, (n, sum(sizes) + 1))
    wq, wk, sharp = jnp.split(drawn, [sizes[0], sum(sizes)], 1)
    gain = jnp.ones((n, c.head_size))
    return {
        "query": 0.4 * wq.reshape(n, *query), "key": 0.4 * wk.reshape(n, *keys), "value": jnp.zeros((n, *keys)),
        "out": jnp.zeros((n, c.heads, c.head_size, c.width)), "query_norm": {"gain": gain * 10 ** jnp.tanh(sharp)},
        "key_norm": {"gain": gain},
    }  # fmt: skip


def read(layer: Layers) -> tuple[Seen, jax.Array]:
    """One layer: what it makes of its texts, and the slope of Σ lse by filing.

    Returns:
      `Seen`; ∂(Σ lse)/∂ ln ω [2, N, K, K] with keys under their own blocks, and as the layer files them.
    """
    at = placed(layer.text, filed(layer.text))
    seen = see(MODEL, layer.params, layer.states, at, layer.gates, layer.filing)
    filings = jnp.stack([jnp.zeros_like(layer.filing), layer.filing])
    return seen, jax.vmap(lambda f: slope(MODEL, layer.params, layer.states, at, f))(filings)


def placed(text: Text, filed) -> Placement:
    """Queries under their own blocks, keys under those of each filing [B, F, T]."""
    positions, segments = (jnp.broadcast_to(x[:, None], filed.shape) for x in (text.positions, text.segments))
    return Placement(
        block=text.block, positions=text.positions, segments=text.segments,
        k_block=filed, k_positions=positions, k_segments=segments,
    )  # fmt: skip


def filed(text: Text) -> jax.Array:
    """Blocks of the keys, [B, F, T]: their own; that of the position before, but the sink's for the sink."""
    before = jnp.pad(text.block[:, :-1], ((0, 0), (1, 0)))
    return jnp.stack([text.block, jnp.where(text.positions == 0, 0, before)], 1)


def heads_of(filing, heads: int) -> jax.Array:
    """The filing that each query head goes by, [N]."""
    return jnp.repeat(filing, heads // filing.shape[-1])


def see(c: config.Model, params: PyTree, states, at: Placement, gates, filing, turned=None) -> Seen:
    """Runs the library's `Attention` on one layer's inputs at both ends of the dial."""
    gates = gates.astype(float)
    params = _with(params, gates, filing)
    _, sown = _attend(c, params, states, at, 0.0, turned, sow=("mass", "intermediates"))
    (_, stats, _), at_one = _attend(c, params, states, at, jnp.inf, turned, "dense", ("intermediates",))
    to_heads = lambda x: x[0].transpose(0, 2, 1, 3)  # noqa: E731
    where = at.block, at.positions, at.segments, c.window, at.k_block
    ways = heads_of(filing, c.heads)[:, None]
    # Heads in place of layers: of one head each, so that nothing is joined.
    alone = [reach.open_pairs(g[:, None], *where, ways).swapaxes(0, 1) for g in (jnp.ones_like(gates), gates)]
    return Seen(
        table=sown["mass"]["beyond"][0], dense=to_heads(sown["intermediates"]["attention"]),
        local=to_heads(at_one["intermediates"]["attention"]), price=stats.price_bits,
        visible=alone[0], closed=alone[0] & ~alone[1],
    )  # fmt: skip


def slope(c: config.Model, params: PyTree, states, at: Placement, filing, turned=None) -> jax.Array:
    """∂(Σ_i lse_i)/∂ ln ω at ω=1 through the library's attention, by head and gate, [N, K, K].

    At λ=1 the odds are the gates themselves, so that at open gates ∂/∂A is ∂/∂ ln ω; column 0 is open for good.
    """

    def total(gates):
        (_, stats, _), _ = _attend(c, _with(params, gates, filing), states, at, jnp.inf, turned, "lse")
        return jnp.where(jnp.isfinite(stats.lse), stats.lse, 0.0).sum()

    return jax.grad(total)(jnp.ones((c.heads, c.block_capacity, c.block_capacity), states.dtype))


def _with(params, gates, filing):
    return {**params, "gates": gates, "filing": filing.astype(float)}


def _attend(c, params, states, at, beta, turned, stats: Any = "none", sow=()):
    beta = jnp.full((states.shape[0], c.heads), beta, states.dtype)
    module = Attention(c, True, stats)
    return module.apply({"params": params}, states, beta, at, None, None, turned, mutable=list(sow))


def effect(seen: Seen, values) -> Effect:
    """Outputs before and after, for values [B, S, G, V] of the keys.

    Args:
      seen: one layer.
      values: of each key/value head.
    """
    group = seen.dense.shape[1] // values.shape[2]
    v = jnp.repeat(values, group, 2)
    read = lambda alpha: jnp.einsum("BNTS,BSNV->BNTV", alpha, v)  # noqa: E731
    parts = [jnp.where(keys, seen.dense, 0.0) for keys in (~seen.closed, seen.closed)]
    kept, lost = (part.sum(-1) for part in parts)
    mean = [
        read(part / jnp.where(m > 0, m, 1.0)[..., None]) for part, m in zip(parts, (kept, lost), strict=True)
    ]
    both = ((kept > 0) & (lost > 0))[..., None]
    gaps = _length(values[:, :, None] - values[:, None]).transpose(0, 3, 1, 2)  # [B, G, S, S]
    some = seen.visible[:, ::group, :, :, None] & seen.visible[:, ::group, :, None]
    widest = jnp.where(some, gaps[:, :, None], 0.0).max((-1, -2))
    return Effect(
        moved=_length(read(seen.local) - read(seen.dense)), lost=lost, kept=kept,
        apart=_length(jnp.where(both, mean[0] - mean[1], 0.0)), diameter=jnp.repeat(widest, group, 1),
    )  # fmt: skip


def _length(x):
    return optax.safe_norm(x, 0.0, axis=-1)


def own_table(table, filing) -> jax.Array:
    """The mass of every head under the filing that it goes by, [N, K, K]."""
    heads = table.shape[1]
    return table[heads_of(filing, heads), np.arange(heads)]


def closed_mass(table, gates, filing) -> jax.Array:
    """Return the mass that a table has behind closed gates, by head, [N]; column 0 is never closed."""
    return jnp.where(gates > 0, 0.0, own_table(table, filing))[..., 1:].sum((-1, -2))

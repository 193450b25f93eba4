"""Small localist stacks and the texts they read, in float64: the instances of T15 and T16.

The layers are the library's own; what the router would decide, the block ids, is given. Stacks are mapped one
after the other (grouped matmuls cannot be batched over their weights), the texts of one stack are its batch.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import config
from localist_jax.model.layers import Layer, Placement, with_units
from localist_jax.types import Numeric, PyTree, struct
from proofs_check.theorem import pick

LAYERS, TEXTS, POSITIONS = 3, 8, 12
MODEL = config.Model(
    layers=LAYERS + 1, width=8, heads=4, kv_heads=2, head_size=4, feed_forward=8, router_layer=1, blocks=4,
    block_capacity=5, block_units=4, generations=2, window=1, dtype="float64",
)  # fmt: skip
BLOCKS, CAPACITY, HEADS = MODEL.blocks, MODEL.block_capacity, MODEL.heads


@struct
class Text:
    """The placement of some texts in the layers: int [n, B, T] each, as in `Placement`.

    Attributes:
      parent: int [n, K], of each block; None where all are roots.
    """

    block: chex.Array
    positions: chex.Array
    segments: chex.Array
    parent: chex.Array | None = None


@struct
class Stack:
    """n stacks of L localist layers, each with B texts.

    Attributes:
      params: of the layers, leaves [n, L, …].
      beta: log-odds of the dial, [n, L, B, N].
      states: what the first layer reads, [n, B, T, D].
      text: where the positions stand.
      background: bool [n]; whether block 0 holds more than the sinks.
    """

    params: PyTree
    beta: chex.Array
    states: chex.Array
    text: Text
    background: chex.Array

    @property
    def gates(self) -> jax.Array:
        """A [n, L, N, K, K]."""
        return self.params["attention"]["gates"]

    def replace(self, **changes) -> Stack:
        """The same stacks with some fields changed."""
        return dataclasses.replace(self, **changes)


def read(model: config.Model, params: PyTree, beta, states, text: Text, localist: bool = True) -> jax.Array:
    """One stack (leaves [L, …]) reads [B, T, D]: the last layer's outputs, by the library's `Layer`."""
    at, layer = _place(text, model), Layer(model, localist)

    def step(x, one):
        return layer.apply({"params": one[0]}, x, (one[1], None, None, None), at)[0], None

    return jax.lax.scan(step, states, (params, beta))[0]


def outputs(stack: Stack, window: int = 1) -> jax.Array:
    """Outputs of every stack, [n, B, T, D]."""
    model = dataclasses.replace(MODEL, window=window)
    return jax.lax.map(lambda one: read(model, one.params, one.beta, one.states, one.text), stack)


@partial(jax.jit, static_argnums=1)
def sample(key: jax.Array, n: int, open_share: Numeric = 0.5) -> Stack:
    """Sharp and flat heads, gates that are 0, 1 or between, packed and padded texts, any dial per text and head."""
    keys = jax.random.split(key, 6)
    text, background = _texts(keys[0], n)
    params = _parameters(keys[1], n)
    u, chance = jax.random.uniform(keys[2], (2, *params["attention"]["gates"].shape))
    opened = chance < open_share
    gates = pick(keys[3], n, (u * opened, 1.0 * opened, u**20 * opened))
    v = jax.random.uniform(keys[4], (2, n, LAYERS, TEXTS, HEADS), minval=1e-12)
    beta = jnp.where(v[1] < 0.25, 0.0, jnp.where(v[1] < 0.5, jnp.inf, -jnp.log(v[0])))
    return Stack(
        params={**params, "attention": {**params["attention"], "gates": gates}}, beta=beta, text=text,
        states=3 * jax.random.normal(keys[5], (n, TEXTS, POSITIONS, MODEL.width)), background=background,
    )  # fmt: skip


def sharpened(stack: Stack) -> Stack:
    """The same stacks with logits of hundreds of nats, gates next to 0 and dials next to 1."""
    attention = stack.params["attention"]
    gain = {"gain": 30 * attention["query_norm"]["gain"]}
    attention = {**attention, "gates": stack.gates**9, "query_norm": gain}
    return stack.replace(params={**stack.params, "attention": attention}, beta=9 * stack.beta)


def _parameters(key, n) -> PyTree:
    """Normal weights and gains of the library's shapes, [n, L, …]; query gains from 0.1 to 10."""
    abstract = jax.eval_shape(_init, key)
    leaves = jax.tree.leaves(abstract)
    sizes = [leaf.size for leaf in leaves]
    drawn = jax.random.normal(key, (n, LAYERS, sum(sizes) + 1))
    parts = jnp.split(drawn, list(np.cumsum(sizes)), axis=2)
    shaped = [part.reshape(n, LAYERS, *leaf.shape) for part, leaf in zip(parts, leaves, strict=False)]
    params = jax.tree.unflatten(jax.tree.structure(abstract), shaped)
    params = jax.tree.map(lambda leaf: 1 + 0.2 * leaf if leaf.ndim == 3 else 0.4 * leaf, params)
    params["attention"]["query_norm"]["gain"] *= 10.0 ** jnp.tanh(parts[-1])
    return params


def _init(key):
    x, one = jnp.zeros((1, 1, MODEL.width)), jnp.zeros((1, 1), int)
    at = _place(Text(block=one, positions=one, segments=one), MODEL)
    layer = Layer(MODEL, localist=True)
    return nn.unbox(layer.init(key, x, (jnp.zeros((1, HEADS)), None, None, None), at))["params"]


def _place(text: Text, model: config.Model) -> Placement:
    at = Placement(
        block=text.block, positions=text.positions, segments=text.segments,
        k_block=text.block, k_positions=text.positions, k_segments=text.segments,
    )  # fmt: skip
    parent = jnp.arange(model.block_capacity) if text.parent is None else text.parent
    return with_units(at, parent, model.generations)


def _texts(key, n) -> tuple[Text, jax.Array]:
    """One to several segments, some padding at the end; block 0 holds the sinks, or background too."""
    u = jax.random.uniform(key, (2, n, TEXTS, POSITIONS + 1))
    at = jnp.arange(POSITIONS)
    packed, padded, background = u[0, ..., -1:] < 0.5, u[1, ..., -1:] < 0.3, u[0, :, 0, 0] < 0.3
    starts = (packed & (u[0, ..., :-1] < 0.2)).at[..., 0].set(True)
    begin = jax.lax.cummax(jnp.where(starts, at, 0), axis=2)
    segments = jnp.where(padded & (at >= POSITIONS - 2), 0, jnp.cumsum(starts, 2))
    first = jnp.where(background, 0, 1)[:, None, None]
    block = first + jnp.floor(u[1, ..., :-1] * (BLOCKS - first)).astype(int)
    positions = at - begin
    return Text(block=jnp.where(positions == 0, 0, block), positions=positions, segments=segments), background

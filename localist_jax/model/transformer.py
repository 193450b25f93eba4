"""The localist transformer: perception layers, one semantic router, localist layers.

It is of the Llama/Qwen3 family (RMSNorm, rotary positions, grouped-query attention, optional QK-norm, SwiGLU, tied or
untied embeddings), with a router that assigns every position a block, and attention that a dial moves from distributed
to localist. It is used functionally: `init` returns a parameter pytree, `apply` takes it.
"""

from __future__ import annotations

import dataclasses
import operator
from functools import partial
from typing import Any, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from localist_jax import config
from localist_jax.attention import AttentionStats
from localist_jax.attention.stats import Stats
from localist_jax.locality import anchors, router, steering
from localist_jax.locality.anchors import Blocks
from localist_jax.locality.dial import Dial
from localist_jax.locality.steering import Steering
from localist_jax.model.cache import Cache
from localist_jax.model.layers import Layer, Norm, Placement, looked_up, parameter, weight, with_units
from localist_jax.types import struct, widened

STACKS = ("perception", "localist")  # names of the two stacks of layers
FIRST_CONFIDENCE = (
    3.0  # standard deviation of the router's initial logits, large enough for stable random blocks
)


@struct
class Output:
    """The results of the model.

    Attributes:
      logits: float32 [B, T, V], or [B, P, V] if only P positions were requested.
      blocks: int32 [B, T]; the semantic block of each position.
      filed: int32 [B, F, T]; the block of each position's key, by filing: its own block; and, with two filings, the
        router's block of the position before it (sinks stay in block 0).
      block_probs: float32 [B, T, K]; the router's probabilities, without noise.
      states: [B, T, D]; the normalised states that the router reads.
      stats: attention statistics with a leading layer axis, [L, B, N, T]; None unless requested.
      cache: the given cache with these tokens added, if one was given.
    """

    logits: chex.Array
    blocks: chex.Array
    filed: chex.Array
    block_probs: chex.Array
    states: chex.Array
    stats: AttentionStats | None = None
    cache: Cache | None = None


class Router(nn.Module):
    """The router's logits of each position in nats: W_r·norm(h) + b, plus the anchors' log-odds.

    With `router_cells` these are logits of cells, and a block has the logit of its best cell.
    """

    config: config.Model

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tokens: Int[Array, "B T"], blocks: Blocks):
        """Return logits [B, T, K], and the normalised states [B, T, D] that they are linear in."""
        c = self.config
        h = Norm(c.norm_eps, name="norm")(x)
        cells, axis = c.block_capacity, "router_block"
        if c.router_cells:
            cells, axis = c.router_cells, "router_cell"
        w = weight(self, "kernel", (c.width, cells), ("embed", axis), c.width, gain=FIRST_CONFIDENCE)
        logits = widened(h) @ w
        if c.router_bias:
            logits = logits + parameter(self, "bias", nn.initializers.zeros, (cells,), (axis,))
        if c.router_cells:
            block = parameter(self, "block_of_cell", _all_in_block_1, (cells,), (axis,))
            logits = router.best_cell(logits, jnp.round(block).astype(jnp.int32), c.block_capacity)
        return logits + anchors.prior(blocks, tokens), h


def _all_in_block_1(_, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    """Initialise the block of each cell: the sink's cell in block 0, all others in block 1."""
    return jnp.minimum(jnp.arange(shape[0]), 1).astype(dtype)


class Transformer(nn.Module):
    """The language model.

    Attributes:
      config: its sizes.
      vocab_size: V.
      data_shards: shards of the batch axis; localist units process them separately.
      mesh: mesh to split attention over; None leaves that to the compiler.
      unrolled: whether parameters and cache are split by layer, by `unrolled`, instead of stacked.
    """

    config: config.Model
    vocab_size: int
    data_shards: int = 1
    mesh: jax.sharding.Mesh | None = None
    unrolled: bool = False

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        dial: Dial,
        blocks: Blocks,
        *,
        positions: Int[Array, "B T"] | None = None,
        segments: Int[Array, "B T"] | None = None,
        cache: Cache | None = None,
        stats: Stats = "none",
        noise: float = 0.0,
        rules: Steering | None = None,
        read_at: Int[Array, "B P"] | None = None,
        opening: bool = False,
    ) -> Output:
        """Return next-token logits, blocks and statistics.

        Args:
          tokens: ids; the first `config.sink` positions of every segment are the sink (block 0), whatever the tokens.
          dial: traced; broadcastable to [B, L, N].
          blocks: traced; active blocks and their anchors.
          positions, segments: positions and segments of packed rows; default: one segment that fills the row.
          cache: keys and values read so far; the tokens are written at their positions.
          stats: see `attend`.
          noise: scale of the router's Gumbel noise (training; needs the rng stream "router").
          rules: traced; steering of the localist layers by attention rules (inference).
          read_at: indices of the positions whose logits are wanted; None: all.
          opening: whether the cache is empty. The tokens then attend to each other in order, where causality skips half
            of the tiles, and not to the pages that they are written to.

        Raises:
          ValueError: if activations are float64 and JAX has float64 disabled.
        """
        c, (B, T) = self.config, tokens.shape
        if c.dtype == "float64" and not jax.config.read("jax_enable_x64"):
            raise ValueError(
                "config.model.dtype: float64 needs JAX_ENABLE_X64=1; without it JAX computes in float32"
            )
        positions = jnp.broadcast_to(jnp.arange(T), (B, T)) if positions is None else positions
        segments = jnp.ones((B, T), jnp.int32) if segments is None else segments
        beta_LBN = jnp.moveaxis(dial.broadcast(B, c.layers, c.heads).beta, 1, 0)
        sink = positions < c.sink

        init = nn.initializers.normal(0.02)
        embedding = parameter(self, "embedding", init, (self.vocab_size, c.width), ("vocab", "embed"))
        with jax.named_scope("embed"):
            x = looked_up(embedding, tokens, c.dtype, self.mesh)

        placement, cache = _perception_placement(positions, segments, cache, c.sink, opening)
        x, seen = self._stack("perception", False, stats, opening)(
            x, self._inputs(beta_LBN, cache, None, False), placement
        )

        with jax.named_scope("router"):
            logits, states = Router(c, name="router")(x, tokens, blocks)
            allowed = router.allowed_blocks(blocks.active, c.background)
            key = self.make_rng("router") if noise else None
            if c.neighbours:  # a control: each run of positions is a block, nothing is learned
                near = jnp.minimum(1 + positions // c.neighbours, c.blocks - 1)
                logits, key = router.CERTAIN * jax.nn.one_hot(near, c.block_capacity), None
            ids, route, probs = router.assign(logits, allowed, blocks, key=key, noise=noise)
            routed, (ids, route) = ids, router.with_sink(ids, route, sink)

        shards = self.data_shards if B % self.data_shards == 0 else 1
        filed, cache = _filed(ids, routed, sink, positions, segments, cache, c.filings)
        placement, cache = _localist_placement(filed, positions, segments, cache, opening)
        placement = dataclasses.replace(placement, route=route if noise else None)
        if c.block_units:
            placement = with_units(placement, blocks.parent, c.generations, shards)
        if rules is not None:
            placement = _under_rules(placement, rules, c.block_capacity)
        read, written = [seen[0]], [seen[1]]
        if c.layers > c.router_layer:
            x, more = self._stack("localist", True, stats, opening)(
                x, self._inputs(beta_LBN, cache, rules, True), placement
            )
            read.append(more[0])
            written.append(more[1])

        with jax.named_scope("logits"):
            x = Norm(c.norm_eps, name="final_norm")(x if read_at is None else _rows_at(x, read_at))
            shape, axes = embedding.shape, ("vocab", "embed")
            head = embedding if c.tied else weight(self, "head", shape, axes, c.width)
            logits = jnp.einsum(
                "BTD,VD->BTV", x, head.astype(x.dtype), preferred_element_type=widened(x).dtype
            )
        all_stats = jax.tree.map(lambda *parts: jnp.concatenate(parts), *read)
        if cache is not None:
            cache = dataclasses.replace(cache, **dict(zip(STACKS[: len(written)], written, strict=True)))
        return Output(
            logits=logits,
            blocks=ids,
            filed=filed,
            block_probs=probs,
            states=states,
            stats=all_stats,
            cache=cache,
        )

    def _stack(self, name: str, localist: bool, stats: Stats, opening: bool):
        """Return the layers of a stack as one function: scanned, or unrolled with separate parameters."""
        if self.unrolled:
            return partial(self._one_by_one, name, localist, stats, opening)
        return self._scanned(name, localist, stats, opening)

    def _one_by_one(
        self, name: str, localist: bool, stats: Stats, opening: bool, x, inputs, placement: Placement
    ):
        beta, caches, *others = inputs
        read, written = [], []
        for nth, cache in enumerate(caches or [None] * len(beta)):
            layer = Layer(self.config, localist, stats, self.mesh, opening, name=f"{name}_{nth}")
            rules, turned = jax.tree.map(operator.itemgetter(nth), others)
            x, (figures, cache) = layer(x, (beta[nth], cache, rules, turned), placement)
            read.append(figures)
            written.append(cache)
        return x, (
            jax.tree.map(lambda *each: jnp.stack(each), *read),
            None if caches is None else tuple(written),
        )

    def _scanned(self, name: str, localist: bool, stats: Stats, opening: bool):
        """Return scanned layers: one compiled body, with parameters stacked on a leading `layers` axis."""
        c = self.config
        layer = nn.remat(Layer, prevent_cse=False) if c.remat else Layer
        scanned = nn.scan(
            layer,
            variable_axes={"params": 0, "intermediates": 0, "mass": 0, "block_mass": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=c.layers - c.router_layer if localist else c.router_layer,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(c, localist, stats, self.mesh, opening, name=name)

    def _inputs(self, beta_LBN, cache, rules: Steering | None, localist):
        first = self.config.router_layer
        part = slice(first, None) if localist else slice(None, first)
        layers = None if cache is None else cache.localist if localist else cache.perception
        every, turned = self.config.unturned_every, None
        if every:
            turned = (jnp.arange(1, self.config.layers + 1) % every > 0).astype(jnp.int32)[part]
        return beta_LBN[part], layers, None if rules is None else rules.layers(first), turned


def forward(
    model: Transformer, params: PyTree, tokens: Int[Array, "B T"], dial: Dial, blocks: Blocks, **options: Any
) -> Output:
    """Apply the model to these parameters; `options` are those of `Transformer.__call__`, and `rngs`."""
    return cast(Output, model.apply({"params": params}, tokens, dial, blocks, **options))


def unrolled(params: PyTree) -> PyTree:
    """Return parameters for a model that is `unrolled`: those of each layer as separate arrays.

    A scan over stacked layers copies the weights of each layer before it multiplies with them. For one token that
    takes as long as the product itself.
    """
    layers = {name: params[name] for name in STACKS if name in params}
    split = {
        f"{name}_{nth}": jax.tree.map(operator.itemgetter(nth), stack)
        for name, stack in layers.items()
        for nth in range(len(jax.tree.leaves(stack)[0]))
    }
    return {name: leaf for name, leaf in params.items() if name not in layers} | split


def _perception_placement(
    positions, segments, cache: Cache | None, sink: int, opening: bool
) -> tuple[Placement, Cache | None]:
    """Return the placement in the perception layers: block 0 is the sink, block 1 the rest."""
    block = jnp.where(positions < sink, 0, 1)
    if cache is None:
        return _without_cache(block, positions, segments), None
    cache, slot = cache.at_positions(positions, segments)
    if opening:
        return dataclasses.replace(_without_cache(block, positions, segments), slot=slot), cache
    slots = jnp.broadcast_to(jnp.arange(cache.capacity), cache.seen.shape)
    placement = Placement(
        block=block,
        positions=positions,
        segments=segments,
        slot=slot,
        k_block=jnp.where(slots < sink, 0, 1),
        k_positions=slots,
        k_segments=cache.seen,
    )
    return placement, cache


def _filed(ids, routed, sink, positions, segments, cache: Cache | None, filings: int):
    """Return the blocks of keys by filing [B, F, T], and the cache updated with the routed blocks."""
    if filings == 1:
        return ids[:, None], cache
    if cache is None:
        before = jnp.pad(routed[:, :-1], ((0, 0), (1, 0)))
    else:
        cache, before = cache.with_routed(routed, positions, segments)
    return jnp.stack([ids, jnp.where(sink, 0, before)], 1), cache


def _localist_placement(
    filed, positions, segments, cache: Cache | None, opening: bool
) -> tuple[Placement, Cache | None]:
    """Return the placement in the localist layers; with a cache the keys are the slots of its pages."""
    block, alone = filed[:, 0], filed.shape[1] == 1
    slot = None
    if cache is not None:
        cache, slot = cache.in_pages(block if alone else filed, positions, segments)
    if cache is None or opening:
        placement = dataclasses.replace(_without_cache(block, positions, segments), slot=slot)
        if alone:
            return placement, cache
        k_positions, k_segments = (jnp.broadcast_to(x[:, None], filed.shape) for x in (positions, segments))
        keys = dict(k_block=filed, k_positions=k_positions, k_segments=k_segments)
        return dataclasses.replace(placement, **keys), cache
    placement = Placement(
        block=block,
        positions=positions,
        segments=segments,
        slot=slot,
        k_block=cache.block,
        k_positions=cache.position,
        k_segments=cache.segment,
    )
    return placement, cache


def _rows_at(x: Float[Array, "B T D"], index: Int[Array, "B P"]) -> Float[Array, "B P D"]:
    """Return x[b, index[b, p]].

    A single row is selected without a gather, on which the TPU compiler (jaxlib 0.10.2) aborts beside mapped axes.
    """
    if index.shape[1] > 1:
        return jnp.take_along_axis(x, index[..., None], 1)
    chosen = jnp.arange(x.shape[1]) == index
    return jnp.where(chosen[..., None], x, 0).sum(1, keepdims=True)


def _under_rules(placement: Placement, rules: Steering, blocks: int) -> Placement:
    """Give queries in scope a separate row of the odds, and keys that rules point to separate columns."""
    in_scope = (placement.positions >= rules.since[:, None]) & (placement.segments > 0)
    return dataclasses.replace(
        placement,
        block=steering.query_rows(placement.block, in_scope, blocks),
        k_block=steering.key_columns(placement.k_block, placement.k_positions, rules.group, blocks),
    )


def _without_cache(block, positions, segments) -> Placement:
    """Return the placement of positions that attend to each other, without a cache."""
    return Placement(
        block=block,
        positions=positions,
        segments=segments,
        k_block=block,
        k_positions=positions,
        k_segments=segments,
    )

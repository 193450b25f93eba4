"""Layers of the transformer: norm, rotary positions, dialled attention, feed-forward, localist units.

Every parameter carries logical axis names; `parallel.sharding` maps them to mesh axes, and growth widens the block
axes by name.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from localist_jax import config
from localist_jax.attention import AttentionStats, attend
from localist_jax.attention.single import attend_single
from localist_jax.attention.stats import Stats
from localist_jax.locality import gates as gating
from localist_jax.locality import lineage, steering
from localist_jax.locality.steering import LayerSteering
from localist_jax.model import units
from localist_jax.model.cache import LayerCache, RowsCache
from localist_jax.parallel.sharding import mesh_axes, on_each, placed
from localist_jax.types import struct, widened


@struct
class Placement:
    """Blocks, positions and segments of a batch, shared by all layers of a stack.

    Attributes:
      block, positions, segments: int32 [B, T] of the queries.
      k_block, k_positions, k_segments: int32 [B, S] of the keys (the cache's, if there is one); [B, F, S] where
        heads file keys in F > 1 ways.
      slot: int32 [B, T] or [B, F, T], the cache slots for the keys of these positions; None without a cache.
      route: float32 [B, T, K] straight-through one-hot, or None at inference.
      units: dispatch of positions to the localist units of their block and of its ancestors, or None.
      kin: float32 [B, T, G], weight of each ancestor's units: 1 where there is one so far up (with the router's
        gradient, if there is a route), else 0.
    """

    block: chex.Array
    positions: chex.Array
    segments: chex.Array
    k_block: chex.Array
    k_positions: chex.Array
    k_segments: chex.Array
    slot: chex.Array | None = None
    route: chex.Array | None = None
    units: units.Dispatch | None = None
    kin: chex.Array | None = None


def with_units(
    placement: Placement, parent: Int[Array, " K"], generations: int, shards: int = 1
) -> Placement:
    """Return the placement with the dispatch to units of each block and its ancestors, and the weights of these.

    Args:
      placement: a placement with the blocks of the queries.
      parent: parent of each block; a root is its own parent.
      generations: G, how many blocks in a line of descent add up their units.
      shards: parts of the batch that are dispatched separately.
    """
    (B, T), K = placement.block.shape, parent.size
    up, is_one = lineage.line(parent, generations)
    kin, line = is_one[placement.block].astype(jnp.float32), up[placement.block]
    if placement.route is not None:  # to the block or a descendant
        ancestors = lineage.ancestry(parent).astype(placement.route.dtype)
        family = jnp.matmul(placement.route, ancestors, precision="highest")
        kin = kin * jnp.take_along_axis(family, line, -1)
    places = units.dispatch(line.reshape(B, T * generations), K, shards)
    return dataclasses.replace(placement, units=places, kin=kin)


Shape = tuple[int, ...]
Axes = tuple[str, ...]
UNSCALED = config.RopeScaling()


def parameter(module: nn.Module, name: str, init: Any, shape: Shape, axes: Axes) -> jax.Array:
    """Return a float32 parameter with logical axis names."""
    return cast(jax.Array, module.param(name, nn.with_logical_partitioning(init, axes), shape, jnp.float32))


def weight(
    module: nn.Module, name: str, shape: Shape, axes: Axes, fan_in: int, gain: float = 1.0
) -> jax.Array:
    """Return a parameter drawn from a normal distribution of standard deviation gain/√fan_in."""
    return parameter(module, name, nn.initializers.normal(gain * fan_in**-0.5), shape, axes)


def looked_up(
    table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str, mesh: jax.sharding.Mesh | None
) -> Float[Array, "B T D"]:
    """Return table[tokens]; on a mesh each device looks up the rows that it holds, and the results are summed."""
    if mesh is None or mesh.size == 1:
        return table[tokens].astype(dtype)
    table = table.astype(dtype)  # before communication, to send less
    batch, held = mesh_axes("batch", mesh, tokens.shape[0]), mesh_axes("vocab", mesh, table.shape[0])

    def one_device(table, tokens):
        if not held:
            return table[tokens]
        row = tokens - jax.lax.axis_index(held) * table.shape[0]
        mine = (row >= 0) & (row < table.shape[0])
        rows_held = jnp.where(mine[..., None], table[row.clip(0, table.shape[0] - 1)], 0)
        return jax.lax.psum(rows_held, held)

    rows, vocabulary = PartitionSpec(batch or None), PartitionSpec(held or None)
    return on_each(one_device, mesh, (vocabulary, rows), rows)(table, tokens)


class Norm(nn.Module):
    """RMSNorm with a gain per channel: γ·x/√(mean x² + ε), in at least float32."""

    epsilon: float
    axis: str = "embed"

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """Normalise the last axis."""
        gain = parameter(self, "gain", nn.initializers.ones, (x.shape[-1],), (self.axis,))
        wide = widened(x)
        scale = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + self.epsilon)
        return (wide * scale * gain).astype(x.dtype)


def frequencies(half: int, base: float, scaling: config.RopeScaling) -> np.ndarray:
    """Return radians per position of each rotary pair h: base^(−2h/H), changed by `scaling`; float64 [H/2].

    "linear" divides all by its factor. "llama3" divides the slow ones (fewer than `low` turns within the original
    context), keeps the fast ones (more than `high`), and interpolates linearly in the number of turns.
    """
    plain = base ** (-np.arange(half) / half)
    if scaling.kind == "none":
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    turns = scaling.context * plain / (2 * np.pi)
    fast = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return plain * (fast + (1 - fast) / scaling.factor)


def rotate(
    x: Float[Array, "B T N H"],
    positions: Int[Array, "B T"],
    base: float,
    scaling: config.RopeScaling = UNSCALED,
) -> Float[Array, "B T N H"]:
    """Apply rotary positions; channels h and h + H/2 form a pair that turns by position·`frequencies`."""
    half = x.shape[-1] // 2
    first, second = jnp.split(widened(x), 2, -1)
    frequency = jnp.asarray(frequencies(half, base, scaling), first.dtype)
    angle = positions[..., None, None].astype(first.dtype) * frequency
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)


class Delta(nn.Module):
    """A low-rank change of a projection, λ·(x·down)·up: exactly 0 at λ=0. `up` starts at zero.

    Attributes:
      rank: rank of the change.
      shape, axes: shape of the output at each position, and its logical axis names.
      inputs: logical name of the input axis.
    """

    rank: int
    shape: Shape
    axes: Axes
    inputs: str

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], beta: Float[Array, "B N"]) -> Float[Array, "B T *shape"]:
        """Return the change; λ is the mean over the layer's heads."""
        down = weight(self, "down", (x.shape[-1], self.rank), (self.inputs, "rank"), x.shape[-1])
        zeros = nn.initializers.zeros
        up = parameter(self, "up", zeros, (self.rank, *self.shape), ("rank", *self.axes))
        y = jnp.tensordot(x @ down.astype(x.dtype), up.astype(x.dtype), 1)
        return y * _locality(beta, y)


def _locality(beta: Float[Array, "B N"], like: jax.Array) -> jax.Array:
    """Return λ = 1 − e^{−β}, the mean over heads, in a shape that broadcasts to [B, …]."""
    return -jnp.expm1(-beta).mean(-1).reshape(-1, *[1] * (like.ndim - 1)).astype(like.dtype)


class Attention(nn.Module):
    """Attention of one layer: a localist layer has gates between blocks and the dial, a perception layer a window.

    Perception layers trained from scratch keep their window at every dial: a window that opened with the dial cost 0.06
    to 0.07 bits per token (WikiText-2, 0.8 M parameters, one seed). Those of a pretrained model (`perception_dialled`)
    are dense at λ=0. With `perception_window` 0 they are always dense.
    """

    config: config.Model
    localist: bool
    stats: Stats = "none"
    mesh: jax.sharding.Mesh | None = None
    opening: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T D"],
        beta: Float[Array, "B N"],
        placement: Placement,
        cache: LayerCache | None,
        rules: LayerSteering | None = None,
        turned: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "B T D"], AttentionStats | None, LayerCache | None]:
        """Attend, after writing keys and values into the cache if there is one; `turned` 0: no rotary positions."""
        c = self.config
        D, N, G, H = x.shape[-1], c.heads, c.kv_heads, c.head_size
        wq = weight(self, "query", (D, N, H), ("embed", "heads", "head"), D)
        wk = weight(self, "key", (D, G, H), ("embed", "kv_heads", "head"), D)
        wv = weight(self, "value", (D, G, H), ("embed", "kv_heads", "head"), D)
        wo = weight(self, "out", (N, H, D), ("heads", "head", "embed"), N * H, (2 * c.layers) ** -0.5)
        q, k, v = (jnp.einsum("BTD,DNH->BTNH", x, w.astype(x.dtype)) for w in (wq, wk, wv))
        if c.qkv_bias:
            zeros = nn.initializers.zeros
            q += parameter(self, "query_bias", zeros, (N, H), ("heads", "head")).astype(x.dtype)
            k += parameter(self, "key_bias", zeros, (G, H), ("kv_heads", "head")).astype(x.dtype)
            v += parameter(self, "value_bias", zeros, (G, H), ("kv_heads", "head")).astype(x.dtype)
        deltas = self.localist and c.delta_rank > 0
        if deltas:
            sides = {"query": (N, "heads"), "key": (G, "kv_heads"), "value": (G, "kv_heads")}
            q, k, v = (
                y + Delta(c.delta_rank, (n, H), (axis, "head"), "embed", name=f"{name}_delta")(x, beta)
                for y, (name, (n, axis)) in zip((q, k, v), sides.items(), strict=True)
            )
        if c.qk_norm:
            q = Norm(c.norm_eps, "head", name="query_norm")(q)
            k = Norm(c.norm_eps, "head", name="key_norm")(k)
        angles = placement.positions if turned is None else placement.positions * turned
        q, k = (rotate(x, angles, c.rope_base, c.rope_scaling) for x in (q, k))
        filing = self._filing() if placement.k_block.ndim == 3 else None
        if cache is not None and placement.slot is not None:
            slot = placement.slot if filing is None else placement.slot[:, filing].swapaxes(1, 2)
            cache = cache.write(k, v, slot, self.mesh)
            if not self.opening:
                k, v = jax.tree.map(lambda leaf: leaf.astype(x.dtype), (cache.k, cache.v))

        odds, relevant, window = self._odds(beta)
        q_block, K = placement.block, odds.shape[-1]
        if x.shape[1] == 1:  # a generation step needs only the row of its own block
            odds, relevant = (steering.own_row(table, q_block % K) for table in (odds, relevant))
            q_block = q_block // K
        if rules is not None:
            odds, relevant = steering.steered(odds, relevant, beta, rules)
        call: dict[str, Any] = dict(
            q_block=q_block,
            k_block=placement.k_block,
            q_pos=placement.positions,
            k_pos=placement.k_positions,
            q_seg=placement.segments,
            k_seg=placement.k_segments,
            odds=odds,
            relevant=relevant,
            filing=filing,
            window=window,
            mesh=self.mesh,
        )
        rows = isinstance(cache, RowsCache)
        attended = partial(attend_single, groups=G) if rows else partial(attend, route=placement.route)
        if self.localist:
            out, stats = attended(q, k, v, **call, stats=self.stats)
        else:
            wanted: Stats = "open" if self.stats == "dense" and not c.perception_dialled else self.stats
            out, stats = attended(q, k, v, **call, stats=wanted)
            if self.stats == "dense" and stats is not None and not c.perception_dialled:
                stats = dataclasses.replace(stats, price_bits=jnp.zeros_like(stats.lse))
        if self.is_mutable_collection("intermediates"):
            # The attention matrix, as `attend` computes it: the value of each key is its own unit vector.
            eye = jnp.broadcast_to(jnp.eye(k.shape[1], dtype=q.dtype)[:, None], (*k.shape[:3], k.shape[1]))
            self.sow("intermediates", "attention", attend(q, k, eye, **call)[0])
        counted = self.localist and not self.is_initializing()
        if counted and self.is_mutable_collection("mass"):  # for calibration
            self.sow("mass", "beyond", self._mass_beyond(q, k, call))
        if counted and self.is_mutable_collection(
            "block_mass"
        ):  # for reports: at this dial, over all open keys
            read = attend(q, k, self._block_values(call, G).astype(q.dtype), **call)[0]
            self.sow("block_mass", "all", self._by_block(read.astype(jnp.float32), q_block)[0])
        flat = out.reshape(*out.shape[:2], N * H)
        # Contracting two axes at once would transpose the weights first.
        y = flat @ wo.astype(x.dtype).reshape(N * H, D)
        if deltas:
            y = y + Delta(c.delta_rank, (D,), ("embed",), "heads_and_head", name="out_delta")(flat, beta)
        return y, stats, cache

    def _filing(self) -> Int[Array, " G"]:
        """Return the filing of each key/value head; it is stored as a float like the other parameters."""
        filing = parameter(self, "filing", nn.initializers.zeros, (self.config.kv_heads,), ("kv_heads",))
        return jnp.round(filing).astype(jnp.int32)

    def _block_values(self, call: dict[str, Any], groups: int) -> Float[Array, "B S G FK"]:
        """Return values that make attention return masses: each key's block under every filing, one-hot."""
        filed = call["k_block"].reshape(len(call["k_block"]), self.config.filings, -1)
        one_hot = jax.nn.one_hot(filed, self.config.block_capacity)  # [B, F, S, K]
        flat = jnp.einsum("BFSK->BSFK", one_hot).reshape(len(filed), filed.shape[-1], -1)
        return jnp.broadcast_to(flat[:, :, None], (*flat.shape[:2], groups, flat.shape[-1]))

    def _by_block(self, mass: Float[Array, "B T N FK"], block) -> Float[Array, "F N K K"]:
        """Sum the masses of queries by their blocks."""
        rows = jax.nn.one_hot(block, self.config.block_capacity)
        split = mass.reshape(*mass.shape[:3], self.config.filings, -1)
        return jnp.einsum("BTk,BTNFl->FNkl", rows, split)

    def _mass_beyond(self, q, k, call: dict[str, Any]) -> Float[Array, "F N K K"]:
        """Attention mass beyond the window by (query block, key block) at λ=0, under each filing (T17).

        A query's mass on every block is what it reads where each key's value is its block as a one-hot; what it reads
        inside the window alone, at that window's share e^{lse_near − lse}, is taken off. Blocks play no part in the
        weights, so both passes run with a single one.
        """
        values = self._block_values(call, k.shape[2]).astype(q.dtype)
        places = {name: call[name].reshape(len(k), -1, k.shape[1])[:, 0] for name in ("k_pos", "k_seg")}
        blocks = {"q_block": jnp.zeros_like(call["q_block"]), "k_block": jnp.zeros_like(places["k_pos"])}

        def read(is_open: bool):
            odds = jnp.full((1, self.config.heads, 1, 1), float(is_open))
            alone = {**call, **places, **blocks, "odds": odds, "relevant": odds > 0, "filing": None}
            out, stats = attend(q, k, values, **alone, stats="lse")
            assert stats is not None
            return widened(out), stats.lse.swapaxes(1, 2)[..., None]

        (whole, lse), (near, near_lse) = read(True), read(False)
        seen = jnp.isfinite(near_lse)
        inside = jnp.where(seen, jnp.exp(jnp.where(seen, near_lse - lse, 0.0)), 0.0)
        return self._by_block(jnp.maximum(whole - inside * near, 0.0), call["q_block"])

    def _odds(self, beta):
        c = self.config
        if self.localist:
            K = c.block_capacity
            axes = ("heads", "block_q", "block_k")
            gates = parameter(self, "gates", nn.initializers.ones, (c.heads, K, K), axes)
            window = c.window
        else:
            gates = jnp.full((c.heads, 2, 2), 0.0 if c.perception_window else 1.0)
            window = max(1, c.perception_window)
            if not c.perception_dialled:
                beta = jnp.full_like(beta, jnp.inf)
        return gating.odds(gates, beta), gating.relevant(gates)[None], window


class FeedForward(nn.Module):
    """SwiGLU, shared by all positions."""

    config: config.Model

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Return W_down (silu(W_gate x) ⊙ W_up x)."""
        c, D = self.config, x.shape[-1]
        w_gate = weight(self, "gate", (D, c.feed_forward), ("embed", "mlp"), D).astype(x.dtype)
        w_up = weight(self, "up", (D, c.feed_forward), ("embed", "mlp"), D).astype(x.dtype)
        shape, gain = (c.feed_forward, D), (2 * c.layers) ** -0.5
        w_down = weight(self, "down", shape, ("mlp", "embed"), c.feed_forward, gain).astype(x.dtype)
        return (jax.nn.silu(x @ w_gate) * (x @ w_up)) @ w_down


class LocalistUnits(nn.Module):
    """The units of each block, plus those of its ancestors if it was recruited.

    So a recruited block keeps what it shares with its parent, and its own units learn only the difference. Units are
    weighted by the straight-through route into the block or its descendants, which gives the router a gradient. With
    `dialled_units` they are also weighted by λ (the mean over the layer's heads), so that they add exactly 0 at λ=0.
    """

    config: config.Model
    mesh: jax.sharding.Mesh | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], beta: Float[Array, "B N"], placement: Placement
    ) -> Float[Array, "B T D"]:
        """Return what the units add to each position."""
        c, D = self.config, x.shape[-1]
        K, U = c.block_capacity, c.block_units
        w_in = weight(self, "in", (K, D, U), ("block", "embed", "unit"), D)
        w_out = weight(self, "out", (K, U, D), ("block", "unit", "embed"), U, (2 * c.layers) ** -0.5)
        assert placement.units is not None
        assert placement.kin is not None
        kin = jnp.repeat(x, c.generations, axis=1)
        y = units.apply_units(kin, w_in.astype(x.dtype), w_out.astype(x.dtype), placement.units, self.mesh)
        y = (y.reshape(*x.shape[:2], c.generations, D) * placement.kin[..., None].astype(y.dtype)).sum(2)
        if c.dialled_units:
            y = y * _locality(beta, y)
        return y


class Layer(nn.Module):
    """One transformer layer, in the form that `nn.scan` wants: carry, per-layer inputs, shared inputs."""

    config: config.Model
    localist: bool
    stats: Stats = "none"
    mesh: jax.sharding.Mesh | None = None
    opening: bool = False

    @nn.compact
    def __call__(self, x, per_layer: tuple[Any, ...], placement: Placement):
        """Add attention, then feed-forward and localist units; `per_layer` has β, cache, steering and `turned`."""
        beta, cache, rules, turned = per_layer
        eps = self.config.norm_eps
        with jax.named_scope("attention"):
            attention = Attention(
                self.config, self.localist, self.stats, self.mesh, self.opening, name="attention"
            )
            y, stats, cache = attention(
                Norm(eps, name="attention_norm")(x), beta, placement, cache, rules, turned
            )
            x = placed(x + y, self.mesh, "batch")
        with jax.named_scope("feed_forward"):
            h = Norm(eps, name="feed_forward_norm")(x)
            y = FeedForward(self.config, name="feed_forward")(h)
            if self.localist and self.config.block_units:
                y = y + LocalistUnits(self.config, self.mesh, name="units")(h, beta, placement)
        return placed(x + y, self.mesh, "batch"), (stats, cache)

"""Objectives over gates and groups, and proximal descent to where they rest: the instances of T6."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.attention import attend
from localist_jax.locality import gates as gating
from localist_jax.types import struct
from proofs_check.models.stationary import solve

QUERIES, KEYS, BLOCKS, GROUPS, SIZE = 3, 6, 3, 3, 2
UNKNOWNS = BLOCKS**2 + GROUPS * SIZE


@struct
class Point:
    """n objectives F(A, θ) = L(A, θ) + Σ λ A + Σ μ‖θ‖₂, each at one point, and another point anywhere.

    Attributes:
      gates, groups: A [n, K, K] and θ [n, GROUPS, SIZE]; other_gates, other_groups: the other point.
      gate_price, group_price: λ [n, K, K] and μ [n, GROUPS, 1].
      scale: factor of L [n]; convex: bool [n], which of the two L it is.
      map, centre: L = ½‖map·(z − centre)‖² with z = (A, θ), [n, z, z] and [n, z].
      beta, block, query, key, mix, value, wanted: L = ½ Σ‖o_i − wanted_i‖², o the attention of `query` to keys
        key + mix·θ of these blocks at log-odds β under the gates A.
    """

    gates: chex.Array
    groups: chex.Array
    other_gates: chex.Array
    other_groups: chex.Array
    gate_price: chex.Array
    group_price: chex.Array
    scale: chex.Array
    convex: chex.Array
    map: chex.Array
    centre: chex.Array
    beta: chex.Array
    block: chex.Array
    query: chex.Array
    key: chex.Array
    mix: chex.Array
    value: chex.Array
    wanted: chex.Array

    def at(self, gates, groups) -> Point:
        """The same objectives at another point."""
        return dataclasses.replace(self, gates=gates, groups=groups)

    @property
    def other(self) -> Point:
        """The same objectives at the other point."""
        return self.at(self.other_gates, self.other_groups)


def attention_loss(p: Point, gates, groups, beta) -> jax.Array:
    """½ Σ‖o_i − wanted_i‖² by the library's `attend`, [n]."""
    n, at, square = p.block.shape[0], jnp.arange(KEYS), gates[:, None]
    position, segment = jnp.broadcast_to(at, (n, KEYS)), jnp.ones((n, KEYS), int)
    asked = [x[:, -QUERIES:] for x in (p.block, position, segment)]
    out, _ = attend(
        p.query[:, :, None], (p.key + p.mix @ groups)[:, :, None], p.value[:, :, None],
        q_block=asked[0], k_block=p.block, q_pos=asked[1], k_pos=position, q_seg=asked[2], k_seg=segment,
        odds=jax.vmap(gating.odds)(square, beta[:, None, None])[:, 0], relevant=jax.vmap(gating.relevant)(square),
    )  # fmt: skip
    return 0.5 * jnp.square(out[:, :, 0] - p.wanted).sum((1, 2))


def ratio_loss(p: Point, gates) -> jax.Array:
    """The same at λ=1 in the ratio form Σe^s ω v / Σe^s ω, which can be differentiated at gates of 0, [n]."""
    at, asked = jnp.arange(KEYS), jnp.arange(KEYS - QUERIES, KEYS)[:, None]
    s = jnp.einsum("nih,njh->nij", p.query, p.key + p.mix @ p.groups) / SIZE**0.5
    omega = jax.vmap(lambda A, block: A[block[asked], block])(gating.with_open_column(gates), p.block)
    weight = jnp.exp(s) * jnp.where(at == asked, 1.0, jnp.where(at < asked, omega, 0.0))
    out = weight @ p.value / weight.sum(-1, keepdims=True)
    return 0.5 * jnp.square(out - p.wanted).sum((1, 2))


def loss(p: Point, gates, groups) -> jax.Array:
    """L [n]."""
    z = jnp.concatenate([gates.reshape(len(gates), -1), groups.reshape(len(groups), -1)], 1)
    quadratic = 0.5 * jnp.square(jnp.einsum("nij,nj->ni", p.map, z - p.centre)).sum(1)
    return p.scale * jnp.where(p.convex, quadratic, attention_loss(p, gates, groups, p.beta))


def slopes(p: Point) -> tuple[jax.Array, jax.Array]:
    """∂L/∂A and ∇L at the point."""
    return jax.grad(lambda A, theta: loss(p, A, theta).sum(), (0, 1))(p.gates, p.groups)


def size(theta) -> jax.Array:
    """‖θ_h‖ [n, GROUPS, 1]."""
    return jnp.linalg.norm(theta, axis=2, keepdims=True)


def objective(p: Point) -> jax.Array:
    """F [n]."""
    x = p.gates, p.groups
    return _loss(x, p) + _penalty(x, p)


def unit(theta) -> jax.Array:
    """θ_h/‖θ_h‖, 0 where θ_h is."""
    norm = size(theta)
    return theta / jnp.where(norm > 0, norm, 1.0)


def group_residual(p: Point, slope) -> jax.Array:
    """Distance of each group from T6 (b), [n, GROUPS, 1]."""
    at_zero = jnp.maximum(size(slope) - p.group_price, 0.0)
    return jnp.where(size(p.groups) > 0, size(slope + p.group_price * unit(p.groups)), at_zero)


def residual(p: Point, slope) -> jax.Array:
    """The largest KKT residual of a gate or group, [n]."""
    gates = gating.kkt_residual(p.gates, slope[0], p.gate_price).max((1, 2))
    return jnp.maximum(gates, group_residual(p, slope[1]).max((1, 2)))


def stepped(p: Point, slope, step) -> Point:
    """After one proximal step of gates and groups by the library; step [n, 1, 1]."""
    gates = gating.proximal_step(p.gates, slope[0], step, p.gate_price)
    return p.at(gates, gating.group_soft_threshold(p.groups - step * slope[1], step * p.group_price, (2,)))


def rest(p: Point) -> Point:
    """The same objectives where proximal gradient descent from the point comes to rest."""
    gates, groups = solve(_loss, _penalty, _prox, (p.gates, p.groups), p)
    return p.at(gates, groups)


def _loss(x, p):
    return loss(p, *x)


def _penalty(x, p):
    return (p.gate_price * x[0]).sum((1, 2)) + (p.group_price * size(x[1])).sum((1, 2))


def _prox(x, slope, step, p):
    new = stepped(p.at(*x), slope, step[:, None, None])
    return new.gates, new.groups


def draw(key: jax.Array, n: int) -> Point:
    """Objectives of all scales and prices, some free of charge, at random points; exact zeros and ones at the other."""
    keys, square = jax.random.split(key), (BLOCKS, BLOCKS)
    u, start, far, spread = _drawn(
        jax.random.uniform, keys[0], n, (6,), square, square, (BLOCKS**2 + GROUPS,)
    )
    groups, other, noise, centre, query, wanted, key_, value, mix = _drawn(
        jax.random.normal, keys[1], n, (GROUPS, SIZE), (GROUPS, SIZE), (UNKNOWNS, UNKNOWNS), (UNKNOWNS,),
        (QUERIES, SIZE), (QUERIES, SIZE), (KEYS, SIZE), (KEYS, SIZE), (KEYS, GROUPS),
    )  # fmt: skip
    scale = 10.0 ** (2 * u[:, 0] - 1)
    price = scale[:, None] * 10.0 ** (2.5 * spread * u[:, 1:2] - 2 + u[:, 2:3]) * (u[:, 3:4] > 0.05)
    return Point(
        gates=start, groups=groups, other_gates=jnp.clip(1.6 * far - 0.3, 0, 1),
        other_groups=other * (spread[:, -GROUPS:, None] < 0.7),
        gate_price=price[:, : BLOCKS**2].reshape(start.shape), group_price=price[:, BLOCKS**2 :, None],
        scale=scale, convex=u[:, 4] < 0.5, centre=0.8 * centre + 0.3,
        map=jnp.eye(UNKNOWNS) + 0.3 * noise / UNKNOWNS**0.5, beta=4 * u[:, 5],
        block=jnp.argmax(mix[..., :BLOCKS], -1), query=query, key=key_, mix=mix, value=value, wanted=wanted,
    )  # fmt: skip


def _drawn(sampler: Callable, key: jax.Array, n: int, *shapes: tuple[int, ...]) -> list[jax.Array]:
    """Independent arrays [n, …] of these shapes, from one call: each call costs compile time."""
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = jnp.split(sampler(key, (n, ends[-1])), ends[:-1], 1)
    return [x.reshape(n, *shape) for x, shape in zip(pieces, shapes, strict=True)]

"""Small gated transformers at stationary points: the instances of T7, and everything it says about their gates."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from localist_jax import bits
from localist_jax.attention import attend
from localist_jax.locality import Dial
from localist_jax.locality import gates as gating
from localist_jax.types import struct
from proofs_check.models.stationary import SETTLED, solve

LAYERS, HEADS, WIDTH, SIZE, TOKENS, BLOCKS, VOCABULARY = 2, 2, 6, 3, 7, 4, 5
PRICES = 16  # of one model, from far below the threshold to above it
FARTHEST = 300.0  # nats between logits of a row, beyond which its smaller terms underflow
TINY = 1e-200  # stands for a gate of 0, so that its one-sided derivative is seen at λ=1 too
KINDS = ("one head", "two heads", "two layers")
SHAPE = (LAYERS, HEADS, BLOCKS, BLOCKS)


@struct
class Model:
    """n attention-only transformers of two layers and two heads with a price and their gates.

    Attributes:
      x: inputs [n, TOKENS, WIDTH]; block [n, TOKENS]; targets [n, TOKENS]; readout [n, WIDTH, VOCABULARY].
      qkv: [n, LAYERS, 3, HEADS, WIDTH, SIZE]; out: [n, LAYERS, HEADS, SIZE, WIDTH], zero in parts not in use.
      locality, price: λ and μ, [n]; kind: int [n], which of KINDS it is.
      gates: A [n, *SHAPE] at (or, under attack, away from) a stationary point.
    """

    x: chex.Array
    block: chex.Array
    targets: chex.Array
    readout: chex.Array
    qkv: chex.Array
    out: chex.Array
    locality: chex.Array
    price: chex.Array
    kind: chex.Array
    gates: chex.Array


def _forward(gates, m: Model, nudge=None):
    """Loss Σ code length [n], nats, and each layer's queries, keys and values; `nudge` is added to o."""
    acting = gates + TINY
    beta = jnp.broadcast_to(Dial(m.locality[:, None, None]).beta[:, 0], (len(m.x), HEADS))
    n, x, seen = len(m.x), m.x, []
    ones, at = jnp.ones((n, TOKENS), int), jnp.broadcast_to(jnp.arange(TOKENS), (n, TOKENS))
    for layer in range(LAYERS):
        q, k, v = (jnp.einsum("nTD,nNDH->nTNH", x, m.qkv[:, layer, i]) for i in range(3))
        odds = jax.vmap(lambda a, b: gating.odds(a, b[None])[0])(acting[:, layer], beta)
        o, _ = attend(
            q, k, v, q_block=m.block, k_block=m.block, q_pos=at, k_pos=at, q_seg=ones, k_seg=ones,
            odds=odds, relevant=odds > 0,
        )  # fmt: skip
        if nudge is not None:
            o = o + nudge[:, layer]
        seen.append((q, k, v))
        x = x + jnp.einsum("nTNH,nNHD->nTD", o, m.out[:, layer])
    code = bits.to_nats(bits.code_length(jnp.einsum("nTD,nDV->nTV", x, m.readout), m.targets))
    return code.sum(1), seen


def _loss(gates, m: Model):
    return _forward(gates, m)[0]


def _penalty(gates, m: Model):
    return m.price * gates[..., 1:].sum((1, 2, 3, 4))


def _prox(gates, gradient, step, m: Model):
    wide = (slice(None),) + (None,) * 4
    return gating.proximal_step(gates, gradient, step[wide], m.price[wide])


def draw(key: jax.Array, n: int) -> Model:
    """Models of all KINDS, each at PRICES prices; gates fully open."""
    models = -(-n // PRICES)
    keys = jax.random.split(key, 9)
    kind = jax.random.randint(keys[0], (models,), 0, 3)
    used = (jnp.arange(LAYERS) < jnp.where(kind == 2, 2, 1)[:, None])[:, :, None]
    used = used & (jnp.arange(HEADS) < jnp.where(kind == 0, 1, 2)[:, None])[:, None]
    scale = 10.0 ** jax.random.uniform(keys[1], (models, 1, 1, 1, 1, 1), minval=-0.7, maxval=0.2)
    out = jax.random.normal(keys[3], (models, LAYERS, HEADS, SIZE, WIDTH))
    u = jax.random.uniform(keys[7], (models,))
    locality = jnp.where(jax.random.bernoulli(keys[8], 0.3, (models,)), 1.0, u)
    one = Model(
        x=jax.random.normal(keys[4], (models, TOKENS, WIDTH)),
        block=jax.random.randint(keys[5], (models, TOKENS), 1, BLOCKS).at[:, 0].set(0),
        targets=jax.random.randint(keys[6], (models, TOKENS), 0, VOCABULARY),
        readout=jax.random.normal(keys[7], (models, WIDTH, VOCABULARY)),
        qkv=scale * jax.random.normal(keys[2], (models, LAYERS, 3, HEADS, WIDTH, SIZE)),
        out=jnp.where(used[..., None, None], out, 0.0), locality=locality, price=jnp.zeros(models),
        kind=kind, gates=jnp.ones((models, *SHAPE)),
    )  # fmt: skip
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, PRICES, 0)[:n], one)
    rank = jnp.tile(jnp.arange(PRICES), models)[:n]
    steepest = jnp.abs(gradient(many)).max((1, 2, 3, 4))
    return dataclasses.replace(many, price=steepest * 10.0 ** jnp.linspace(-2, 0.6, PRICES)[rank])


def sample(key: jax.Array, n: int) -> Model:
    """Models brought to stationary points of loss + price · gates."""
    m = draw(key, n)
    return dataclasses.replace(m, gates=solve(_loss, _penalty, _prox, m.gates, m))


def gradient(m: Model):
    """∂L/∂A by differentiation, one-sided where A = 0; [n, *SHAPE]."""
    return jax.grad(lambda gates: _loss(gates, m).sum())(m.gates)


@struct
class Bounds:
    """Per gate, [n, *SHAPE]: the derivative by (a), bounds on it, and the thresholds (b)–(e)."""

    derivative: chex.Array
    by_mass: chex.Array
    by_quarter: chex.Array
    crude: chex.Array
    extremes: chex.Array
    means: chex.Array
    signed: chex.Array
    odds: chex.Array  # ω
    sane: chex.Array  # bool: no logits of the layer lie farther apart than FARTHEST
    inclusive: chex.Array  # the wrong twin: ρ with the group itself among the rest


def bounds(m: Model) -> Bounds:
    """Everything that T7 says about these gates, from logits, values and G."""
    nudge = jnp.zeros((len(m.x), LAYERS, TOKENS, HEADS, SIZE))
    G = jax.grad(lambda e: _forward(m.gates, m, e)[0].sum())(nudge)
    _, seen = _forward(m.gates, m)
    parts = [_layer_bounds(m, layer, seen[layer], G[:, layer]) for layer in range(LAYERS)]
    return jax.tree.map(lambda *x: jnp.stack(x, 1), *parts)


def _layer_bounds(m: Model, layer: int, qkv, G) -> Bounds:
    q, k, v = qkv
    lam = m.locality[:, None, None, None]
    s = jnp.einsum("nTNH,nSNH->nNTS", q, k) * SIZE**-0.5
    g = jnp.einsum("nTNH,nSNH->nNTS", G, v)
    at = jnp.arange(TOKENS)
    seen, self_ = at[:, None] >= at, at[:, None] == at
    A = gating.with_open_column(m.gates[:, layer] + TINY)
    pick = (jnp.arange(len(m.x))[:, None, None, None], jnp.arange(HEADS)[:, None, None])
    odds = A + (1 - A) * (1 - lam)
    omega = odds[(*pick, m.block[:, None, :, None], m.block[:, None, None, :])]
    omega = jnp.where(self_, 1.0, omega) * seen
    weight = jnp.exp(s - jnp.where(seen, s, -jnp.inf).max(-1, keepdims=True)) * seen

    member = (m.block[:, :, None] == jnp.arange(BLOCKS))[:, None, None]  # [n, 1, 1, S, l]
    group = member & (seen & ~self_)[..., None]
    inside = lambda x: jnp.where(group, x[..., None], 0.0).sum(3)  # noqa: E731 [n, N, T, l]
    outside = lambda x: jnp.where(group, 0.0, x[..., None]).sum(3)  # noqa: E731
    e_in, e_out = inside(weight), outside(weight * omega)
    rho = e_in / e_out
    mean_in = inside(weight * g) / jnp.where(e_in > 0, e_in, 1.0)
    mean_out = outside(weight * omega * g) / e_out
    visible = seen[..., None]
    top = jnp.where(visible & ~group, g[..., None], -jnp.inf).max(3)
    low = jnp.where(group, g[..., None], jnp.inf).min(3)
    extreme = jnp.where(e_in > 0, jnp.maximum(top - low, 0.0), 0.0)
    spread = (jnp.where(seen, g, -jnp.inf).max(-1) - jnp.where(seen, g, jnp.inf).min(-1))[..., None]

    own = odds[pick[0][..., 0], pick[1][..., 0], m.block[:, None]]  # ω_kl of each query: [n, N, T, l]
    P = own * rho / (1 + own * rho)
    first, last = lam * rho / (1 + (1 - lam) * rho) ** 2, lam * rho / (1 + rho) ** 2
    gap = jnp.where(e_in > 0, mean_out - mean_in, 0.0)
    positive, negative = jnp.maximum(gap, 0.0), jnp.maximum(-gap, 0.0)
    mixed = e_in / (e_in + e_out)
    query = jax.nn.one_hot(m.block, BLOCKS, dtype=float)
    total = lambda x: jnp.einsum("nTk,nNTl->nNkl", query, jnp.broadcast_to(x, P.shape))  # noqa: E731
    apart = jnp.where(seen, s, -jnp.inf).max(-1) - jnp.where(seen, s, jnp.inf).min(-1)
    sane = (apart.max((1, 2)) < FARTHEST)[:, None, None, None]
    return Bounds(
        odds=odds,
        sane=jnp.broadcast_to(sane, A.shape),
        derivative=total(-lam / own * P * (1 - P) * gap),
        by_mass=total(lam / own * P * (1 - P) * spread),
        by_quarter=total(lam / own * spread / 4),
        crude=total(lam / (1 - lam) * spread / 4),
        extremes=total(first * extreme),
        means=total(first * positive),
        signed=total(first * positive - last * negative),
        inclusive=total(lam * mixed / (1 + (1 - lam) * mixed) ** 2 * positive),
    )


def settled(m: Model, d, priced):
    """Whether all gates of a model meet T6's dichotomy; bool [n, *SHAPE]."""
    residual = gating.kkt_residual(m.gates, d, m.price[(slice(None),) + (None,) * 4])
    worst = jnp.where(priced, residual, 0.0).max((1, 2, 3, 4), keepdims=True)
    return jnp.broadcast_to(worst < SETTLED, d.shape)

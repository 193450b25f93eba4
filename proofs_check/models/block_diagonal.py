"""Heads with block-diagonal projections at stationary points: the instances of T8."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from localist_jax import bits
from localist_jax.attention import attend
from localist_jax.locality import gates as gating
from localist_jax.types import struct
from proofs_check.models.stationary import SETTLED, solve

TOKENS, PARTS, SIZE, VOCABULARY = 6, 3, 2, 4
PRICES, RAY = 12, 24  # prices of one model; points on the ray of (d)
RELATIVE = 1e-8  # KKT residual over the price: below a tiny price, an absolute one says nothing
SCALE = (PARTS * SIZE) ** -0.5  # 1/√d_h
WIDE = (slice(None), None, None, None)


@struct
class Heads:
    """n heads, their data and price, and a leaky query for (e).

    Attributes:
      x: features [n, TOKENS, PARTS, SIZE]; values [n, TOKENS, VOCABULARY]; targets [n, TOKENS].
      start, q, k: Q_k and K_k, [n, PARTS, SIZE, SIZE]: K at the start, both at a stationary point.
      price: λ [n].
      leak: x_i, x_j ∈ R and x_j' of block 1, before they are cut to η, [n, 3, PARTS, SIZE]; eta [n].
      w: W_k of (e), [n, PARTS, SIZE, SIZE].
    """

    x: chex.Array
    values: chex.Array
    targets: chex.Array
    start: chex.Array
    q: chex.Array
    k: chex.Array
    price: chex.Array
    leak: chex.Array
    eta: chex.Array
    w: chex.Array


def _attend(w, h: Heads, values):
    n = len(h.x)
    flat = lambda y: y.reshape(n, TOKENS, 1, PARTS * SIZE)  # noqa: E731
    at, ones = jnp.broadcast_to(jnp.arange(TOKENS), (n, TOKENS)), jnp.ones((n, TOKENS), int)
    one = jnp.ones((1, 1, 1, 1))
    zero = jnp.zeros_like(ones)
    out, _ = attend(
        flat(jnp.einsum("nTpa,npab->nTpb", h.x, w)), flat(h.x), values[:, :, None], q_block=zero, k_block=zero,
        q_pos=at, k_pos=at, q_seg=ones, k_seg=ones, odds=one, relevant=one > 0,
    )  # fmt: skip
    return out[:, :, 0]


def loss_of(w, h: Heads, nudge=0.0):
    """Σ code length in nats, [n]; the head's output is the logits."""
    return bits.to_nats(bits.code_length(_attend(w, h, h.values) + nudge, h.targets)).sum(1)


def product(q, k):
    """W = Q Kᵀ."""
    return jnp.einsum("npar,npbr->npab", q, k)


def _loss(theta, h: Heads):
    return loss_of(product(*theta), h)


def norm(theta):
    """‖·‖_F of each group, [n, PARTS]."""
    return jnp.sqrt(jnp.square(theta).sum((2, 3)))


def _penalty(theta, h: Heads):
    return h.price * (norm(theta[0]) + norm(theta[1])).sum(1)


def _prox(theta, gradient, step, h: Heads):
    amount = (step * h.price)[WIDE]
    return tuple(
        gating.group_soft_threshold(a - step[WIDE] * g, amount, axes=(2, 3))
        for a, g in zip(theta, gradient, strict=True)
    )


def draw(key: jax.Array, n: int) -> Heads:
    """Heads whose targets follow a key of their own block, at PRICES prices each; leaky queries of all sizes."""
    models = -(-n // PRICES)
    keys = jax.random.split(key, 10)
    normal = lambda i, *shape: jax.random.normal(keys[i], (models, *shape))  # noqa: E731
    theta = normal(3, 2, PARTS, SIZE, SIZE) * 10.0 ** jax.random.uniform(
        keys[4], (models, 1, 1, 1, 1), minval=-0.5
    )
    h = Heads(
        x=normal(0, TOKENS, PARTS, SIZE), values=3 * normal(1, TOKENS, VOCABULARY),
        targets=jax.random.randint(keys[2], (models, TOKENS), 0, VOCABULARY), start=theta[:, 1], q=theta[:, 0],
        k=theta[:, 1], price=jnp.zeros(models), leak=normal(5, 3, PARTS, SIZE), eta=jnp.zeros(models),
        w=normal(6, PARTS, SIZE, SIZE),
    )  # fmt: skip
    many = jax.tree.map(lambda leaf: jnp.repeat(leaf, PRICES, 0)[:n], h)
    steep = norm(jnp.einsum("npab,npbr->npar", gradient_of(many), many.k)).max(1)
    rank = jnp.tile(jnp.arange(PRICES), models)[:n]
    eta = 10.0 ** jax.random.uniform(keys[7], (n,), minval=-3, maxval=0.5)
    leak = jax.random.normal(keys[8], (n, 3, PARTS, SIZE))
    return dataclasses.replace(
        many, price=steep * 10.0 ** jnp.linspace(-2, 0.3, PRICES)[rank], eta=eta, leak=leak
    )


def sample(key: jax.Array, n: int) -> Heads:
    """Heads brought to stationary points of loss + group penalties."""
    h = draw(key, n)
    q, k = solve(_loss, _penalty, _prox, (h.q, h.k), h)
    return dataclasses.replace(h, q=q, k=k)


def gradient_of(h: Heads, w=None):
    """M_k, [n, PARTS, SIZE, SIZE]."""
    w = product(h.q, h.k) if w is None else w
    return jax.grad(lambda y: loss_of(y, h).sum())(w)


def spectral(m):
    """‖·‖₂ of 2×2 matrices in closed form."""
    square, det = jnp.square(m).sum((-2, -1)), jnp.linalg.det(m)
    return jnp.sqrt((square + jnp.sqrt(jnp.maximum(jnp.square(square) - 4 * jnp.square(det), 0.0))) / 2)


def mean_bound(h: Heads):
    """The right side of (m), [n, PARTS]."""
    G = jax.grad(lambda e: loss_of(product(h.q, h.k), h, e).sum())(jnp.zeros_like(h.values))
    g = jnp.einsum("nTV,nSV->nTS", G, h.values)
    seen = jnp.tril(jnp.ones((TOKENS, TOKENS), bool))
    spread = jnp.where(seen, g, -jnp.inf).max(2) - jnp.where(seen, g, jnp.inf).min(2)
    apart = jnp.sqrt(jnp.square(h.x[:, :, None] - h.x[:, None]).sum(-1))  # [n, S, S, PARTS]
    diam = jax.lax.cummax(jnp.where(seen[..., None], apart, 0.0).max(2), 1)
    return SCALE / 4 * jnp.einsum("nTp,nT,nTp->np", jnp.sqrt(jnp.square(h.x).sum(-1)), spread, diam)


def settled(h: Heads, MK, MQ, price):
    """Whether both groups of every block meet T6's dichotomy; [n, PARTS], alike along a head."""

    def residual(theta, gradient):
        size = norm(theta)[..., None, None]
        moved = norm(gradient + price[..., None, None] * theta / jnp.where(size > 0, size, 1.0))
        return jnp.where(size[..., 0, 0] > 0, moved, jnp.maximum(norm(gradient) - price, 0.0))

    worst = jnp.maximum(residual(h.q, MK), residual(h.k, MQ)).max(1, keepdims=True)
    return jnp.broadcast_to(worst < jnp.minimum(SETTLED, RELATIVE * price), h.q.shape[:2])


def ray(h: Heads, W, part: int):
    """‖M_k(tW_k)‖₂ at the midpoints of RAY pieces of [0, 1], for one block; [RAY, n]."""
    others = jnp.ones(PARTS).at[part].set(0.0)[:, None, None]

    def at(t):
        return spectral(gradient_of(h, W * (others + t * (1 - others)))[:, part])

    return jax.lax.map(at, (jnp.arange(RAY) + 0.5) / RAY)


def leakage(h: Heads):
    """Actual margin between a key of block r = 0 and one of block 1, and δ of (e)."""
    length = jnp.sqrt(jnp.square(h.leak).sum(-1, keepdims=True))
    cut = h.leak * jnp.minimum(1.0, h.eta[WIDE] / jnp.maximum(length, 1e-300))
    own = jnp.zeros((3, PARTS, 1)).at[0, 0].set(1).at[1, 0].set(1).at[2, 1].set(1)
    xi, xj, xl = jnp.moveaxis(own * h.leak + (1 - own) * cut, 1, 0)
    logit = lambda a, b: SCALE * jnp.einsum("npa,npab,npb->np", a, h.w, b)  # noqa: E731
    m = logit(xi, xj)[:, 0]
    norms = spectral(h.w)
    size = lambda a: jnp.sqrt(jnp.square(a).sum(-1))  # noqa: E731
    foreign = norms[:, 1:].sum(1)
    lost = h.eta * norms[:, 0] * size(xi[:, 0]) + h.eta * norms[:, 1] * size(xl[:, 1])
    lost = lost + jnp.square(h.eta) * (2 * foreign - norms[:, 1])
    return (logit(xi, xj) - logit(xi, xl)).sum(1), m - SCALE * lost

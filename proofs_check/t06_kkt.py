"""T6. The KKT dichotomy: where training rests, a gate or group is zero or worth its price.

F(A, θ) = L(A, θ) + Σ_g λ_g A_g + Σ_h μ_h ‖θ_h‖₂ over gates A_g ∈ [0,1] and groups θ_h, prices ≥ 0, L continuously
differentiable, convex or not. A point is stationary if F falls along no feasible direction. There, and only there:

(a) A_g = 0 ⇒ −∂L/∂A_g ≤ λ_g;   0 < A_g < 1 ⇒ −∂L/∂A_g = λ_g;   A_g = 1 ⇒ −∂L/∂A_g ≥ λ_g.
(b) θ_h = 0 ⇒ ‖∇_h L‖ ≤ μ_h;   θ_h ≠ 0 ⇒ ∇_h L = −μ_h θ_h/‖θ_h‖.
(c) It is a fixed point of the proximal steps for one step size η, hence for all. With r the residual of (a), (b):
    |A⁺ − A| = min(ηr, way to the wall);   ‖θ⁺ − θ‖/η ≤ r ≤ ‖θ⁺ − θ‖·(1/η + 2μ/(‖θ⁺‖ + ‖θ‖)).
(d) At λ=1 a gate of exactly 0 has the finite derivative of the ratio form Σe^s ω v / Σe^s ω with ω = A. The library's
    derivative tends to it for A → 0⁺; at exactly 0 the library defines it as 0, and (a) says nothing there.

Proof. F's one-sided derivative along d is a sum: (∂L/∂A_g + λ_g)·d_g per gate, with d_g ≥ 0 at A_g = 0 and ≤ 0 at
A_g = 1; per group ⟨∇_h L, d_h⟩ + μ_h‖d_h‖ if θ_h = 0, ⟨∇_h L + μ_h θ_h/‖θ_h‖, d_h⟩ else. It is ≥ 0 for all feasible
d iff each summand is: (a), (b). (c): clip(A − η(∂L/∂A + λ), 0, 1) moves by ηr or to the wall. The proximal map is
nonexpansive and has θ as image of θ + ημθ/‖θ‖: the left bound. −∇_h L − (θ⁺−θ)/η is μ times a subgradient
of the norm at θ⁺, and unit vectors differ by at most 2‖x−y‖/(‖x‖+‖y‖): the right one. (d): the position itself
has ω = 1, so the denominator stays above 0. ∎
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from localist_jax.locality import gates as gating
from proofs_check.models import pulls, resting
from proofs_check.models.stationary import SETTLED
from proofs_check.theorem import Claim, Theorem, at_least, at_most, equal

STEPS = (0.01, 1.0, 30.0)  # η of (c)
NEXT_TO_ZERO, NEAR = 1e-200, 1e-3  # A of (d); how far towards the other point a minimum is compared
CHUNK = 512


@partial(jax.jit, static_argnums=1)
def sample(key, n):
    """Objectives at a point where they rest."""
    return resting.rest(resting.draw(key, n))


def attack(key, n):
    """Prices moved onto the threshold: what rests at zero or at one is pulled by exactly its price."""
    return jax.tree.map(lambda leaf: leaf[:n], _onto_threshold(sample(key, max(n, CHUNK))))


@jax.jit
def _onto_threshold(p):
    slope = resting.slopes(p)
    at_end = ((p.gates == 0) | (p.gates == 1)) & (slope[0] < 0)
    zero = resting.size(p.groups) == 0
    return dataclasses.replace(
        p,
        gate_price=jnp.where(at_end, -slope[0], p.gate_price),
        group_price=jnp.where(zero, resting.size(slope[1]), p.group_price),
    )


def attain():
    """A quadratic whose gates and groups rest at zero or one with a pull of exactly their price."""
    p = resting.draw(jax.random.key(0), 1)
    gates = jnp.zeros_like(p.gates).at[:, 0].set(1.0)
    centre = gates + p.gate_price, p.group_price * jnp.full_like(p.groups, resting.SIZE**-0.5)
    return dataclasses.replace(
        p.at(gates, jnp.zeros_like(p.groups)), scale=jnp.ones(1), convex=jnp.ones(1, bool),
        map=jnp.eye(resting.UNKNOWNS)[None], centre=jnp.concatenate([x.reshape(1, -1) for x in centre], 1),
    )  # fmt: skip


def worst(*claims):
    """Return the claim with the least slack among those about all gates or groups of an instance, [n]."""
    flat = Claim(
        *(jnp.concatenate([x.reshape(len(x), -1) for x in parts], 1) for parts in zip(*claims, strict=True))
    )
    at = jnp.argmin(jnp.where(flat.assumed, flat.slack, jnp.inf), 1, keepdims=True)
    return Claim(*(jnp.take_along_axis(x, at, 1)[:, 0] for x in flat))


@jax.jit
def claims(p):
    """(a), (b) and the definition of stationarity where p rests; (c), (d) at the other point."""
    slope = resting.slopes(p)
    left = resting.residual(p, slope)
    rests = (left < SETTLED)[:, None, None]
    pull, steep, norm = -slope[0], resting.size(slope[1]), resting.size(p.groups)
    near = p.at(*(x + NEAR * (y - x) for x, y in ((p.gates, p.other_gates), (p.groups, p.other_groups))))
    return {
        "a: closed": worst(at_most(pull, p.gate_price, rests & (p.gates == 0))),
        "a: between": worst(equal(pull, p.gate_price, rests & (p.gates > 0) & (p.gates < 1))),
        "a: open": worst(at_least(pull, p.gate_price, rests & (p.gates == 1))),
        "b: zero": worst(at_most(steep, p.group_price, rests & (norm == 0))),
        "b: kept": worst(equal(slope[1], -p.group_price * resting.unit(p.groups), rests & (norm > 0))),
        "no way down": at_least(_downhill(p, slope), 0.0, rests[:, 0, 0]),
        "convex: comes to rest": at_most(left, SETTLED, p.convex),
        "convex: the minimum": at_least(resting.objective(near), resting.objective(p), p.convex),
        **_fixed_points(p.other),
        **_at_one(p.other),
    }


def _downhill(p, slope):
    """F's one-sided derivative from p towards the other point."""
    gate, group = p.other_gates - p.gates, p.other_groups - p.groups
    along = (resting.unit(p.groups) * group).sum(2, keepdims=True)
    bend = p.group_price * jnp.where(resting.size(p.groups) > 0, along, resting.size(group))
    parts = (slope[0] + p.gate_price) * gate, slope[1] * group, bend
    return sum(part.sum((1, 2)) for part in parts)


def _fixed_points(p):
    """(c): the worst of several η."""
    slope = resting.slopes(p)
    gate_left = gating.kkt_residual(p.gates, slope[0], p.gate_price)
    group_left = resting.group_residual(p, slope[1])
    room = jnp.where(-slope[0] > p.gate_price, 1 - p.gates, p.gates)
    found = []
    for step in STEPS:
        new = resting.stepped(p, slope, step)
        moved, both = resting.size(new.groups - p.groups), resting.size(p.groups) + resting.size(new.groups)
        bend = jnp.where(both > 0, 2 * p.group_price / jnp.where(both > 0, both, 1.0), 0.0)
        gates = equal(jnp.abs(new.gates - p.gates), jnp.minimum(step * gate_left, room))
        found.append(
            (gates, at_most(moved / step, group_left), at_least(moved * (1 / step + bend), group_left))
        )
    names = "c: gates' steps", "c: groups' steps", "c: groups' residual"
    return {name: worst(*each) for name, each in zip(names, zip(*found, strict=True), strict=True)}


def _at_one(p):
    """(d) at the gates that are exactly 0."""
    beta, closed = jnp.full_like(p.beta, jnp.inf), p.gates == 0
    library = jax.vmap(jax.grad(lambda A: resting.attention_loss(p, A, p.groups, beta).sum()))
    limit, at_zero = library(jnp.stack([jnp.where(closed, NEXT_TO_ZERO, p.gates), p.gates]))
    ratio = jax.grad(lambda A: resting.ratio_loss(p, A).sum())(p.gates)
    return {
        "d: slope next to 0": worst(equal(limit, ratio, closed)),
        "d: slope at 0": worst(equal(at_zero, 0.0, closed)),
    }


def twin(p):
    """A closed gate's slope is within its price on both sides."""
    slope = resting.slopes(p)
    rests = (resting.residual(p, slope) < SETTLED)[:, None, None]
    return worst(at_most(jnp.abs(slope[0]), p.gate_price, rests & (p.gates == 0)))


THEOREM = Theorem(
    "T6", "the KKT dichotomy", sample, claims, twin, "A = 0 ⇒ |∂L/∂A| ≤ λ, two-sided: forgets the box",
    tolerance=5e-9, because="points rest to a KKT residual of 1e-9", attain=attain,
    attained=("a: closed", "a: open", "b: zero"), attack=attack, share=3e-3, chunk=CHUNK,
    certificate=pulls.certificate,
)  # fmt: skip

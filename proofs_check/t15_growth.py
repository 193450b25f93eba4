"""T15. Growth changes nothing at birth: a block that is split acts as before until its children learn.

Block k is split into k and a new k': k' takes some of k's positions, which go on through k's localist units and
through fresh ones of k' whose output weights are 0, and copies k's gates: A'[i,j] = A[π(i),π(j)] with π(k') = k and
π(l) = l otherwise,
so A'[k,k'] = A'[k',k] = A'[k',k'] = A[k,k]. A is the matrix that acts, whose column 0 is 1: a child of block 0 is as
open as block 0.

(a) Every output is unchanged at every dial, whatever λ is per layer, head and text.
(b) Gated pairs add up, n[k,l] = Σ n'[π⁻¹(k), π⁻¹(l)], if k ≥ 1 (a child of block 0 is no longer open by right).
(c) Weights w ∝ n, of a total that does not depend on the number of blocks, add up too: the penalty Σ w·A and its
    derivative along A[k,l] are unchanged, if no asked gate's weight lies below the floor of `pricing.weights`.
    A mean of 1 over the priced gates is *not* such a total: with K blocks in use, block 0 included, it makes
    Σ w = K(K−1), and the penalty would rise by (K+1)/(K−1) at birth.

Proof. ω'_ij = A'[c'_i,c'_j] + (1−A')e^{−β} = ω_ij since π(c'_i) = c_i; position i meets equal units; induct over the
layers: (a). Pairs beyond the window are counted once in both partitions: (b), hence w sums over the fibres of
π, on which A' is constant: (c). ∎
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from localist_jax.locality import measures, pricing
from localist_jax.report import figures
from proofs_check.models import stacks
from proofs_check.models.births import Birth, split
from proofs_check.models.stacks import BLOCKS, CAPACITY
from proofs_check.theorem import Theorem, equal

WINDOW = 2


@partial(jax.jit, static_argnums=1)
def sample(key, n):
    """Any block split in any way, none and all of its positions included; dials per layer, head and text."""
    keys = jax.random.split(key, 4)
    stack, u = stacks.sample(keys[0], n), jax.random.uniform(keys[1], (n, 3))
    text = stack.text
    parent = jnp.floor(u[:, 0] * BLOCKS).astype(int)
    rate = jnp.clip(1.4 * u[:, 1] - 0.2, 0, 1)[:, None, None]
    takes = (jax.random.uniform(keys[2], text.block.shape) < rate) & (text.block == parent[:, None, None])
    reads = jax.random.normal(keys[3], (n, stacks.LAYERS, stacks.MODEL.width, stacks.MODEL.block_units))
    return Birth(stack=stack, parent=parent, takes=takes & (text.positions > 0), reads=reads)


def attack(key, n):
    """Sharp heads, gates next to 0 and dials next to 1, where odds span all magnitudes."""
    birth = sample(key, n)
    return dataclasses.replace(birth, stack=stacks.sharpened(birth.stack))


def _moved(before, after):
    """Largest change of an output, [n]."""
    roots = jnp.broadcast_to(jnp.arange(CAPACITY), (before.background.size, CAPACITY))
    before = before.replace(text=dataclasses.replace(before.text, parent=roots))
    both = jax.tree.map(lambda *x: jnp.concatenate(x), before, after)
    was, now = jnp.split(stacks.outputs(both, WINDOW), 2)
    return jnp.abs(now - was).max((-1, -2, -3))


def _used(stack):
    """Share of pairs n and weights w of the gates that decide any [n, K, K]; where the floor plays no part."""
    t = stack.text
    counted = jax.vmap(lambda b, p, s: measures.pair_counts(b, p, s, WINDOW, CAPACITY))
    gated, _, total = counted(t.block, t.positions, t.segments)
    share = gated / jnp.maximum(total, 1)[:, None, None]
    weight = jnp.where(share > 0, jax.vmap(lambda x: pricing.weights(x, BLOCKS))(share), 0.0)
    least = jnp.where(share > 0, weight, jnp.inf).min((1, 2))
    return share, weight, (least > pricing.SMALLEST_WEIGHT) & (share > 0).any((1, 2))


@jax.jit
def claims(birth):
    """(a) at the ends and anywhere between, (b), (c)."""
    before, (after, origin) = birth.stack, split(birth)
    fibres = jax.nn.one_hot(origin, CAPACITY)
    gathered = lambda x: jnp.einsum("nik,nij,njl->nkl", fibres, x, fibres)  # noqa: E731
    (n0, w0, plain0), (n1, w1, plain1) = _used(before), _used(after)
    inner = birth.parent > 0
    plain = plain0 & plain1 & inner
    found = {"c: penalty": equal(_penalty(after, w1), _penalty(before, w0), plain)}
    ends = [jnp.full_like(before.beta, end) for end in (0.0, jnp.inf)]
    moved = jax.lax.map(
        lambda beta: _moved(before.replace(beta=beta), after.replace(beta=beta)),
        jnp.stack([before.beta, *ends]),
    )
    for name, each in zip(("any dials", "λ=0", "λ=1"), moved, strict=True):
        found[f"a: outputs, {name}"] = equal(each, 0.0)
    found["b: pairs add up"] = equal(jnp.abs(gathered(n1) - n0).max((1, 2)), 0.0, inner)
    found["c: weights add up"] = equal(jnp.abs(gathered(w1) - w0).max((1, 2)), 0.0, plain)
    return found


def _penalty(stack, weight):
    return jnp.einsum("nij,nLNij->n", weight, stack.gates)


@jax.jit
def twin(birth):
    """A child that has fresh units alone, without its parent's."""
    after, origin = split(birth)
    alone = dataclasses.replace(after.text, parent=jnp.broadcast_to(jnp.arange(CAPACITY), origin.shape))
    return equal(_moved(birth.stack, after.replace(text=alone)), 0.0)


def _penalties(birth):
    """Σ w·A with the library's weights as they are, before and after, where (c)'s assumptions hold."""
    (_, w0, plain0), (_, w1, plain1) = _used(birth.stack), _used(after := split(birth)[0])
    keep = np.asarray(plain0 & plain1 & (birth.parent > 0))
    return np.asarray(_penalty(birth.stack, w0))[keep], np.asarray(_penalty(after, w1))[keep]


def measure(birth):
    """By what the penalty with the library's own weights is multiplied at birth: 1 if it is unchanged."""
    before, after = _penalties(birth)
    return {"penalty_factor_at_birth": float(np.median(after[before > 0] / before[before > 0]))}


def figure(birth, found):
    """The penalty before and after birth, and how far outputs move with the parent's units and without."""
    before, after = _penalties(birth)
    moved = {"units kept": found["a: outputs, any dials"].value, "fresh alone": twin(birth).value}
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(8.0, 3.0), layout="constrained")
        left, right = drawn.subplots(1, 2)
        end = np.array([0, before.max(initial=1.0)])
        left.plot(before, after, ".", ms=3, color=figures.BLUE, label="with the library's weights")
        left.plot(end, end, color=figures.ORANGE, lw=1, label="unchanged")
        rise = (BLOCKS + 1) / (BLOCKS - 1)
        left.plot(end, end * rise, ":", color=figures.MUTED, label="with a mean of 1 over all gates")
        left.set_title("penalty Σ w·A after birth against before")
        for (name, value), colour in zip(moved.items(), (figures.GREEN, figures.RED), strict=True):
            right.hist(np.log10(np.maximum(value, 1e-17)), 40, color=colour, alpha=0.7, label=name)
        right.set_title("largest movement of an output, log₁₀ (−17: none)")
        left.legend()
        right.legend()
        return drawn


THEOREM = Theorem(
    "T15", "growth changes nothing at birth", sample, claims, twin, "a child with fresh units alone",
    attack=attack, share=2e-3, chunk=128, figure=figure,
    note="the library's growth (`recruitment.growth`) on its layers",
    found=(
        "the library's weights had a total that grew with the number of blocks, so that a split would "
        "have raised the price of every gate by (K+1)/(K−1); it is constant now. Acting gates are "
        "copied, column 0 included"
    ),
)  # fmt: skip

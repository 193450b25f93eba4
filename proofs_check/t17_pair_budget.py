"""T17. The pair budget: which gates to open, and what the others cost.

Group g = (layer, head, query block k, key block l): m_g its attention mass at λ=0 beyond the always-open pairs, c_g its
causal pairs. One layer at a time, its inputs held fixed.

(a) m_g = Σ_{i∈k} P_i^l = ∂(Σ_i lse_i)/∂ ln ω_g at ω = 1, keys under their own blocks or filed under others. The
    library finds it by attending to one-hot blocks as values, with the window's part taken off.
(b) P are the groups that the library opens for a budget of C pairs, by m/(c + κ), κ ≥ 0; ρ is that density at the first
    group left closed (0 if there is none). c(P) ≤ C, and every set S with c(S) ≤ C has
        m(S) ≤ m(P) + ρ·(C − c(P) + κ(|S| − |P|)).
    So with κ = 0 nothing that uses no more pairs than P lets more mass through: P is optimal for every C that the
    order meets exactly. Elsewhere it is within the mass of the first group left closed, and with ρ(C − c(P)) of that
    mass it is the optimum of the fractional problem. With κ > 0, as the library counts unless told otherwise, P is
    optimal among the sets that use no more pairs *and* no more groups.
(c) Binary gates, ε_i the mass at λ=0 on the keys that are closed: ‖o_i(1) − o_i(0)‖ = ε_i ‖o_i^R − o_i^U‖
    ≤ ε_i diam(V_i), V_i the values that i sees. Σ_i ε_i is the tables' mass on closed gates, so
    Σ_i ‖Δo_i‖ ≤ max_i diam(V_i) · closed mass. The price at λ=1 is −log(1 − ε_i), and over any n queries its mean is
    at least −log(1 − ε̄).

Proof. ∂lse_i/∂ ln ω_ij = α_ij: (a). P holds every group above the density ρ and none below it, so
m(S) − ρ(c + κ)(S) ≤ Σ_g max(0, m_g − ρ(c_g + κ)) = m(P) − ρ(c + κ)(P): (b), and c_b > C − c(P) for the first group b
left closed. T1(e) with p(1) = 1, p(0) = 1 − ε: (c); o^R and o^U lie in the convex hull of V_i; T2; Jensen. ∎
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.locality import budget
from localist_jax.types import struct
from proofs_check import page
from proofs_check.models import localised, tables
from proofs_check.theorem import Theorem, at_least, at_most, equal, pick

GROUPS, CHOICES = 9, 4  # of a knapsack; knapsacks of an instance
SUBSETS = (np.arange(2**GROUPS)[:, None] >> np.arange(GROUPS) & 1).astype(float)
BY_MASS = 1e12  # κ so large that only the mass counts
SHOWN = ("a: filed keys", "c: output", "c: summed", "c: mean price")  # of a localised run
SMALLEST = 1e-280  # masses below it underflow: nothing is claimed about their logarithm


@struct
class Budgets:
    """n layers, and knapsacks beside them.

    Attributes:
      layers: for (a) and (c).
      log_mass: ln m up to a constant, [n, CHOICES, GROUPS]; the largest mass of a knapsack is 1.
      pairs: c, int [n, CHOICES, GROUPS]; groups without pairs have no mass.
      budget: C, int [n, CHOICES].
    """

    layers: tables.Layers
    log_mass: chex.Array
    pairs: chex.Array
    budget: chex.Array

    @property
    def mass(self) -> jax.Array:
        """m [n, CHOICES, GROUPS]."""
        top = jnp.where(self.pairs > 0, self.log_mass, -jnp.inf).max(-1, keepdims=True)
        top = jnp.where(jnp.isfinite(top), top, 0.0)
        return jnp.where(self.pairs > 0, jnp.exp(jnp.where(self.pairs > 0, self.log_mass - top, 0.0)), 0.0)


@partial(jax.jit, static_argnums=1)
def sample(key, n):
    """Masses alike and far apart, as the pairs are, tied, none; pairs from 0 to 1000; budgets that are met and not."""
    keys, shape = jax.random.split(key, 7), (n, CHOICES, GROUPS)
    large = jnp.floor(10.0 ** jax.random.uniform(keys[0], shape, maxval=3))
    small = jax.random.randint(keys[1], shape, 0, 4)
    pairs = pick(keys[2], n, (large, small, 1.0 + 0 * small)).astype(int)
    normal = jax.random.normal(keys[3], shape)
    by_pairs = jnp.log(jnp.maximum(pairs, 1.0))
    log_mass = pick(keys[4], n, (normal, 9 * normal, by_pairs + 0.1 * normal, by_pairs, jnp.round(normal)))
    within = jax.random.uniform(keys[5], (2, n, CHOICES))
    first = jnp.arange(GROUPS) < jnp.floor(GROUPS * within[0] + 1)[..., None]
    order = jnp.argsort(jnp.where(pairs > 0, -log_mass + by_pairs, jnp.inf), -1)
    met = jnp.where(first, jnp.take_along_axis(pairs, order, -1), 0).sum(-1)
    anything = jnp.floor(within[1] * (pairs.sum(-1) + 2)).astype(int)
    return Budgets(
        layers=tables.sample(keys[6], n), log_mass=log_mass, pairs=pairs,
        budget=jnp.where(within[0] * 7 % 1 < 0.5, met, anything),
    )  # fmt: skip


def claims(x: Budgets):
    """(a)–(c)."""
    seen, slopes = jax.vmap(tables.read)(x.layers)
    chosen = jax.vmap(tables.own_table)(seen.table, x.layers.filing)
    return {  # column 0 is always open
        "a: own blocks": equal(seen.table[:, 0, ..., 1:], slopes[:, 0, ..., 1:]),
        "a: filed keys": equal(chosen[..., 1:], slopes[:, 1, ..., 1:]),
        **_chosen(x),
        **effects(seen, x.layers.values, x.layers.gates, x.layers.filing),
    }


def _opened(x: Budgets, prior_pairs: float | None):
    """Asks the library.

    Returns:
      What it opens, bool like the masses; the first group in its order that it leaves closed, or −1; and whether the
      order meets the budget exactly, or everything fits.
    """
    options = {} if prior_pairs is None else {"prior_pairs": prior_pairs}

    def on_host(mass, pairs, limit):
        mass, pairs, limit = (np.asarray(each) for each in (mass, pairs, limit))
        opened, first, met = np.zeros(mass.shape, bool), np.full(limit.shape, -1), np.zeros(limit.shape, bool)
        for at in np.ndindex(limit.shape):
            m, c = mass[at], pairs[at].astype(float)
            opened[at] = budget.open_by_mass(m, c, float(limit[at]), **options)
            order = budget.by_density(m, c, **options)
            left = order[~opened[at][order]]
            first[at] = left[0] if left.size else -1
            met[at] = limit[at] >= c.sum() or limit[at] in (0, *np.cumsum(c[order]))
        return opened, first, met

    shapes = (
        jax.ShapeDtypeStruct(x.pairs.shape, bool),
        jax.ShapeDtypeStruct(x.budget.shape, x.budget.dtype),
        jax.ShapeDtypeStruct(x.budget.shape, bool),
    )
    return jax.pure_callback(on_host, shapes, jax.lax.stop_gradient(x.mass), x.pairs, x.budget)


@struct
class Knapsack:
    """Return what was opened [n, CHOICES], and every set [n, CHOICES, 2^GROUPS].

    Attributes:
      mass, pairs, size: of the groups that were opened.
      any_mass, any_pairs: of every set.
      first, density: m and m/(c + κ) of the first group left closed; 0 where there is none.
      met: bool [n, CHOICES], whether the order meets the budget exactly, or everything fits.
    """

    mass: chex.Array
    pairs: chex.Array
    size: chex.Array
    any_mass: chex.Array
    any_pairs: chex.Array
    first: chex.Array
    density: chex.Array
    met: chex.Array

    def best(self, admitted) -> jax.Array:
        """The most mass among the sets that are admitted."""
        return jnp.where(admitted, self.any_mass, 0.0).max(-1)


def _knapsack(x: Budgets, prior_pairs: float | None) -> Knapsack:
    opened, first, met = _opened(x, prior_pairs)
    take = lambda values: jnp.take_along_axis(values, jnp.maximum(first, 0)[..., None], -1)[..., 0]  # noqa: E731
    m = jnp.where(first >= 0, take(x.mass), 0.0)
    prior = budget.PRIOR_PAIRS if prior_pairs is None else prior_pairs
    return Knapsack(
        mass=jnp.where(opened, x.mass, 0.0).sum(-1), pairs=jnp.where(opened, x.pairs, 0).sum(-1),
        size=opened.sum(-1), any_mass=x.mass @ SUBSETS.T, any_pairs=x.pairs @ SUBSETS.T,
        first=m, density=m / jnp.maximum(take(x.pairs) + prior, 1.0), met=met,
    )  # fmt: skip


def _chosen(x: Budgets):
    """(b): against all subsets, with κ = 0 and as the library counts."""
    found, size = {}, SUBSETS.sum(1)
    plain, usual = _knapsack(x, 0.0), _knapsack(x, None)
    for name, p, prior in (("κ=0", plain, 0.0), ("library's κ", usual, budget.PRIOR_PAIRS)):
        fits = p.any_pairs <= x.budget[..., None]
        more = prior * (size - p.size[..., None])
        over = p.any_mass - p.density[..., None] * ((x.budget - p.pairs)[..., None] + more)
        found[f"b: within the budget, {name}"] = at_most(p.pairs, x.budget)
        found[f"b: any set, {name}"] = at_most(jnp.where(fits, over, -jnp.inf).max(-1), p.mass)
    fewer = (usual.any_pairs <= usual.pairs[..., None]) & (size <= usual.size[..., None])
    most = plain.best(plain.any_pairs <= x.budget[..., None])
    return found | {
        "b: optimal, budget met": equal(plain.mass, most, plain.met),
        "b: within one group": at_most(most - plain.mass, plain.first, ~plain.met),
        "b: no more pairs nor groups": equal(usual.mass, usual.best(fewer)),
    }


def effects(seen: tables.Seen, values, gates, filing):
    """(c) for n layers; what `tables.see` read of them, and values [n, B, S, G, V]."""
    one = jax.vmap(tables.effect)(seen, values)
    closed = jax.vmap(tables.closed_mass)(seen.table, gates, filing)
    split = (one.kept > SMALLEST) | (one.lost == 0)
    widest = one.diameter.max((1, 3))  # by layer and head
    reads = seen.visible.any(-1)
    return {
        "c: output": equal(one.moved, one.lost * one.apart, split),
        "c: diameter": at_most(one.moved, one.lost * one.diameter),
        "c: tables": equal(one.lost.sum((1, 3)), closed),
        "c: summed": at_most(one.moved.sum((1, 3)), widest * closed),
        "c: price": equal(seen.price, -jnp.log2(jnp.where(reads & split, one.kept, 1.0)), reads & split),
        "c: mean price": _mean_price(seen, one, reads),
        "c: mean price where keys close": _mean_price(seen, one, seen.closed.any(-1)),
    }


def _mean_price(seen, one, chosen):
    n = jnp.maximum(chosen.sum((1, 3)), 1)
    mean = lambda values: jnp.where(chosen, values, 0.0).sum((1, 3)) / n  # noqa: E731
    usable = chosen.any((1, 3)) & (~chosen | (one.kept > SMALLEST)).all((1, 3))
    return at_least(mean(seen.price), -jnp.log2(jnp.where(usable, mean(one.kept), 1.0)), usable)


def twin(x: Budgets):
    """(b) for groups sorted by their mass alone."""
    p = _knapsack(x, BY_MASS)
    return equal(p.mass, p.best(p.any_pairs <= p.pairs[..., None]))


def attain() -> Budgets:
    """Uniform attention; the last query of each text may not look at keys that lie at 1 while the others lie at 0."""
    x = sample(jax.random.key(0), 1)
    T, shape = tables.POSITIONS, x.layers.text.block.shape
    at = jnp.broadcast_to(jnp.arange(T), shape)
    block = jnp.where(at == 0, 0, jnp.where(at == T - 1, 1, 2))
    text = tables.Text(block=block, positions=at, segments=jnp.ones(shape, int))
    far = (at > 0) & (at < T - tables.MODEL.window)
    layers = tables.Layers(
        params=x.layers.params, states=jnp.zeros_like(x.layers.states), text=text,
        gates=jnp.ones_like(x.layers.gates).at[:, :, 1].set(False), filing=jnp.zeros_like(x.layers.filing),
        values=jnp.broadcast_to(far[..., None, None], x.layers.values.shape).astype(float),
    )  # fmt: skip
    return Budgets(layers=layers, log_mass=x.log_mass, pairs=x.pairs, budget=x.pairs.sum(-1))


def certificate(run):
    """(a) and (c) on every localist layer of a localised run, on held-out text; None of another run."""
    if not localised.speaks_of(run):
        return None
    x = localised.opened(run)
    chosen = jax.vmap(tables.own_table)(x.seen.table, x.filing)
    found = effects(x.seen, x.values, x.gates, x.filing)
    found["a: filed keys"] = equal(chosen[..., 1:], x.slopes[..., 1:])
    claims = {name: at_least(c.slack, -localised.FLOAT32, c.assumed) for name, c in found.items()}
    if run.settings.model.dtype == "float32":
        claims["the layers are the model's"] = at_most(x.off, localised.FLOAT32)
    return claims, page.agreement({name: found[name] for name in SHOWN})


def measure(x: Budgets):
    """How much of the mass the prior pair costs where it asks for another set."""
    p = jax.jit(lambda x: _knapsack(x, None))(x)
    best = p.best(p.any_pairs <= p.pairs[..., None])
    lost = 1 - p.mass / jnp.where(best > 0, best, 1.0)
    lost = jnp.where(best > 0, lost, 0.0)
    return {"mass_lost_by_the_prior_pair_mean": lost.mean(), "mass_lost_by_the_prior_pair_most": lost.max()}


THEOREM = Theorem(
    "T17", "the pair budget", sample, claims, twin, "(b) for groups sorted by mass alone",
    attain=attain, attained=("c: diameter", "c: summed", "c: mean price where keys close"), share=3e-3, chunk=128,
    certificate=certificate,
    found=(
        "the library counts every group with one more pair than it has; its choice is then optimal among those with no "
        "more pairs and no more groups, and all others exceed it by at most that pair's density for each group more"
    ),
)  # fmt: skip

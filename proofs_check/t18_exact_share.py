"""T18. An exact share: what to add to some logits so that their keys get a given share of the attention.

One query, attention α under any dial. T a set of visible keys with mass m ∈ (0, 1), φ ∈ [0, 1) the share it is to have,
b = max(0, logit φ − logit m), logit m = lse over T − lse over the rest, of the dialled logits s + ln ω. α' has b added
to the logits of T.

(a) α'(T) = max(φ, m). Where T is empty or all there is, or closed (ω = 0), b = 0.
(b) Every q with q(T) ≥ φ has KL(q‖α) ≥ d(φ‖m) for φ ≥ m, and α' attains it: the price of the share.
(c) φ ≤ m: b = 0 and the price is 0.
(d) Log-odds add up. For T = U = V∖R, 0 < λ < 1: the shift that gives U the mass it had at λ=0 is β. The odds of a block
    multiplied by e^b do the same as its logits raised by b; no bound on the logits is needed.
(e) Disjoint T_1 … T_r with masses m_j > 0, m_0 = 1 − Σm > 0, shares φ_j > 0, φ_0 = 1 − Σφ > 0: the shifts
    b_j = ln(φ_j/φ_0) − ln(m_j/m_0) give α'(T_j) = φ_j. Every q with q(T_j) = φ_j for all j has
    KL(q‖α) ≥ Σ_{j≥0} φ_j log(φ_j/m_j), and α' attains it; if no b_j is negative, so has every q with q(T_j) ≥ φ_j.

Proof. b multiplies all of T by one factor, so its odds against the rest are e^b m/(1−m) = φ/(1−φ): (a), and what lies
within T and outside keeps its proportions. KL(q‖α) = d(q(T)‖m) + q(T) KL(q^T‖α^T) + q(V∖T) KL(q^{V∖T}‖α^{V∖T}), and
d(·‖m) increases on [m, 1]: (b), (c). T1(b) with U for R: (d). In (e) the factors are φ_j m_0/(φ_0 m_j) on T_j and 1
elsewhere, in all 1/c with c = φ_0/m_0; the divergence splits as before. For q(T_j) ≥ φ_j: KL(q‖α) = KL(q‖α')
+ E_q log(α'/α) ≥ log c + Σ q(T_j) b_j log e, least at q(T_j) = φ_j where all b_j ≥ 0. ∎
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from localist_jax import bits
from localist_jax.locality import share
from localist_jax.types import struct
from proofs_check.models import rows
from proofs_check.theorem import Theorem, at_least, equal, pick

SETS = 3  # r of (e); the first of them is T
BLOCK = 2  # whose odds are raised in (d)
SMALLEST = 1e-280  # masses below it underflow: nothing is claimed about their logarithm
STEEP = 1e-5  # masses nearer to 0 or 1 say too little about their own log-odds
EXTREME = 30.0  # largest logit of a share
FREE, AS_IT_IS, NOTHING = range(3)  # φ is free; m itself; 0


@struct
class Wishes:
    """Rows, sets of their keys, the shares that these are to have, and a rival q for each query.

    Attributes:
      row: the queries.
      label: int [n, S]; keys of set j carry j, keys in no set 0.
      ask: logits of the shares, [n, 1 + SETS]: φ = σ(ask_1) of one set, softmax(ask) of several.
      kind: int [n], where φ comes from.
      tilt, excess: of the rival, as in T2: [n, S] and [n].
    """

    row: rows.Rows
    label: chex.Array
    ask: chex.Array
    kind: chex.Array
    tilt: chex.Array
    excess: chex.Array


def sample(key, n):
    """Rows of T1's sample with sets drawn over them."""
    keys = jax.random.split(key)
    return wishes(keys[0], rows.sample(keys[1], n))


def wishes(key, row: rows.Rows) -> Wishes:
    """Sets at random, of one key, empty, of everything; shares from e^−30 to 1 − e^−30, of exactly m and of 0."""
    (n, S), keys = row.logits.shape, jax.random.split(key, 8)
    drawn = jax.random.randint(keys[0], (n, S), 0, 1 + SETS)
    last = jnp.broadcast_to(jnp.arange(S) == S - 1, (n, S))
    label = pick(keys[1], n, (*[drawn] * 5, drawn > 0, row.irrelevant, last, drawn * 0, drawn * 0 + 1))
    reach = 10.0 ** jax.random.uniform(keys[2], (n, 1), minval=-2, maxval=1.1)
    scale = 10.0 ** jax.random.uniform(keys[3], (n, 1), minval=-3, maxval=1)
    kind = pick(
        keys[4], n, (jnp.full(n, FREE), jnp.full(n, FREE), jnp.full(n, AS_IT_IS), jnp.full(n, NOTHING))
    )
    return Wishes(
        row=row, label=label.astype(int), ask=reach * jax.random.normal(keys[5], (n, 1 + SETS)),
        kind=kind.astype(int), tilt=scale * jax.random.normal(keys[6], (n, S)),
        excess=jax.random.uniform(keys[7], (n,), minval=-40, maxval=5),
    )  # fmt: skip


def claims(x: Wishes):
    """(a)–(e)."""
    now = rows.read(x.row)
    return _one(x, now) | _together(x, now) | _several(x, now)


def _one(x: Wishes, now: rows.Read):
    """(a)–(c)."""
    T = x.label == 1
    m, outside = now.mass(T), now.mass(~T)
    target, rest, some = _odds(x.row, now, T)
    phi = _wanted(x, m)
    b = share.shift_of_lse(target, rest, phi)
    after = rows.read(_raised(x.row, b[:, None] * T))
    price, least = share.price(m, phi), jnp.maximum(phi, m)
    usable = some & (m > SMALLEST) & (outside > SMALLEST)
    q = _rival(x, now.alpha, [~T, T], [(1 - least) * jax.nn.sigmoid(-x.excess)])
    return {
        "a: exact": equal(after.mass(T), least, some),
        "a: nothing to shift": equal(b, 0.0, ~some),
        "b: any q": at_least(bits.kl(q, now.alpha), price, usable & _covered(q, now.alpha)),
        "b: α' attains": equal(
            bits.kl(after.alpha, now.alpha), price, usable & _covered(after.alpha, now.alpha)
        ),
        "c: enough already": equal(b + price, 0.0, usable & (phi <= m) & (jnp.minimum(m, outside) > STEEP)),
    }


def _together(x: Wishes, now: rows.Read):
    """(d)."""
    dense, U = rows.read(x.row.at(0.0)), x.row.irrelevant
    before = dense.mass(U)
    target, rest, some = _odds(x.row, now, U)
    inner = some & (x.row.locality > 0) & (x.row.locality < 1)
    balanced = (before > STEEP) & (before < 1 - STEEP)
    back = share.shift_of_lse(target, rest, jnp.clip(before, STEEP, 1 - STEEP))

    S, K = x.label.shape[1], x.row.gates.shape[1]
    T = (x.row.block == BLOCK) & (jnp.arange(S) < S - 1)  # the position itself lies in the window
    target, rest, some = _odds(x.row, now, T)
    m = now.mass(T)
    b = share.shift_of_lse(target, rest, _wanted(x, m))
    held = some & (b < 600)  # e^b is a float
    odds = jnp.where(held, b, 0.0)[:, None] * (jnp.arange(K) == BLOCK)
    return {
        "d: U has its mass back": equal(back, x.row.beta, inner & balanced),
        "d: by odds": equal(rows.read(x.row, odds).mass(T), jnp.maximum(_wanted(x, m), m), held),
    }


def _several(x: Wishes, now: rows.Read):
    """(e); sets without a key that is open are left out."""
    parts = [x.label == j for j in range(1 + SETS)]
    lse = jnp.stack([_odds(x.row, now, part)[0] for part in parts], 1)
    m, some = jnp.stack([now.mass(part) for part in parts], 1), jnp.isfinite(lse)
    phi = jnp.where(some, jax.nn.softmax(x.ask), 0.0)[:, 1:]
    left = 1 - phi.sum(1)
    shifts = share.shifts_of_lse(lse[:, 1:], lse[:, 0], phi)
    possible = some[:, 0] & some[:, 1:].any(1) & (left > 1e-12)
    after = rows.read(_raised(x.row, jnp.take_along_axis(jnp.pad(shifts, ((0, 0), (1, 0))), x.label, 1)))
    off = jnp.abs(jnp.stack([after.mass(part) for part in parts[1:]], 1) - phi).max(1)

    stated = jnp.concatenate([left[:, None], phi], 1)
    usable = possible & (jnp.where(some, m, 1.0) > SMALLEST).all(1)
    price = bits.kl(stated, jnp.where(some, m, 1.0))
    same = _rival(x, now.alpha, parts, phi.T)
    more = jnp.where(some[:, 1:], jax.nn.softmax(-x.ask[:, 1:]), 0.0) * jax.nn.sigmoid(x.excess)[:, None]
    above = _rival(x, now.alpha, parts, (phi + left[:, None] * more).T)
    upward = (jnp.where(some[:, 1:], shifts, 0.0) >= 0).all(1)
    return {
        "e: exact": equal(off, 0.0, possible),
        "e: any q with these": at_least(bits.kl(same, now.alpha), price, usable & _covered(same, now.alpha)),
        "e: any q with more": at_least(
            bits.kl(above, now.alpha), price, usable & upward & _covered(above, now.alpha)
        ),
        "e: α' attains": equal(
            bits.kl(after.alpha, now.alpha), price, usable & _covered(after.alpha, now.alpha)
        ),
    }


def _odds(row: rows.Rows, now: rows.Read, keys):
    """lse over some keys and over the others, and whether both have open ones."""
    open_ = row.visible & (now.omega > 0)
    logits = row.logits + jnp.log(jnp.where(open_, now.omega, 1.0))
    target, rest = _lse(logits, open_ & keys), _lse(logits, open_ & ~keys)
    return target, rest, jnp.isfinite(target) & jnp.isfinite(rest)


def _lse(logits, keys):
    top = jnp.where(keys, logits, -jnp.inf).max(1, keepdims=True)
    weight = jnp.where(keys, jnp.exp(jnp.where(keys, logits - top, 0.0)), 0.0).sum(1)
    return jnp.where(keys.any(1), top[:, 0] + jnp.log(jnp.where(keys.any(1), weight, 1.0)), -jnp.inf)


def _wanted(x: Wishes, mass):
    as_it_is = jnp.minimum(mass, 1 - jnp.finfo(mass.dtype).epsneg)
    free = jax.nn.sigmoid(jnp.clip(x.ask[:, 1], -EXTREME, EXTREME))
    return jnp.select([x.kind == AS_IT_IS, x.kind == NOTHING], [as_it_is, 0.0], free)


def _raised(row: rows.Rows, added):
    return dataclasses.replace(row, logits=row.logits + added)


def _rival(x: Wishes, alpha, parts, masses):
    """A distribution with these masses on all parts but the first, whose mass is the rest; tilted within each.

    With two parts the mass given is that of the first.
    """
    weights = jnp.stack([jnp.where(part, alpha * jnp.exp(x.tilt), 0.0) for part in parts])
    total = weights.sum(2, keepdims=True)
    shares = weights / jnp.where(total > 0, total, 1.0)
    masses = jnp.stack([*masses])
    rest = 1 - masses.sum(0)
    each = [masses[0], rest] if len(parts) == 2 else [rest, *masses]
    return sum(s * w[:, None] for s, w in zip(shares, each, strict=True))


def _covered(q, alpha):
    """Whether α has not underflowed where q is positive; else the divergence says nothing."""
    return (jnp.where(alpha > 0, 0.0, q).sum(1) == 0) & (jnp.abs(q.sum(1) - 1) < 1e-9)


def twin(x: Wishes):
    """ln(φ/m) added: right only where the rest is not renormalised."""
    now, T = rows.read(x.row), x.label == 1
    m = now.mass(T)
    phi = _wanted(x, m)
    usable = _odds(x.row, now, T)[2] & (m > SMALLEST) & (phi > m)
    b = jnp.where(usable, jnp.log(jnp.where(usable, phi / m, 1.0)), 0.0)
    return equal(rows.read(_raised(x.row, b[:, None] * T)).mass(T), phi, usable)


def attain() -> Wishes:
    """No tilt, no excess: q = α'. All sets ask for more than they have."""
    row = rows.constant(4, 5, 0.4, 0.8)
    label = jnp.array([[1, 1, 2, 3, 0, 1, 2, 0, 0]])
    return Wishes(
        row=row, label=label, ask=jnp.log(jnp.array([[0.02, 0.5, 0.28, 0.2]])), kind=jnp.zeros(1, int),
        tilt=jnp.zeros(label.shape), excess=jnp.full(1, -jnp.inf),
    )  # fmt: skip


def on_checkpoint(run):
    """Attention of a trained run's heads on held-out text, with sets drawn over it."""
    return wishes(jax.random.key(0), rows.of_run(run))


THEOREM = Theorem(
    "T18", "an exact share", sample, claims, twin, "adding ln(φ/m) to the logits",
    attain=attain, attained=("b: any q", "e: any q with these", "e: any q with more"), share=0.2,
    on_checkpoint=on_checkpoint,
    found=(
        "several shares asked for at once are the projection on 'at least' only where no shift is negative; "
        "elsewhere they are the projection on the exact shares"
    ),
)  # fmt: skip

"""T9. Redundancy of anchors against entropy: how many are enough, and how many are too many.

A query sees n keys, r of them exchangeable anchors with logit m (nats, any sign), the others with logit 0.

(a) Their mass is F(r) = r/(r + (n−r)·e^{−m}), increasing in r.
(b) The entropy is H(r) = h(F) + F log r + (1−F) log(n−r) bits. For m ≠ 0 it has a single minimum over real r,
    at r*/n = (m·e^m − e^m + 1)/(e^m−1)², which is where F = F* := 1/(1−e^{−m}) − 1/m. Up to there one more anchor
    raises F *and* lowers H; beyond, fidelity is bought with entropy. r*/n → ½ for m → 0, where H = log n for all r.
(c) F(r) ≥ F0 iff r ≥ r_min = max(1, ⌈n/(1 + e^m·(1−F0)/F0)⌉): `anchors.least_redundant`.

Proof. Z = r·e^m + n−r, F = r·e^m/Z, F' = n·e^m/Z² > 0: (a). In nats H = ln Z − mF, so Z²H' = (e^m−1)Z − m·n·e^m,
which increases in r with slope (e^m−1)² and vanishes at Z = m·n·e^m/(e^m−1): (b). Solve F = F0 for r: (c). ∎
"""

import chex
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from localist_jax import bits
from localist_jax.attention import attend
from localist_jax.locality import anchors, certificates
from localist_jax.report import figures
from localist_jax.types import struct
from proofs_check.theorem import Theorem, at_least, at_most, by_library, equal, pick

KEYS, MANY = 24, 10**5  # keys read by `attend`; keys for which a formula has to do
ANCHOR, OTHER = 1, 2  # blocks


@struct
class Crowd:
    """n anchored queries.

    Attributes:
      keys, anchors: n and r, int [n].
      margin: m [n], nats; wanted: F0 [n] as a logit.
      many: int [n], another number of keys, up to MANY.
    """

    keys: chex.Array
    anchors: chex.Array
    margin: chex.Array
    wanted: chex.Array
    many: chex.Array


def sample(key: jax.Array, n: int) -> Crowd:
    """Margins of either sign from 0.001 to 60 nats and exactly 0; one key, one anchor, all anchors; F0 up to 1."""
    keys = jax.random.split(key, 7)
    size = 10.0 ** jax.random.uniform(keys[0], (n,), minval=-3.0, maxval=1.8)
    margin = pick(keys[1], n, (size, size, size, -size, jnp.zeros(n)))
    count = jax.random.randint(keys[2], (n,), 1, KEYS + 1)
    near = margin + 4 * jax.random.normal(keys[3], (n,))  # F0 that some r between 1 and n just reaches
    return Crowd(
        keys=count, anchors=jax.random.randint(keys[4], (n,), 1, count + 1), margin=margin,
        wanted=pick(keys[5], n, (near, near, 5 * near, jnp.zeros(n), jnp.full(n, jnp.inf))),
        many=(MANY ** jax.random.uniform(keys[6], (n,))).astype(int),
    )  # fmt: skip


def _read(keys, r, margin, size: int = KEYS):
    """F, 1−F and H by `attend`: the last r of n keys are anchors, the very last is the position itself."""
    n = len(keys)
    at = jnp.broadcast_to(jnp.arange(size), (n, size))
    anchor = at >= size - r[:, None]
    out, stats = attend(
        jnp.ones((n, 1, 1, 1)), jnp.where(anchor, margin[:, None], 0.0)[:, :, None, None],
        (~anchor).astype(float)[:, :, None, None],
        q_block=jnp.full((n, 1), ANCHOR), k_block=jnp.where(anchor, ANCHOR, OTHER),
        q_pos=jnp.full((n, 1), size - 1), k_pos=at, q_seg=jnp.ones((n, 1), int),
        k_seg=(at >= size - keys[:, None]).astype(int),
        odds=jnp.ones((1, 1, 3, 3)), relevant=jnp.broadcast_to(jnp.eye(3, dtype=bool), (n, 1, 3, 3)), stats="open",
    )  # fmt: skip
    assert stats is not None
    return stats.fidelity[:, 0, 0], out[:, 0, 0, 0], stats.entropy_bits[:, 0, 0]


def turning_fidelity(margin):
    """F* = 1/(1−e^{−m}) − 1/m; by its series near m = 0, where the difference cancels."""
    small = jnp.abs(margin) < 0.1
    m = jnp.where(small, 1.0, margin)
    series = 0.5 + margin / 12 - margin**3 / 720 + margin**5 / 30240
    return jnp.where(small, series, -1 / jnp.expm1(-m) - 1 / m)


def turning_share(margin):
    """r*/n = F*·m/(e^m − 1)."""
    m = jnp.where(margin == 0, 1.0, margin)
    return turning_fidelity(margin) * jnp.where(margin == 0, 1.0, m / jnp.expm1(m))


def claims(x: Crowd):
    """(a)–(c); (c) in log-odds, where one anchor more or less shows at every F0."""
    n, r, m = x.keys, x.anchors, x.margin
    F, rest, H = _read(n, r, m)
    more_F, _, more_H = _read(n, jnp.minimum(r + 1, n), m)
    beyond, short = (
        n * turning_share(-m),
        n * turning_share(m),
    )  # n − r* and r*: the smaller one is exact to rounding
    falls = jnp.where(m < 0, n - r - 1 >= beyond, r + 1 <= short)
    rises = jnp.where(m < 0, n - r <= beyond, r >= short)
    F0 = jnp.clip(jax.nn.sigmoid(x.wanted), 1e-300, 1.0)
    asked = jnp.log(F0) - jnp.log1p(-F0)
    blur = jnp.where(F0 < 1, 2 * jnp.finfo(float).eps / (1 - F0), 0.0)  # F0's own rounding, in log-odds
    least = _least(n, m, F0)
    enough, fewer = (_log_odds(*_read(n, jnp.maximum(k, 1), m)) for k in (least, least - 1))
    many_least = _least(x.many, m, F0)
    many = [_bound(m, jnp.maximum(k, 1), x.many) for k in (many_least, many_least - 1)]
    log_others = jnp.log2(jnp.maximum(n - r, 1))
    return {
        "a: fidelity": equal(F, r / (r + jnp.where(r < n, (n - r) * jnp.exp(-m), 0.0))),
        "a: increases": at_least(more_F, F),
        "b: entropy": equal(H, bits.binary_entropy(F) + F * jnp.log2(r) + rest * log_others),
        "b: falls up to r*": at_most(more_H, H, (r < n) & falls),
        "b: rises from r*": at_least(more_H, H, (r < n) & rises),
        "b: flat at r*": equal(_slope(jnp.abs(m)), 0.0),
        "c: r_min reaches F0": at_least(enough, asked - blur, least < n),
        "c: r_min − 1 does not": at_most(fewer, asked, (least > 1) & (F0 < 1)),
        "c: many keys, reached": at_least(many[0], F0),
        "c: many keys, least": at_most(many[1], F0, many_least > 1),
    }


def _slope(margin):
    """dH/d ln r in bits at r*, from the formula in (b); real r, a crowd of 1."""

    def entropy(log_r):
        r = jnp.exp(log_r)
        F = r / (r + (1 - r) * jnp.exp(-margin))
        return bits.binary_entropy(F) + F * jnp.log2(r) + (1 - F) * jnp.log2(1 - r)

    return jax.jvp(entropy, (jnp.log(turning_share(margin)),), (jnp.ones_like(margin),))[1]


def _log_odds(F, rest, _):
    both = (F > 0) & (rest > 0)
    return jnp.where(both, jnp.log(jnp.where(both, F, 1.0)) - jnp.log(jnp.where(both, rest, 1.0)), jnp.inf)


def _least(keys, margin, fidelity):
    least = lambda *given: anchors.least_redundant(*given).astype(float)  # noqa: E731
    return by_library(least, jnp.zeros_like(margin), keys, margin, fidelity).astype(int)


def _bound(margin, r, n):
    """T3's bound, which constant logits attain; rounded down."""
    formula = 1 / (1 + jnp.where(r < n, (n - r) / r * jnp.exp(-margin), 0.0))
    return by_library(certificates.fidelity_bound, formula, jnp.zeros_like(margin), margin, r, n - r)


def twin(x: Crowd):
    """The minimum of H where half of the attention lies on the anchors."""
    F, _, H = _read(x.keys, x.anchors, x.margin)
    more_H = _read(x.keys, jnp.minimum(x.anchors + 1, x.keys), x.margin)[2]
    return at_least(more_H, H, (F >= 0.5) & (x.anchors < x.keys))


def attain() -> Crowd:
    """Four anchors among sixteen keys with e^m = 9 hold exactly three quarters."""
    return Crowd(
        keys=jnp.array([16]), anchors=jnp.array([4]), margin=jnp.log(jnp.array([9.0])),
        wanted=jnp.log(jnp.array([3.0])), many=jnp.array([16]),
    )  # fmt: skip


def figure(_, __) -> Figure:
    """F and H against the share of anchors, with the point where more of them begin to cost entropy."""
    n = 64
    r = jnp.arange(1, n + 1)
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(7.8, 2.8), layout="constrained")
        fidelity, entropy = drawn.subplots(1, 2)
        for m, colour in ((1.0, figures.BLUE), (3.0, figures.GREEN), (6.0, figures.PURPLE)):
            F, _, H = map(np.asarray, _read(jnp.full(n, n), r, jnp.full(n, m), n))
            at = max(1.0, float(turning_share(jnp.array(m))) * n)
            for axes, curve in ((fidelity, F), (entropy, H)):
                axes.plot(r / n, curve, color=colour, label=f"m = {m:g} nats")
                axes.plot(at / n, np.interp(at, r, curve), "o", ms=5, color=figures.ORANGE)
        fidelity.set_title("mass on the anchors F")
        entropy.set_title("entropy H, bits")
        for axes in (fidelity, entropy):
            axes.set_xlabel(f"share of anchors among {n} keys; dots: r*")
        fidelity.legend()
        return drawn


THEOREM = Theorem(
    "T9", "anchors: redundancy against entropy", sample, claims, twin, "the minimum of H lies at F = ½",
    because="float64, a few hundred operations; (c) in log-odds, where one anchor changes at least 1/n",
    attain=attain, attained=("c: r_min reaches F0",), figure=figure,
    found="the minimum is where F = 1/(1−e^{−m}) − 1/m, and m > 0 is not needed",
)  # fmt: skip

"""Small models under a rule, one token or whole texts at a time: the models of T14."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.rules import price
from localist_jax.types import struct
from proofs_check.theorem import pick

TOKENS, VOCABULARY = 7, 3  # of one distribution; of the texts, which have three tokens
SMALLEST = 1e-280  # masses below it underflow: nothing is claimed about their logarithm


@struct
class Ruled:
    """n models under a rule.

    Attributes:
      logits: of one token [n, V]; allowed: bool [n, V]; rival: logits of r [n, V].
      first, second, third: logits after no, one and two tokens, [n, 3], [n, 3, 3], [n, 3, 3, 3].
      masks: which tokens are allowed there, bool of the same shapes.
    """

    logits: chex.Array
    allowed: chex.Array
    rival: chex.Array
    first: chex.Array
    second: chex.Array
    third: chex.Array
    masks: tuple[chex.Array, chex.Array, chex.Array]


def sample(key: jax.Array, n: int) -> Ruled:
    """Logits from 0.01 to 300 nats; rules that allow one token, all, none; texts with and without dead ends."""
    keys = jax.random.split(key, 4)
    V = VOCABULARY
    sizes = TOKENS, TOKENS, V, V**2, V**3
    # Two draws, cut into parts: they compile faster than one for each part.
    normal = jnp.split(jax.random.normal(keys[0], (n, sum(sizes))), np.cumsum(sizes)[:-1], 1)
    uniform = jnp.split(
        jax.random.uniform(keys[1], (n, TOKENS + V**2 + V**3 + 4)), np.cumsum((TOKENS, V**2, V**3)), 1
    )
    coin, second, third, knobs = uniform
    size = 10.0 ** (4.5 * knobs[:, :1] - 2)
    some = coin < knobs[:, 1:2]
    one = jax.nn.one_hot(jax.random.randint(keys[2], (n,), 0, TOKENS), TOKENS)
    allowed = pick(keys[3], n, (some, some, one, 1 - one, jnp.ones_like(one))) > 0
    third = (third < 0.1 + 0.9 * knobs[:, 2:3]).reshape(n, V, V, V)
    second = third.any(3) & (second < 0.9).reshape(n, V, V)
    blind = knobs[:, 3] < 0.3  # allows tokens that lead to dead ends
    small = jnp.minimum(size, 30.0)
    return Ruled(
        logits=size * normal[0], allowed=allowed, rival=jnp.minimum(size, 3.0) * normal[1], first=small * normal[2],
        second=(small * normal[3]).reshape(n, V, V), third=(small * normal[4]).reshape(n, V, V, V),
        masks=(second.any(2) | blind[:, None], second | blind[:, None, None], third),
    )  # fmt: skip


def condition(logits, allowed):
    """q = p(· | A) and its price in bits, by the library; q is all zeros where nothing is allowed (price ∞)."""
    free, cost, possible = price.condition(logits, allowed)
    return jnp.where(
        possible[..., None], jax.nn.softmax(jnp.where(possible[..., None], free, 0.0)), 0.0
    ), cost


@struct
class Masked:
    """Token by token: Q over texts [n, 27], its expected price [n], and whether it meets no dead end."""

    q: chex.Array
    price: chex.Array
    alive: chex.Array


@struct
class Whole:
    """Whole texts: p and p(· | C) over texts [n, 27], and p(C)."""

    p: chex.Array
    q: chex.Array
    mass: chex.Array


def texts(x: Ruled) -> tuple[Masked, Whole]:
    """Q token by token, and p on whole texts, by enumeration."""
    n = len(x.first)
    by_step = [jax.nn.softmax(logits) for logits in (x.first, x.second, x.third)]
    conditioned = [
        condition(logits, mask) for logits, mask in zip((x.first, x.second, x.third), x.masks, strict=True)
    ]
    first, second, third = (q for q, _ in conditioned)
    reached = jnp.ones(n), first, first[:, :, None] * second  # the probability of each past under Q
    costs = [cost for _, cost in conditioned]
    expected = [
        jnp.where(w > 0, w * jnp.where(w > 0, cost, 0.0), 0.0) for w, cost in zip(reached, costs, strict=True)
    ]
    alive = [
        ~((w > 0) & jnp.isinf(cost)).reshape(n, -1).any(1) for w, cost in zip(reached, costs, strict=True)
    ]
    join = lambda a, b, c: (a[:, :, None, None] * b[:, :, :, None] * c).reshape(n, -1)  # noqa: E731
    p, complies = join(*by_step), join(*x.masks) > 0
    q, cost = condition(jnp.log(p), complies)
    masked = Masked(
        q=join(first, second, third), price=sum(e.reshape(n, -1).sum(1) for e in expected),
        alive=alive[0] & alive[1] & alive[2],
    )  # fmt: skip
    return masked, Whole(p=p, q=q, mass=2.0**-cost)

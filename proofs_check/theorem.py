"""The parts of a check of a theorem: claims, instances that hold and attain them, attacks, a wrong twin.

A module per theorem states it in its docstring and gives `THEOREM`. The claims call the library's own
functions on many instances at once, in float64, so that a bug there is found here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from matplotlib.figure import Figure

Instance = Any  # a pytree; every leaf has the instances on its first axis


class Claim(NamedTuple):
    """value ≤ bound, value ≥ bound or value = bound, for n instances.

    Attributes:
      value, bound: [n].
      slack: [n], how far the claim is from being violated, relative to 1 + |bound|; for an equation −|difference|.
      assumed: bool [n], where the theorem's assumptions hold; elsewhere nothing is claimed.
    """

    value: jax.Array
    bound: jax.Array
    slack: jax.Array
    assumed: jax.Array


def at_most(value, bound, assumed=True) -> Claim:
    """The claim value ≤ bound."""
    return _claim(value, bound, assumed, lambda v, b: b - v)


def at_least(value, bound, assumed=True) -> Claim:
    """The claim value ≥ bound."""
    return _claim(value, bound, assumed, lambda v, b: v - b)


def equal(value, bound, assumed=True) -> Claim:
    """The claim value = bound."""
    return _claim(value, bound, assumed, lambda v, b: -jnp.abs(v - b))


def _claim(value, bound, assumed, difference) -> Claim:
    value, bound = jnp.broadcast_arrays(jnp.asarray(value, float), jnp.asarray(bound, float))
    assumed = jnp.broadcast_to(assumed, value.shape)
    slack = difference(value, bound) / (1 + jnp.abs(bound))
    return Claim(value, bound, jnp.where(assumed, slack, 0.0), assumed)


@dataclass(frozen=True)
class Theorem:
    """One theorem and everything needed to check it.

    Attributes:
      name: "T1" … "T18".
      title: what it is about.
      sample: (key, n) → n instances over wide ranges, degenerate ones included.
      claims: instances → claims by name.
      twin: instances → a claim that looks like the theorem and is wrong; it must be caught.
      twin_says: the twin in words.
      tolerance: relative violation that is blamed on arithmetic, and `because` it can be that large.
      attain: instances at which the claims named in `attained` hold with equality.
      attack: (key, n) → instances built by an adversary; without it, gradient descent on the slack.
      share: instances checked per instance asked for; stationary points cost more than formulas.
      chunk: instances checked at a time.
      on_checkpoint: trained run → instances from it, checked by the same claims.
      certificate: trained run → (claims, figure), where a trained model needs a check of its own; None of a run that
        the theorem says nothing of.
      figure: (instances, claims) → a figure of its own; default: value against bound.
      found: what checking changed: a correction or a sharper statement, with its gain.
      note: what the check does not cover yet.
    """

    name: str
    title: str
    sample: Callable[[jax.Array, int], Instance]
    claims: Callable[[Instance], Mapping[str, Claim]]
    twin: Callable[[Instance], Claim]
    twin_says: str
    tolerance: float = 1e-9
    because: str = "float64, a few hundred operations, relative to 1 + |bound|"
    attain: Callable[[], Instance] | None = None
    attained: tuple[str, ...] = ()
    attack: Callable[[jax.Array, int], Instance] | None = None
    share: float = 1.0
    chunk: int = 8192
    on_checkpoint: Callable[[Any], Instance] | None = None
    certificate: Callable[[Any], tuple[Mapping[str, Claim], Figure] | None] | None = None
    figure: Callable[[Instance, Mapping[str, Claim]], Figure] | None = None
    found: str = ""
    note: str = ""


def by_library(function: Callable[..., Any], formula: jax.Array, *arguments: jax.Array) -> jax.Array:
    """Return what a host-side library function says, with the gradient of the formula that it should equal."""
    shape = jax.ShapeDtypeStruct(formula.shape, formula.dtype)
    inputs = [jax.lax.stop_gradient(jnp.asarray(x)) for x in arguments]
    found = jax.pure_callback(function, shape, *inputs, vmap_method="expand_dims")
    return formula + jax.lax.stop_gradient(found - formula)


def pick(key: jax.Array, n: int, choices: tuple[Any, ...]) -> jax.Array:
    """[n, …]: for every instance one of some alternatives, each given for all instances."""
    which = jax.random.randint(key, (n,), 0, len(choices))
    stacked = jnp.stack([jnp.broadcast_to(jnp.asarray(c, float), jnp.shape(choices[0])) for c in choices])
    return stacked[which, jnp.arange(n)]

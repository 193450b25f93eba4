"""A block of a small stack is split: the instances of T15. The library has no growth yet; this is the theorem's own."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from localist_jax.locality import gates as gating
from localist_jax.types import struct
from proofs_check.models.stacks import BLOCKS, CAPACITY, Stack

CHILD = BLOCKS  # k' takes the first spare place


@struct
class Birth:
    """n stacks, each with a block that is split.

    Attributes:
      stack: before.
      parent: k, int [n]; takes: bool [n, B, T], which of k's positions the child gets.
      idle: bool [n, U]; units without output yet.
    """

    stack: Stack
    parent: chex.Array
    takes: chex.Array
    idle: chex.Array


def split(birth: Birth) -> tuple[Stack, jax.Array]:
    """The stacks after growth, as the theorem prescribes it, and π [n, K]."""
    block = jnp.arange(CAPACITY)
    origin = jnp.where(block == CHILD, birth.parent[:, None], block)
    params, text = birth.stack.params, birth.stack.text
    acting = gating.with_open_column(birth.stack.gates)
    gates = jax.vmap(lambda A, at: A[..., at, :][..., at])(acting, origin)
    units = {name: jax.vmap(lambda w, at: w[:, at])(w, origin) for name, w in params["units"].items()}
    fresh = birth.idle[:, None, None, None, :] & (block == CHILD)[:, None, None]
    units["in"] = jnp.where(fresh, 1 - units["in"], units["in"])
    params = {**params, "attention": {**params["attention"], "gates": gates}, "units": units}
    grown = dataclasses.replace(text, block=jnp.where(birth.takes, CHILD, text.block))
    return birth.stack.replace(params=params, text=grown), origin

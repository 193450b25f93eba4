"""A block of a small stack is split by the library's growth: the instances of T15."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from localist_jax.locality import gates as gating
from localist_jax.recruitment import growth
from localist_jax.types import struct
from proofs_check.models.stacks import BLOCKS, CAPACITY, Stack

CHILD = BLOCKS  # k' takes the first spare place
NAMES = (
    ("gates", ("layers", "heads", "block_q", "block_k")),
    ("units/in", ("layers", "block", "embed", "unit")),
    ("units/out", ("layers", "block", "unit", "embed")),
)


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
    """The stacks after growth, as `growth.copied` makes them, and π [n, K]."""
    block = jnp.arange(CAPACITY)
    origin = jnp.where(block == CHILD, birth.parent[:, None], block)
    params, text = birth.stack.params, birth.stack.text
    inner = birth.parent[:, None, None, None, None] > 0
    acting = jnp.where(inner, birth.stack.gates, gating.with_open_column(birth.stack.gates))
    before = {"gates": acting, "units": params["units"]}
    after = jax.vmap(lambda tree, k: growth.copied(tree, NAMES, growth.BLOCK_AXES, k, CHILD))(
        before, birth.parent
    )
    fresh = birth.idle[:, None, None, None, :] & (block == CHILD)[:, None, None]
    units = {**after["units"], "in": jnp.where(fresh, 1 - after["units"]["in"], after["units"]["in"])}
    params = {**params, "attention": {**params["attention"], "gates": after["gates"]}, "units": units}
    grown = dataclasses.replace(text, block=jnp.where(birth.takes, CHILD, text.block))
    return birth.stack.replace(params=params, text=grown), origin

"""A block of a small stack is split by the library's growth: the instances of T15."""

from __future__ import annotations

import dataclasses

import chex
import jax
import jax.numpy as jnp

from localist_jax.recruitment import growth
from localist_jax.types import struct
from proofs_check.models.stacks import BLOCKS, CAPACITY, Stack

CHILD = BLOCKS  # k' takes the first spare place
NAMES = (
    ("localist/attention/gates", ("layers", "heads", "block_q", "block_k")),
    ("localist/units/in", ("layers", "block", "embed", "unit")),
    ("localist/units/out", ("layers", "block", "unit", "embed")),
    ("router/kernel", ("embed", "router_block")),
)


@struct
class Birth:
    """n stacks, each with a block that is split.

    Attributes:
      stack: before.
      parent: k, int [n]; takes: bool [n, B, T], which of k's positions the child gets.
      reads: [n, L, D, U], what the fresh units of k' read; they have no output yet.
    """

    stack: Stack
    parent: chex.Array
    takes: chex.Array
    reads: chex.Array


def split(birth: Birth) -> tuple[Stack, jax.Array]:
    """The stacks after growth, as `growth.born_params` makes them, and π [n, K]."""
    block = jnp.arange(CAPACITY)
    origin = jnp.where(block == CHILD, birth.parent[:, None], block)
    params = jax.vmap(_born)(birth.stack.params, birth.parent, birth.reads)
    text = birth.stack.text
    grown = dataclasses.replace(text, block=jnp.where(birth.takes, CHILD, text.block), parent=origin)
    return birth.stack.replace(params=params, text=grown), origin


def _born(layers, parent, reads):
    """Parameters of one stack after a birth; no router decides here."""
    count, width, units = reads.shape
    fresh = {"in": reads, "out": jnp.zeros((count, units, width))}
    birth = growth.Birth(
        child=CHILD,
        parent=parent,
        number=1,
        share=0.5,
        direction=jnp.zeros(width),
        units=fresh,
        opt_state=None,
    )
    router = {"kernel": jnp.zeros((width, CAPACITY))}
    return growth.born_params({"localist": layers, "router": router}, NAMES, birth)["localist"]

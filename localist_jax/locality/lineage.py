"""Who descends from whom: a recruited block takes positions of its parent, and of no other block.

A position first chooses among the roots. In the root that it chose it meets the children in the order of their birth:
the first whose logit exceeds the parent's takes it, and is a parent in turn; if none does, it stays. So a newcomer
divides what is its parent's by then, and nothing else moves.

`nested` turns this walk into one set of logits, so that noise, argmax and straight-through gradients need not
know of it: each block gets its root's logit, less everything by which the walk would have had to go otherwise to end
there. One block per family pays nothing, so the contest between families is what it was before there were children.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RESERVE = 1e-3  # nats by which a child must exceed its parent: a tie stays where it is


def ancestry(parent: Int[Array, " K"]) -> Bool[Array, "K K"]:
    """[m, a]: whether a is m or one of its ancestors. A root is its own parent."""
    K = parent.size
    up = jnp.eye(K, dtype=bool) | (parent[:, None] == jnp.arange(K))
    for _ in range(max(1, (K - 1).bit_length())):  # each squaring doubles the generations covered
        up = (up.astype(jnp.int32) @ up.astype(jnp.int32)) > 0
    return up


def line(parent: Int[Array, " K"], generations: int) -> tuple[Int[Array, "K G"], Bool[Array, "K G"]]:
    """Each block, its parent, its parent's parent …: numbers, and whether there is one so far up.

    >>> import jax.numpy as jnp
    >>> [x.tolist() for x in line(jnp.array([0, 1, 1, 2]), 2)]
    [[[0, 0], [1, 1], [2, 1], [3, 2]], [[True, False], [True, False], [True, True], [True, True]]]
    """
    steps = [jnp.arange(parent.size, dtype=jnp.int32)]
    for _ in range(generations - 1):
        steps.append(parent[steps[-1]])
    up = jnp.stack(steps, -1)
    return up, jnp.diff(up, axis=-1, prepend=-1) != 0


def depth(parent: Int[Array, " K"]) -> Int[Array, " K"]:
    """How many generations each block is below its root."""
    block = jnp.arange(parent.size)
    return (ancestry(parent) & (parent != block)).sum(-1)


def nested(
    logits: Float[Array, "*positions K"],
    parent: Int[Array, " K"],
    born: Int[Array, " K"],
    active: Bool[Array, " K"],
) -> Float[Array, "*positions K"]:
    """Logits under which the argmax is where the walk ends. Nats; unchanged where nobody has children.

    e_m = z_root(m) − Σ_{a entered} (−d_a)₊ − Σ_{b declined} (d_b)₊, with d_c = z_c − z_parent(c) − RESERVE. On the way
    to m one enters m and its ancestors below the root, and declines their elder siblings and m's own children.

    Args:
      logits: z, of all blocks.
      parent: of each block; its own number for a root.
      born: the number of each block's birth, by which siblings are ordered.
      active: the others have no children and are nobody's.
    """
    block = jnp.arange(parent.size)
    child = active & (parent != block)
    up = ancestry(jnp.where(child, parent, block))
    entered = up & child
    elder = child & (parent == parent[:, None]) & (born < born[:, None])  # [a, b]: b before a
    declined = ((entered.astype(jnp.int32) @ elder.astype(jnp.int32)) > 0) | (
        child & (parent == block[:, None])
    )
    root = jnp.argmax(up & ~child, -1)

    ahead = jnp.where(child, logits - logits[..., parent] - RESERVE, 0.0)
    exact = jax.lax.Precision.HIGHEST  # a walk that costs nothing must come out at exactly 0
    against = jnp.matmul(jax.nn.relu(-ahead), entered.T.astype(logits.dtype), precision=exact)
    against += jnp.matmul(jax.nn.relu(ahead), declined.T.astype(logits.dtype), precision=exact)
    return logits[..., root] - against

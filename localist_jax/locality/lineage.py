"""The tree of blocks: a recruited block takes positions from its parent, and from no other block.

A position first chooses a root. It then meets the children of that root in order of birth: the first child whose logit
exceeds the parent's takes the position, and is the next parent; if none does, the position stays. So a new block
divides only the positions of its parent, and no other position moves.

`nested` turns this walk into one set of logits, so that noise, argmax and straight-through gradients need no special
case: each block gets its root's logit, minus the amounts by which the comparisons on the way to it are lost. In every
tree one block loses nothing, so the competition between trees is the same as before there were children.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

RESERVE = 1e-3  # nats by which a child must exceed its parent, so that ties stay with the parent


def ancestry(parent: Int[Array, " K"]) -> Bool[Array, "K K"]:
    """Return [m, a]: whether a is m or one of its ancestors. A root is its own parent."""
    K = parent.size
    up = jnp.eye(K, dtype=bool) | (parent[:, None] == jnp.arange(K))
    for _ in range(max(1, (K - 1).bit_length())):  # each squaring doubles the generations covered
        up = (up.astype(jnp.int32) @ up.astype(jnp.int32)) > 0
    return up


def line(parent: Int[Array, " K"], generations: int) -> tuple[Int[Array, "K G"], Bool[Array, "K G"]]:
    """Return each block, its parent, its parent's parent and so on, and whether there is an ancestor so far up.

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
    """Return how many generations each block is below its root."""
    block = jnp.arange(parent.size)
    return (ancestry(parent) & (parent != block)).sum(-1)


def nested(
    logits: Float[Array, "*positions K"],
    parent: Int[Array, " K"],
    born: Int[Array, " K"],
    active: Bool[Array, " K"],
) -> Float[Array, "*positions K"]:
    """Return logits in nats whose argmax is the block where the walk ends; unchanged where no block has children.

    e_m = z_root(m) − Σ_{a entered} (−d_a)₊ − Σ_{b declined} (d_b)₊, with d_c = z_c − z_parent(c) − RESERVE. The walk to
    m enters m and its ancestors below the root, and declines their elder siblings and m's own children.

    Args:
      logits: z, of all blocks.
      parent: parent of each block; a root is its own parent.
      born: birth number of each block, which orders siblings.
      active: blocks in use; the others are ignored as parents and as children.
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
    exact = jax.lax.Precision.HIGHEST  # a walk that loses nothing must come out as exactly 0
    against = jnp.matmul(jax.nn.relu(-ahead), entered.T.astype(logits.dtype), precision=exact)
    against += jnp.matmul(jax.nn.relu(ahead), declined.T.astype(logits.dtype), precision=exact)
    return logits[..., root] - against

"""Information flow at λ=1: which positions may influence which (T16).

With every localist head at λ=1 a closed gate makes attention exactly zero, so influence travels only along open pairs,
from key to query in each layer, and through the residual connection of each position. Pairs that are 0 in the boolean
product over layers are *certified* to be independent; the influence is exactly zero, not merely small.

`reach` certifies positions of one text; `block_reach` certifies blocks for all texts, from the gates alone.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from localist_jax.locality import gates as gating
from localist_jax.types import Numeric


def open_pairs(
    gates: Float[Array, "L N K K"],
    blocks: Int[Array, "B T"],
    positions: Int[Array, "B T"],
    segments: Int[Array, "B T"],
    window: Numeric,
    filed: Int[Array, "B F T"] | None = None,
    filing: Int[Array, "L N"] | None = None,
) -> Bool[Array, "L B T T"]:
    """Return the query–key pairs with non-zero odds at λ=1 in some head of each layer.

    A key is open if it is in the query's segment and not after it, and lies in the window (which includes the position
    itself), in block 0 (sink and background), or behind a gate above 0.

    Args:
      gates: gates of the localist layers.
      blocks, positions, segments: block, position and segment of each token; segment 0 is padding.
      window: keys nearer than this are always open.
      filed: blocks of the keys under each filing; None: their own.
      filing: filing of each localist layer and query head; None: all use the first.
    """
    filed = blocks[:, None] if filed is None else filed
    filings = jnp.arange(filed.shape[1])[:, None, None]
    uses = jnp.ones((1, *gates.shape[:2]), bool) if filing is None else filing == filings  # [F, L, N]
    graphs = ((gating.with_open_column(gates) > 0) & uses[..., None, None]).any(2)  # [F, L, K, K]
    gated = jnp.zeros((), bool)
    for graph, block in zip(graphs, filed.swapaxes(0, 1), strict=True):
        gated = gated | graph[:, blocks[:, :, None], block[:, None, :]]
    gap = positions[:, :, None] - positions[:, None, :]
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    return same & (gap >= 0) & (gated | (gap < window))


def reach(pairs: Bool[Array, "L B T T"]) -> Bool[Array, "B T T"]:
    """Return [i, j]: whether the output at i may depend on the router-level state at j.

    It is the boolean product over the layers of (pairs ∨ identity); the identity is the residual connection.
    False is a certificate: at λ=1 and with fixed block ids, no change of the state at j changes the output at i. If a
    change also moves j to another block, the entry must be False for both assignments.

    >>> chain = jnp.array([[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]) > 0  # each attends to its neighbour
    >>> reach(chain)[0, 2].tolist(), reach(jnp.concatenate([chain, chain]))[0, 2].tolist()
    ([False, True, True], [True, True, True])
    """
    _, B, T, _ = pairs.shape
    own = jnp.broadcast_to(jnp.eye(T, dtype=bool), (B, T, T))
    return jax.lax.scan(lambda reached, layer: (reached | _product(layer, reached), None), own, pairs)[0]


def block_reach(
    gates: Float[Array, "L N K K"], active: Bool[Array, " K"], background: bool | Bool[Array, ""] = False
) -> Bool[Array, "K K"]:
    """Return [k, l]: whether in any text the output at a position of block k may depend on *another* one of block l.

    These are the paths of at least one edge through the layers' gate graphs. False is a certificate for all texts of a
    model with window 1 (a larger window opens neighbours whatever their blocks) whose heads file every key under its
    own block.

    Args:
      gates: gates of the localist layers.
      active: blocks that have positions; the others relay nothing.
      background: whether block 0 holds more than the sink. The sink attends only to itself and relays nothing;
        background positions relay what their gates let in.
    """
    graph = (gating.with_open_column(gates) > 0).any(1) & active[:, None] & active
    graph = graph.at[:, 0].set(graph[:, 0] & background)
    none = jnp.zeros(graph.shape[1:], bool)
    return jax.lax.scan(
        lambda reached, layer: (reached | layer | _product(layer, reached), None), none, graph
    )[0]


def _product(a: Bool[Array, "*rows i j"], b: Bool[Array, "*rows j k"]) -> Bool[Array, "*rows i k"]:
    """Return the boolean matrix product; a sum of zeros and ones is above 0 exactly if a term is."""
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32)) > 0

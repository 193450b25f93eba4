"""Information flow at λ=1: which positions may influence which (T16).

With every localist head at λ=1 a closed gate is an exact zero of attention, so influence travels only along
open pairs: from layer to layer, from key to query, and straight up at each position. What the boolean
product of the open pairs leaves out is *certified* independent, not merely small.

`reach` judges one text by its positions; `block_reach` judges all texts at once by the gate graph alone.
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
    """Query–key pairs with non-zero odds at λ=1 in some head of each layer.

    Open are keys of the query's own segment, not after it, that lie in the window (the position itself
    included), in block 0 (sink and background), or behind a gate above 0.

    Args:
      gates: of the localist layers.
      blocks, positions, segments: of the T positions; segment 0 is padding, which sees nothing.
      window: keys nearer than this are always open.
      filed: blocks of the keys under each filing; None: their own.
      filing: of each localist layer and query head; None: all go by the first.
    """
    filed = blocks[:, None] if filed is None else filed
    ways = jnp.arange(filed.shape[1])[:, None, None]
    goes = jnp.ones((1, *gates.shape[:2]), bool) if filing is None else filing == ways  # [F, L, N]
    graphs = ((gating.with_open_column(gates) > 0) & goes[..., None, None]).any(2)  # [F, L, K, K]
    gated = jnp.zeros((), bool)
    for graph, block in zip(graphs, filed.swapaxes(0, 1), strict=True):
        gated = gated | graph[:, blocks[:, :, None], block[:, None, :]]
    gap = positions[:, :, None] - positions[:, None, :]
    same = (segments[:, :, None] == segments[:, None, :]) & (segments > 0)[:, None, :]
    return same & (gap >= 0) & (gated | (gap < window))


def reach(pairs: Bool[Array, "L B T T"]) -> Bool[Array, "B T T"]:
    """[i, j]: may the output at i depend on the router-level state at j?

    The boolean product over the layers of (pairs ∨ identity); the identity is the residual connection.
    False is a certificate: at λ=1, with the block ids as they are, no change of the state at j moves the
    output at i. If the id of j changes too, both texts must say False.

    >>> chain = jnp.array([[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]) > 0  # everyone sees the neighbour
    >>> reach(chain)[0, 2].tolist(), reach(jnp.concatenate([chain, chain]))[0, 2].tolist()
    ([False, True, True], [True, True, True])
    """
    _, B, T, _ = pairs.shape
    own = jnp.broadcast_to(jnp.eye(T, dtype=bool), (B, T, T))
    return jax.lax.scan(lambda reached, layer: (reached | _product(layer, reached), None), own, pairs)[0]


def block_reach(
    gates: Float[Array, "L N K K"], active: Bool[Array, " K"], background: bool | Bool[Array, ""] = False
) -> Bool[Array, "K K"]:
    """[k, l]: may the output at a position of block k depend on the state at *another* one of block l, in any text?

    Keys lie under their own blocks: a model whose heads file keys elsewhere has no such certificate for all texts.

    The paths of at least one edge through the layers' gate graphs: an independence that holds for all texts
    of a model with window 1. (A window opens neighbours whatever their blocks are.)

    Args:
      gates: of the localist layers.
      active: blocks that have positions; the others relay nothing.
      background: whether block 0 holds more than the sink. The sink sees only itself and relays nothing;
        background positions relay what their row lets in.
    """
    graph = (gating.with_open_column(gates) > 0).any(1) & active[:, None] & active
    graph = graph.at[:, 0].set(graph[:, 0] & background)
    none = jnp.zeros(graph.shape[1:], bool)
    return jax.lax.scan(
        lambda reached, layer: (reached | layer | _product(layer, reached), None), none, graph
    )[0]


def _product(a: Bool[Array, "*rows i j"], b: Bool[Array, "*rows j k"]) -> Bool[Array, "*rows i k"]:
    """Boolean matrix product; sums of zeros and ones are above 0 exactly where a term is."""
    return jnp.matmul(a.astype(jnp.float32), b.astype(jnp.float32)) > 0

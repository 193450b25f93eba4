"""Attention of single queries to cached keys on CPU, which reads the cache in place.

A product for each head would first gather the keys of that head, and XLA copies a cache of more than two axes whenever
it is written and read in one program. So each request has its keys as one matrix [S, G·H], with the heads of a position
side by side, and a query has zeros for the heads that it does not read. That is G times the arithmetic in one product;
the time of a single query is spent on reading the cache once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from localist_jax.attention.reference import in_one_piece
from localist_jax.attention.stats import AttentionStats
from localist_jax.types import widened


def attend_single(
    q: Float[Array, "B 1 N H"],
    k: Sequence[Float[Array, "S GH"]],
    v: Sequence[Float[Array, "S GHv"]],
    *,
    groups: int,
    filing: jax.Array | None = None,
    mesh: jax.sharding.Mesh | None = None,
    **call: Any,
) -> tuple[Float[Array, "B 1 N Hv"], AttentionStats | None]:
    """Attend as `attend` does, with the keys and values of each request as one matrix.

    Args:
      q: one query of each request.
      k, v: a matrix for each request, with the key/value heads of a position side by side.
      groups: G, number of key/value heads.
      filing, call: as in `attend`.
      mesh: a mesh of one device, or None.
    """
    del mesh
    if filing is None:
        call |= {name: call[name][:, None] for name in ("k_block", "k_pos", "k_seg")}
        filing = jnp.zeros(groups, jnp.int32)
    own_NG = jnp.arange(q.shape[2])[:, None] // (q.shape[2] // groups) == jnp.arange(groups)

    def scores(q_BTNH, keys):
        """Return ⟨q_i, k_j⟩ of every head, [B, N, 1, S]."""
        spread = jnp.where(own_NG[..., None], q_BTNH[:, 0, :, None], 0).reshape(
            len(keys), own_NG.shape[0], -1
        )
        wide = widened(q_BTNH).dtype
        each = [
            jnp.einsum("ND,SD->NS", x, y, preferred_element_type=wide)
            for x, y in zip(spread, keys, strict=True)
        ]
        return jnp.stack(each)[:, :, None]

    def mixed(alpha_BNTS, values):
        """Return Σ_j α_ij v_j of every head, [B, 1, N, Hv]."""
        each = [x[:, 0].astype(y.dtype) @ y for x, y in zip(alpha_BNTS, values, strict=True)]
        every = jnp.stack(each).reshape(len(values), *own_NG.shape, -1)
        return jnp.where(own_NG[..., None], every, 0).sum(2)[:, None]

    return in_one_piece(q, k, v, groups=groups, scores=scores, mixed=mixed, filing=filing, **call)

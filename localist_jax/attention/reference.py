"""The reference implementation of `attend`: the definition, and the fallback everywhere.

Materialises [B, N, T, S] arrays; every other implementation is tested against it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.lax import Precision

from localist_jax.attention.stats import AttentionStats
from localist_jax.locality import measures
from localist_jax.types import widened


def reference(q_BTNH, k_BSGH, v_BSGH, **call):
    """Compute `attend` by materialising every logit."""
    groups = k_BSGH.shape[2]
    return in_one_piece(q_BTNH, k_BSGH, v_BSGH, groups=groups, scores=_scores, mixed=_mixed, **call)


def _scores(q_BTNH, k_BSGH):
    """Return ⟨q_i, k_j⟩ of every head, [B, N, T, S], summed in at least float32."""
    k_BSNH = jnp.repeat(k_BSGH, q_BTNH.shape[2] // k_BSGH.shape[2], 2)
    return jnp.einsum("BTNH,BSNH->BNTS", q_BTNH, k_BSNH, preferred_element_type=widened(q_BTNH).dtype)


def _mixed(alpha_BNTS, v_BSGH):
    """Return Σ_j α_ij v_j of every head, [B, T, N, H]."""
    v_BSNH = jnp.repeat(v_BSGH, alpha_BNTS.shape[1] // v_BSGH.shape[2], 2)
    return jnp.einsum("BNTS,BSNH->BTNH", alpha_BNTS.astype(v_BSNH.dtype), v_BSNH)


def in_one_piece(
    q_BTNH,
    keys,
    values,
    *,
    groups,
    scores,
    mixed,
    q_block,
    k_block,
    q_pos,
    k_pos,
    q_seg,
    k_seg,
    odds,
    relevant,
    filing,
    route=None,
    window,
    stats,
):
    """Attend with all logits in one array; `scores` and `mixed` are the two products, with keys and with values."""
    if k_block.shape[1] > 1:  # from filings to query heads
        by_head = jnp.repeat(filing, q_BTNH.shape[2] // groups)
        k_block, k_pos, k_seg = (x[:, by_head] for x in (k_block, k_pos, k_seg))
    gap_BNTS = q_pos[:, None, :, None] - k_pos[:, :, None]
    visible_BNTS = (q_seg[:, None, :, None] == k_seg[:, :, None]) & (k_seg > 0)[:, :, None] & (gap_BNTS >= 0)
    near_BNTS = visible_BNTS & (gap_BNTS < window)

    with jax.named_scope("logits"):
        wide = widened(q_BTNH).dtype
        s_BNTS = scores(q_BTNH, keys) * q_BTNH.shape[-1] ** -0.5
    with jax.named_scope("odds"):
        omega_BNTS = _pairwise(odds.astype(wide), q_block, k_block, route)
        omega_BNTS = jnp.where(near_BNTS, 1.0, jnp.where(visible_BNTS, omega_BNTS, 0.0))
        open_BNTS = omega_BNTS > 0
        z_BNTS = s_BNTS + jnp.log(jnp.where(open_BNTS, omega_BNTS, 1.0))
    with jax.named_scope("softmax"):
        alpha_BNTS, lse_BNT = _softmax(z_BNTS, open_BNTS)
        out_BTNH = mixed(alpha_BNTS, values)
    if stats in ("none", "lse"):
        return out_BTNH, None if stats == "none" else AttentionStats(lse=lse_BNT)

    with jax.named_scope("statistics"):
        relevant_BNTS = _looked_up(relevant, q_block, k_block)
        gated_BNTS = relevant_BNTS & ~near_BNTS & (k_block > 0)[:, :, None]
        relevant_BNTS = relevant_BNTS | near_BNTS
        price = None
        if stats == "dense":
            _, dense_lse = _softmax(s_BNTS, jnp.broadcast_to(visible_BNTS, s_BNTS.shape))
            sees = visible_BNTS.any(-1)
            ratio = jnp.where(sees, lse_BNT, 0.0) - jnp.where(sees, dense_lse, 0.0)
            price = measures.price_of_locality(alpha_BNTS, omega_BNTS, ratio)
        return out_BTNH, AttentionStats(
            lse=lse_BNT,
            entropy_bits=measures.attention_entropy(alpha_BNTS),
            fidelity=measures.pointer_fidelity(alpha_BNTS, relevant_BNTS),
            gated_mass=measures.pointer_fidelity(alpha_BNTS, gated_BNTS),
            price_bits=price,
        )


def _looked_up(table_BNkl, q_block, k_block):
    """Return table[c_i, c_j] for every query and key, [B, N, T, S]."""
    rows, heads = (jnp.arange(size) for size in table_BNkl.shape[:2])
    index = (
        rows[:, None, None, None],
        heads[:, None, None],
        q_block[:, None, :, None],
        k_block[:, :, None],
    )
    return table_BNkl[index]


def _pairwise(odds_BNkl, q_block, k_block, route_BTK):
    """Return ω[c_i, c_j]; with a `route` as a bilinear form in one-hot rows and columns, so that it gets its gradient.

    Products with 0 and 1 are exact; the highest precision keeps accelerators from rounding the odds.
    """
    if route_BTK is None:
        return _looked_up(odds_BNkl, q_block, k_block)
    rows = columns = route_BTK
    odds_BNkl = jnp.broadcast_to(odds_BNkl, (rows.shape[0], *odds_BNkl.shape[1:]))
    by_query = jnp.einsum("BTk,BNkl->BNTl", rows, odds_BNkl, precision=Precision.HIGHEST)
    return jnp.einsum("BNTl,BSl->BNTS", by_query, columns, precision=Precision.HIGHEST)


def _softmax(z, mask):
    """Return the softmax over the unmasked entries and its log-sum-exp: zeros and −∞ where all are masked."""
    top = jnp.max(jnp.where(mask, z, -jnp.inf), -1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.where(jnp.isfinite(top), top, 0.0))
    weight = jnp.where(mask, jnp.exp(jnp.where(mask, z - top, 0.0)), 0.0)
    total = weight.sum(-1, keepdims=True)
    some = total > 0
    lse = jnp.where(some, top + jnp.log(jnp.where(some, total, 1.0)), -jnp.inf)
    return weight / jnp.where(some, total, 1.0), lse[..., 0]

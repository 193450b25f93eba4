"""The signature of dialled attention, and the choice of an implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from localist_jax.attention.reference import reference
from localist_jax.attention.sharded import attend_on_mesh
from localist_jax.attention.sparse import sparse
from localist_jax.attention.stats import AttentionStats, Stats
from localist_jax.parallel.mesh import platform

# Below these numbers of query-key pairs and of keys per row, `reference` compiles and runs faster (measured on CPU).
FEW_PAIRS, FEW_KEYS = 1 << 14, 1 << 10
# Logits of a call, B·N·T·S. A GPU launches several kernels for every iteration of a loop over tiles, so up to this many
# logits (256 MiB in float32) it runs `reference` instead. An estimate, not measured.
FEW_LOGITS_ON_GPU = 1 << 26


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B S G H"],
    v: Float[Array, "B S G Hv"],
    *,
    q_block: Int[Array, "B T"],
    k_block: Int[Array, "B S"] | Int[Array, "B F S"],
    q_pos: Int[Array, "B T"],
    k_pos: Int[Array, "B S"] | Int[Array, "B F S"],
    q_seg: Int[Array, "B T"],
    k_seg: Int[Array, "B S"] | Int[Array, "B F S"],
    odds: Float[Array, "#B N Kq K"],
    relevant: Bool[Array, "#B N Kq K"],
    filing: Int[Array, " G"] | None = None,
    route: Float[Array, "B T K"] | None = None,
    window: int = 1,
    stats: Stats = "none",
    implementation: str | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Float[Array, "B T N Hv"], AttentionStats | None]:
    """Causal attention whose weights are multiplied by odds between semantic blocks.

    α_ij = e^{s_ij} ω_ij / Σ_j' e^{s_ij'} ω_ij' with s = ⟨q_i, k_j⟩/√H and ω_ij = odds[c_i, c_j], over the
    keys j that are visible to i: same segment, k_pos ≤ q_pos. Keys nearer than `window` positions have ω = 1.
    Query head n reads key/value head n // (N/G).

    Keys may be filed in F ways. Each filing assigns a block to every key: its own, or that of the position before it.
    A key/value head uses one filing, and so do the query heads that read it.

    Args:
      q, k, v: inputs; logits and sums are float32 (float64 for float64 inputs) whatever their dtype.
      q_block, k_block: block of each position; q_block names one of Kq rows of the odds.
      q_pos, k_pos: position within the segment.
      q_seg, k_seg: segment; 0 marks padding, which attends to nothing and which nothing attends to.
        Block, position and segment of the keys are [B, S], or [B, F, S] with a `filing`: the filing of head g gives the
        contents of its slots (in a paged cache a slot holds different positions under different filings).
      filing: index in 0 … F−1 of the filing that each key/value head uses; traced.
      odds: ω ≥ 0 with the dial already applied, above 1 only where rules raise it; exactly 0 closes a pair.
      relevant: pairs of blocks that the statistics count as relevant (the set R).
      route: straight-through one-hot of the blocks (T = S, Kq = K, no `filing`); carries the gradient to the router.
      window: 1 is the position itself.
      stats: "none"; "lse" for it alone; "open" for all but the price; "dense" for all.
      implementation: a name from `implementations()`; None picks the fastest for the sizes.
      mesh: batch and key/value heads are split over its devices as `parallel.sharding` says, without communication.

    Returns:
      The attended values (0 where nothing is visible) and the statistics.
      The gradient with respect to odds of exactly 0 is defined as 0.

    Raises:
      ValueError: if sizes do not match, or the implementation is unknown or does not support the inputs.
    """
    _check(q, k, odds, route, window, stats, k_block, filing)
    if filing is None:  # a single filing, used by all heads
        k_block, k_pos, k_seg = (x[:, None] for x in (k_block, k_pos, k_seg))
        filing = jnp.zeros(k.shape[2], jnp.int32)
    call: dict[str, Any] = dict(odds=odds, relevant=relevant, filing=filing, route=route)
    call |= dict(q_block=q_block, k_block=k_block, q_pos=q_pos, k_pos=k_pos, q_seg=q_seg, k_seg=k_seg)
    call |= dict(window=window, stats=stats)
    chosen = _implementation(implementation, q, k, v, odds, platform(mesh))
    if mesh is None or mesh.size == 1:
        return chosen(q, k, v, **call)
    return attend_on_mesh(mesh, chosen, q, k, v, call)


def implementations() -> dict[str, Callable]:
    """Return the implementations by name."""
    return {"sparse": sparse, "reference": reference, "tpu": _tpu, "gpu": _gpu}


def _tpu(q, k, v, **call):
    from localist_jax.attention.tpu import tpu  # imported late, since importing Pallas is slow

    return tpu(q, k, v, **call)


def _gpu(q, k, v, **call):
    from localist_jax.attention import hopper

    return hopper.gpu(q, k, v, **call)


def _implementation(name: str | None, q, k, v, odds, platform: str) -> Callable:
    """Return the implementation of this name, or the fastest for these inputs."""
    known = implementations()
    if name is None:
        (B, queries, N, _), keys = q.shape, k.shape[1]
        few = queries * keys < FEW_PAIRS and keys < FEW_KEYS
        few = few or (platform == "gpu" and B * N * queries * keys <= FEW_LOGITS_ON_GPU)
        return known["reference" if few else _fast(q, v, odds, platform)]
    if name not in known:
        raise ValueError(f"attend: unknown implementation {name!r}; choose one of {', '.join(known)}")
    return known[name]


def _fast(q, v, odds, platform: str) -> str:
    if platform == "gpu":
        from localist_jax.attention import hopper

        return "gpu" if hopper.on_hopper() and hopper.suits(q, v, odds) else "sparse"
    return "tpu" if platform == "tpu" else "sparse"


def _check(q, k, odds, route, window, stats, k_block, filing) -> None:
    heads, groups = q.shape[2], k.shape[2]
    if heads % groups:
        raise ValueError(f"attend: {heads} query heads do not divide into {groups} key/value heads")
    if odds.shape[1] != heads:
        raise ValueError(f"attend: odds have {odds.shape[1]} heads, the queries {heads}")
    if window < 1:
        raise ValueError(f"attend: window must be at least 1 (the position itself), got {window}")
    if stats not in get_args(Stats):
        raise ValueError(f"attend: stats must be one of {', '.join(get_args(Stats))}, got {stats!r}")
    if route is not None and (q.shape[1] != k.shape[1] or route.shape[-1] != odds.shape[-2]):
        raise ValueError("attend: route needs one query per key and as many blocks as the odds have rows")
    if (k_block.ndim == 3) != (filing is not None):
        raise ValueError(
            "attend: k_block, k_pos and k_seg must be [B, F, S] with a filing, and [B, S] without one"
        )
    if route is not None and filing is not None:
        raise ValueError("attend: route and filing exclude each other; leave `filing` out")

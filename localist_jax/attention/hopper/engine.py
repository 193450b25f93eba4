"""`flash.forward` and `flash.backward` as kernels for Hopper GPUs (Pallas on Mosaic), over the same work lists.

A program works through rows of a work list. One of its warpgroups fetches the listed tiles into a ring of slots,
running ahead into the next row; two others compute 64 of the row's 128 positions each, and take turns at the tensor
cores. Three kernels: forward and dq take query tiles as rows and visit key tiles; dk and dv take key tiles as rows and
visit the query tiles of one head. An entry of a list says whether every pair of the two tiles is visible and beyond
the window; only other pairs of tiles are masked. Heads are read from their place in memory, without a copy.

In tiles of mixed blocks, ln ω of a query with each block is split into two bfloat16 that sum to it (with relative error
2⁻¹⁷) and multiplied with the one-hot blocks of the keys; sums by block are matrix products too. In pure tiles ln ω is
a number per entry. Kernels compute logits to base 2.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from localist_jax.attention import flash, kernel_passes
from localist_jax.attention.flash import Gradients, Terms
from localist_jax.attention.hopper import steps
from localist_jax.attention.hopper.lists import TILE, Lists, Side, is_mixed
from localist_jax.attention.hopper.program import GpuKernel
from localist_jax.attention.hopper.steps import LOG2E, Settings
from localist_jax.attention.kernel_passes import Pass
from localist_jax.attention.sparse import AttentionEngine, PureTiles, sparse
from localist_jax.attention.tiles import Section

CHANNELS = 64  # bfloat16 in a swizzled row of shared memory, to which head sizes are padded
MAX_BLOCKS, MAX_HEAD_SIZE = 64, 128


def gpu(q, k, v, **call):
    """Compute `attend` by `sparse` with these kernels; off GPU their arithmetic is emulated, which is slow.

    Raises:
      ValueError: if inputs are not bfloat16, heads are larger than 128, or there are more than 64 blocks.
    """
    if not suits(q, v, call["odds"]):
        raise ValueError(
            "attend: the GPU kernel takes bfloat16, heads of at most 128 and at most 64 blocks, "
            f"got {q.dtype}, {max(q.shape[-1], v.shape[-1])} and {max(call['odds'].shape[2:])}"
        )
    return sparse(q, k, v, engine=ENGINE, **call)


def suits(q, v, odds) -> bool:
    """Return whether the kernels support these inputs."""
    return (
        q.dtype == jnp.bfloat16
        and max(q.shape[-1], v.shape[-1]) <= MAX_HEAD_SIZE
        and max(odds.shape[2:]) <= MAX_BLOCKS
    )


def on_hopper() -> bool:
    """Return whether the GPU, or the compilation target, has the instructions of compute capability 9."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None:
        return any(name in target.device_kind for name in ("H100", "H200", "H800", "H20"))
    return getattr(jax.devices()[0], "compute_capability", "") == "9.0"


def forward(p: Pass, q, k, v):
    """Run the forward kernel that `kernel_passes.forward` takes."""
    return _without_zero_odds(p, partial(_forward, q=q, k=k, v=v))


def _without_zero_odds(p: Pass, run: Callable):
    """Run a pass, leaving ln ω out if all of it is 0, as at λ=0."""
    if not is_mixed(p):
        return run(p)
    plain = dataclasses.replace(p, queries=dataclasses.replace(p.queries, rows=None))
    return lax.cond((p.queries.rows == 0).all(), lambda: run(plain), lambda: run(p))


def _forward(p: Pass, q, k, v):
    K, value, sides = p.keys.blocks if p.measured and p.pairs != "near" else 0, v.shape[-1], _sides(q, k)
    s = Settings.of(p, by_block=K > 0)
    q, k, v = _alike(q, k, v)
    queries = {"q": q, "pos": p.queries.pos, "seg": p.queries.seg, **_log_odds(p)}
    keys = {"k": k, "v": v, "k_pos": p.keys.pos, "k_seg": p.keys.seg}
    if K or s.mixed:
        keys["e"] = _one_hot(p.keys.block, p.keys.blocks, sides[1], p.keys.alike)
    results: dict[str, tuple[int, ...]] = {"lse": ()}
    if p.measured:
        results["zsum"] = ()
    if K:
        results["mass"] = keys["e"].shape[-1:]
    stages = (steps.forward_begin, steps.forward_step, steps.forward_end)
    kernel = GpuKernel("attend", s, *stages, {"out": "q"}, results, *sides, turns=True)
    made = kernel(Lists.of_queries(p), queries, keys)
    lse = made["lse"]
    entropy = jnp.where(jnp.isfinite(lse), lse - made["zsum"], 0.0) if p.measured else None
    return made["out"][..., :value], lse, entropy, made["mass"][..., :K] if K else None


def backward(
    s: Section, terms: Terms, q, k, v, dout, given, wanted: flash.SumsByBlock, before: Gradients | None
) -> Gradients:
    """Do what `flash.backward` does; that function itself runs where statistics have cotangents."""
    if not all(given[name] is None for name in ("dentropy", "dmass", "dexpected")):
        return flash.backward(s, terms, q, k, v, dout, given, wanted, before)
    return kernel_passes.backward(_backward_kernels, s, terms, q, k, v, dout, given, wanted, before)


def _backward_kernels(p: Pass, q, k, v, lse, c, dout, columns: int, **_):
    """Run the two kernels, for dq and for dk and dv, that `kernel_passes.backward` takes."""
    keyed = p.pairs != "near" and columns > 0
    return _without_zero_odds(p, partial(_backward, q=q, k=k, v=v, lse=lse, c=c, dout=dout, keyed=keyed))


def _backward(p: Pass, q, k, v, lse, c, dout, keyed: bool):
    size, value, blocked = q.shape[-1], v.shape[-1], p.pairs != "near"
    (_, heads, _), (_, groups, _) = queries_side, keys_side = _sides(q, k)
    q, k, v, dout = _alike(q, k, v, dout.astype(q.dtype))
    queries = {"q": q, "dout": dout, "pos": p.queries.pos, "seg": p.queries.seg, "lse": lse * LOG2E, "c": c}
    queries |= _log_odds(p)
    keys = {"k": k, "v": v, "k_pos": p.keys.pos, "k_seg": p.keys.seg}
    by_key = {"e": _one_hot(p.keys.block, p.keys.blocks, keys_side, p.keys.alike)} if blocked else {}
    by_query = {}
    if keyed:
        by_query["own"] = _one_hot(jnp.argmax(p.queries.own, -1), p.queries.own.shape[-1], queries_side)
    lists = Lists.of_queries(p)

    sums = {"sums": by_key["e"].shape[-1:]} if blocked else {}
    settings, stages = Settings.of(p, by_block=blocked), (steps.dq_begin, steps.dq_step, steps.identity)
    kernel = GpuKernel("attend_dq", settings, *stages, {"dq": "q"}, sums, queries_side, keys_side)
    dq = kernel(lists, queries, keys | by_key)
    sums = {"by_query": by_query["own"].shape[-1:]} if keyed else {}
    settings, stages = Settings.of(p, by_block=keyed), (steps.dk_begin, steps.dk_step, steps.identity)
    results = {"dk": "k", "dv": "v"}
    kernel = GpuKernel("attend_dk", settings, *stages, results, sums, keys_side, queries_side)
    dk = kernel(lists.of_keys(p), keys | (by_key if is_mixed(p) else {}), queries | by_query)

    def sum_over_group(x):
        """Sum over the query heads that share a key/value head."""
        return x.reshape(*x.shape[:3], groups, heads // groups, -1).sum(4, dtype=jnp.float32)

    return (
        dq["dq"][..., :size] * p.scale,
        sum_over_group(dk["dk"])[..., :size] * p.scale,
        sum_over_group(dk["dv"])[..., :value],
        dq["sums"][..., : p.keys.blocks] if blocked else None,
        dk["by_query"][..., : p.queries.own.shape[-1]] if keyed else None,
    )


# Conversion of arrays to the layout of the kernels.


def _sides(q, k) -> tuple[Side, Side]:
    return (q.shape[0], q.shape[3], q.shape[1]), (k.shape[0], k.shape[3], k.shape[1])


def _padded(x, channels: int):
    short = channels - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]) if short else x


def _alike(*arrays):
    """Pad heads to whole rows of shared memory, all to the same size."""
    channels = -(-max(x.shape[-1] for x in arrays) // CHANNELS) * CHANNELS
    return [_padded(x, channels) for x in arrays]


def _channels(blocks: int) -> int:
    """Return the number of columns that hold so many blocks and fill a row of shared memory."""
    return next(size for size in (16, 32, 64) if size >= blocks)


def _one_hot(block, blocks: int, side: Side, alike: bool = True):
    """Return blocks [R, C | 1] as one-hot bfloat16: [B, tiles, C, K] where all heads are alike, else [R, C, K]."""
    batch, heads, tiles = side
    if alike:
        block = block.reshape(batch, heads, tiles, -1)[:, 0]
    columns = jax.nn.one_hot(block, _channels(blocks), dtype=jnp.bfloat16)
    return jnp.broadcast_to(columns, (*columns.shape[:-2], TILE, columns.shape[-1]))


def _log_odds(p: Pass):
    """Return ln ω of each query with each block to base 2, as two bfloat16 [R, C, K]; empty if tiles are not mixed."""
    if not is_mixed(p):
        return {}
    rows = _padded(p.queries.rows * LOG2E, _channels(p.queries.rows.shape[-1]))
    cut = lax.bitcast_convert_type(rows, jnp.int32) & jnp.int32(-(1 << 16))
    high = lax.bitcast_convert_type(cut, jnp.float32)
    return {"high": high.astype(jnp.bfloat16), "low": (rows - high).astype(jnp.bfloat16)}


ENGINE = AttentionEngine(
    forward=partial(kernel_passes.forward, forward),
    backward=backward,
    wide=(TILE, TILE, 1),
    small=(TILE, TILE, 1),
    pure=(PureTiles((TILE, TILE, 1), 1.2),),
    band=(TILE, TILE),
    lanes=TILE,
    whole=True,
    overlaps=False,
    many_blocks=MAX_BLOCKS + 1,
)

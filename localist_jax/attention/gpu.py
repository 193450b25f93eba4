"""`flash.forward` and `flash.backward` as kernels for Hopper GPUs (Pallas on Mosaic), over the same work lists.

A program works through rows of a work list. One of its warpgroups fetches the tiles on their lists into a ring of
slots, running ahead into the next row; two others compute, 64 of a row's 128 positions each, and take turns at the
tensor cores. Three kernels: forward and dq take query tiles as rows and visit key tiles; dk and dv take key tiles as
rows and visit the query tiles of one head. An entry of a list says whether every pair of the two tiles is seen and
lies beyond the window: only the others are masked. Heads stay where they lie in memory: nothing is copied to be cut.

Blocks are channels: in tiles of mixed blocks, ln ω of a query with each block, cut into two bfloat16 that add up to it
(to 2⁻¹⁷ of it), times the one-hot blocks of the keys is a matrix product, as are sums by block. In pure tiles ln ω is
a number per entry. Logits are kept to base 2 within.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from localist_jax.attention import flash
from localist_jax.attention.flash import LOWEST, MASKED, Pass
from localist_jax.attention.sparse import Engine, sparse
from localist_jax.attention.tiles import work_list

GROUPS, ROWS = 2, 64  # warpgroups that compute, and the positions of each
TILE = GROUPS * ROWS
CHANNELS = 64  # of bfloat16 in a swizzled row of shared memory, to which head sizes and blocks are padded
SHARED = 220 << 10  # bytes of shared memory that a program may take
FULL = 1 << 30  # marks an entry of a list whose pairs are all seen, and beyond the window
LOG2E = math.log2(math.e)
BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


def gpu(q, k, v, **call):
    """See `attend`: `sparse` with these kernels; elsewhere than on a GPU they are interpreted, slowly.

    Raises:
      ValueError: for other inputs than bfloat16, for heads over 128, or over 64 blocks.
    """
    if not suits(q, v, call["odds"]):
        raise ValueError(
            "attend: the GPU kernel takes bfloat16, heads of at most 128 and at most 64 blocks, "
            f"got {q.dtype}, {max(q.shape[-1], v.shape[-1])} and {max(call['odds'].shape[2:])}"
        )
    return sparse(q, k, v, engine=ENGINE, **call)


def suits(q, v, odds) -> bool:
    """Whether the kernels take these inputs."""
    return q.dtype == jnp.bfloat16 and max(q.shape[-1], v.shape[-1]) <= 128 and max(odds.shape[2:]) <= 64


def on_hopper() -> bool:
    """Whether the GPU, or the one that is compiled for, has the instructions of compute capability 9."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None:
        return any(name in target.device_kind for name in ("H100", "H200", "H800", "H20"))
    return getattr(jax.devices()[0], "compute_capability", "") == "9.0"


def forward(p: Pass, q, k, v):
    """See `flash.forward`; q, k, v and out are [B, tiles, C, heads, H]."""
    return _as_it_needs(p, partial(_forward, q=q, k=k, v=v))


def _as_it_needs(p: Pass, run: Callable):
    """Runs a pass without ln ω where all of it is 0, as at λ=0."""
    if not _mixed(p):
        return run(p)
    plain = dataclasses.replace(p, queries=dataclasses.replace(p.queries, rows=None))
    return lax.cond((p.queries.rows == 0).all(), lambda: run(plain), lambda: run(p))


def _forward(p: Pass, q, k, v):
    K, value, sides = p.keys.blocks if p.measured and p.pairs != "near" else 0, v.shape[-1], _sides(q, k)
    s = _Settings.of(p, by_block=K > 0)
    q, k, v = _alike(q, k, v)
    queries = {"q": q, "pos": p.queries.pos, "seg": p.queries.seg, **_log_odds(p)}
    keys = {"k": k, "v": v, "k_pos": p.keys.pos, "k_seg": p.keys.seg}
    if K or s.mixed:
        keys["e"] = _one_hot(p.keys.block, p.keys.blocks, sides[1])
    results: dict[str, tuple[int, ...]] = {"lse": ()}
    if p.measured:
        results["zsum"] = ()
    if K:
        results["mass"] = keys["e"].shape[-1:]
    call = Call(
        "attend", s, _forward_state, _forward_step, _forward_end, {"out": "q"}, results, *sides, turns=True
    )
    found = call(Lists.of_queries(p), queries, keys)
    lse = found["lse"]
    entropy = jnp.where(jnp.isfinite(lse), lse - found["zsum"], 0.0) if p.measured else None
    return found["out"][..., :value], lse, entropy, found["mass"][..., :K] if K else None


def backward(p: Pass, q, k, v, lse, c, dout, dentropy, dmass, dexpected, columns: int):
    """See `flash.backward`; q, k, v, dout and gradients in them are [B, tiles, C, heads, H].

    Where statistics have cotangents it is that one which runs.
    """
    statistics = dentropy, dmass, dexpected
    if not all(x is None for x in statistics):
        found = flash.backward(p, _cut(q), _cut(k), _cut(v), lse, c, _cut(dout), *statistics, columns)
        return *(_joined(x, like) for x, like in zip(found[:3], (q, k, v), strict=True)), *found[3:]
    keyed = p.pairs != "near" and columns > 0
    return _as_it_needs(p, partial(_backward, q=q, k=k, v=v, lse=lse, c=c, dout=dout, keyed=keyed))


def _backward(p: Pass, q, k, v, lse, c, dout, keyed: bool):
    size, value, blocked = q.shape[-1], v.shape[-1], p.pairs != "near"
    (_, heads, _), (_, groups, _) = queries_side, keys_side = _sides(q, k)
    q, k, v, dout = _alike(q, k, v, dout.astype(q.dtype))
    queries = {"q": q, "dout": dout, "pos": p.queries.pos, "seg": p.queries.seg, "lse": lse * LOG2E, "c": c}
    queries |= _log_odds(p)
    keys = {"k": k, "v": v, "k_pos": p.keys.pos, "k_seg": p.keys.seg}
    by_key = {"e": _one_hot(p.keys.block, p.keys.blocks, keys_side)} if blocked else {}
    by_query = {}
    if keyed:
        by_query["own"] = _one_hot(jnp.argmax(p.queries.own, -1), p.queries.own.shape[-1], queries_side)
    lists = Lists.of_queries(p)

    sums = {"sums": by_key["e"].shape[-1:]} if blocked else {}
    call = Call(
        "attend_dq", _Settings.of(p, by_block=blocked), _dq_state, _dq_step, _last, {"dq": "q"}, sums,
        queries_side, keys_side,
    )  # fmt: skip
    dq = call(lists, queries, keys | by_key)
    sums = {"by_query": by_query["own"].shape[-1:]} if keyed else {}
    call = Call(
        "attend_dk", _Settings.of(p, by_block=keyed), _dk_state, _dk_step, _last, {"dk": "k", "dv": "v"}, sums,
        keys_side, queries_side,
    )  # fmt: skip
    dk = call(lists.of_keys(p), keys | (by_key if _mixed(p) else {}), queries | by_query)

    def of_group(x):
        """Sums the query heads that share a head of keys."""
        return x.reshape(*x.shape[:3], groups, heads // groups, -1).sum(4, dtype=jnp.float32)

    return (
        dq["dq"][..., :size] * p.scale,
        of_group(dk["dk"])[..., :size] * p.scale,
        of_group(dk["dv"])[..., :value],
        dq["sums"][..., : p.keys.blocks] if blocked else None,
        dk["by_query"][..., : p.queries.own.shape[-1]] if keyed else None,
    )


# Arrays as the kernels want them.


Side = tuple[
    int, int, int
]  # batch, heads, and tiles of each: a tile's number counts through all of them, in this order


def _sides(q, k) -> tuple[Side, Side]:
    return (q.shape[0], q.shape[3], q.shape[1]), (k.shape[0], k.shape[3], k.shape[1])


def _padded(x, channels: int):
    short = channels - x.shape[-1]
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]) if short else x


def _alike(*arrays):
    """Pads heads to whole rows of shared memory, all to the same size."""
    channels = -(-max(x.shape[-1] for x in arrays) // CHANNELS) * CHANNELS
    return [_padded(x, channels) for x in arrays]


def _channels(blocks: int) -> int:
    """Columns that hold so many blocks, and fill a row of shared memory."""
    return next(size for size in (16, 32, 64) if size >= blocks)


def _one_hot(block, blocks: int, side: Side):
    """Blocks [R, C | 1] as bfloat16 [B, tiles, C, K]: the same for all heads."""
    batch, heads, tiles = side
    of_one = block.reshape(batch, heads, tiles, -1)[:, 0]
    found = jax.nn.one_hot(of_one, _channels(blocks), dtype=jnp.bfloat16)
    return jnp.broadcast_to(found, (batch, tiles, TILE, found.shape[-1]))


def _cut(x):
    """[B, tiles, C, heads, H] → [B·heads·tiles, C, H]."""
    return jnp.moveaxis(x, 3, 1).reshape(-1, x.shape[2], x.shape[4])


def _joined(x, like):
    """The inverse of `_cut`."""
    batch, tiles, C, heads, _ = like.shape
    return jnp.moveaxis(x.reshape(batch, heads, tiles, C, -1), 1, 3)


def _log_odds(p: Pass):
    """ln ω of each query with each block to base 2, in tiles of mixed blocks: two bfloat16 [R, C, K]."""
    if not _mixed(p):
        return {}
    rows = _padded(p.queries.rows * LOG2E, _channels(p.queries.rows.shape[-1]))
    cut = lax.bitcast_convert_type(rows, jnp.int32) & jnp.int32(-(1 << 16))
    high = lax.bitcast_convert_type(cut, jnp.float32)
    return {"high": high.astype(jnp.bfloat16), "low": (rows - high).astype(jnp.bfloat16)}


def _mixed(p: Pass) -> bool:
    return p.queries.rows is not None and p.queries.rows.shape[1] > 1


def _pure(p: Pass) -> bool:
    return p.queries.rows is not None and p.queries.rows.shape[1] == 1


@dataclasses.dataclass(frozen=True)
class Lists:
    """What a kernel's programs do.

    Attributes:
      order: int32 [rows], the longest lists first.
      counts: int32 [rows], entries of each list.
      tile: int32 [rows], whose arrays a row has.
      entries: int32 [rows, J], tiles to visit, with FULL.
      bias: float32 [rows, J], ln ω of each entry to base 2; None unless tiles are pure.
    """

    order: jax.Array
    counts: jax.Array
    tile: jax.Array
    entries: jax.Array
    bias: jax.Array | None

    @classmethod
    def of_queries(cls, p: Pass):
        """The pass's own lists."""
        R, a, b = len(p.work.lists), p.queries, p.keys
        tile = p.first[:, None] + p.work.lists
        seg, lowest, highest = a.seg[:, :1], b.seg.min(-1)[tile], b.seg.max(-1)[tile]
        alike = (seg > 0) & (a.seg == seg).all(-1, keepdims=True) & (lowest == seg) & (highest == seg)
        full = alike & (a.pos.min(-1)[:, None] - b.pos.max(-1)[tile] >= p.window) & (p.pairs != "near")
        bias = None
        if _pure(p):
            bias = LOG2E * jnp.take_along_axis(a.rows[:, 0], b.block[:, 0][tile], 1)
        order = p.work.order.reshape(-1)[:R]
        return cls(
            order, p.work.counts[:R], jnp.arange(R, dtype=jnp.int32), jnp.where(full, tile | FULL, tile), bias
        )

    def of_keys(self, p: Pass):
        """The same visits by key tile and query head, [B·N·J, I]."""
        (R, J), S = p.work.lists.shape, len(p.keys.pos)
        I, heads = R // p.heads, p.heads * J // S
        row, live = jnp.arange(R)[:, None], jnp.arange(J) < p.work.counts[:R, None]
        place = jnp.where(live, p.work.lists, J)

        def turned(x):
            """[R, J], as the lists lie → [B·N, J, I]."""
            by_key = jnp.zeros((R, J + 1), x.dtype).at[row, place].set(x)[:, :J]
            return by_key.reshape(-1, I, J).swapaxes(1, 2)

        work = work_list(turned(live)[None], 1)
        rows = jnp.arange(p.heads * J, dtype=jnp.int32)
        tile, queries = rows // J // heads * J + rows % J, rows[:, None] // J * I + work.lists
        full = jnp.take_along_axis(turned(self.entries & FULL).reshape(-1, I), work.lists, 1)
        bias = LOG2E * p.queries.rows[queries, 0, p.keys.block[tile]] if _pure(p) else None
        return Lists(
            work.order.reshape(-1)[: len(rows)], work.counts[: len(rows)], tile, queries | full, bias
        )


# The kernels. `r` holds a warpgroup's half of its row, and the tile it visits, by name; all arrays are its registers.


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a kernel is specialised to."""

    pairs: str
    window: int
    scale: float  # of logits, to base 2
    measured: bool
    mixed: bool
    by_block: bool  # whether sums by block are wanted
    emulated: bool

    @classmethod
    def of(cls, p: Pass, by_block: bool):
        return cls(p.pairs, p.window, p.scale * LOG2E, p.measured, _mixed(p), by_block, _emulated())


def _product(s: _Settings, a, b, *more, then: Callable[[], None] = lambda: None):
    """a·b of a row's half, [64, columns] float32; `more`: further pairs to add; `then`: done while it is worked out."""
    columns = b.shape[1]
    if s.emulated:
        return sum(
            jnp.dot(left, right, preferred_element_type=jnp.float32) for left, right in ((a, b), *more)
        )

    def run(acc):
        for left, right in ((a, b), *more):
            plgpu.wgmma(acc, left, right)
        then()
        return acc[...]

    return pl.run_scoped(run, plgpu.ACC((ROWS, columns), jnp.float32))


def _turn(s: _Settings, ref):
    return ref.T if s.emulated else plgpu.transpose_ref(ref, (1, 0))


def _along_rows(x, columns: int):
    return lax.broadcast_in_dim(x, (ROWS, columns), (0,))


def _along_columns(x):
    return lax.broadcast_in_dim(x, (ROWS, x.shape[0]), (1,))


def _pairs(s: _Settings, r, keys_first: bool):
    """Of a tile that is not FULL: which pairs are seen, and which lie beyond the window."""
    q_spread, k_spread = _along_columns, partial(_along_rows, columns=TILE)
    q_layout, k_layout = BY_COLUMN, BY_ROW
    if not keys_first:
        q_spread, k_spread, q_layout, k_layout = k_spread, q_spread, k_layout, q_layout
    q_pos, q_seg = (q_spread(_laid(s, x[...], q_layout)) for x in (r.pos, r.seg))
    k_pos, k_seg = (k_spread(_laid(s, x[...], k_layout)) for x in (r.k_pos, r.k_seg))
    gap = q_pos - k_pos
    far = gap >= s.window
    if s.pairs == "far":
        return far & (q_seg == k_seg), far
    seen = (gap >= 0) & (q_seg == k_seg)
    return seen & (gap < s.window) if s.pairs == "near" else seen, far


def _logits(s: _Settings, r, at, products, bias_products, keys_first=False, then=lambda: None):
    """(x, scale, shift): z = x·scale + shift to base 2, x [64, 128]; scale and shift are numbers."""
    x = _product(s, *products, then=then)
    scale, shift = (
        s.scale,
        0.0 if at.bias is None else at.bias,
    )  # a pure tile's ln ω: its pass has no pairs in the window
    bias = _product(s, *bias_products[0], bias_products[1]) if s.mixed else None
    if bias is not None:
        x, scale = x * scale, 1.0

    def masked(x):
        seen, far = _pairs(s, r, keys_first)
        if bias is not None:
            x = x + (bias if s.pairs == "far" else jnp.where(far, bias, 0.0))
        return jnp.where(seen, x, MASKED / scale)

    def unmasked(x):
        return x if bias is None else x + bias

    return masked(x) if s.pairs == "near" else lax.cond(at.full, unmasked, masked, x), scale, shift


def _beyond(s: _Settings, r, at, x, keys_first=False):
    """x where pairs lie beyond the window: what counts for a block; narrow."""
    if s.pairs == "all":
        x = lax.cond(at.full, lambda x: x, lambda x: jnp.where(_pairs(s, r, keys_first)[1], x, 0.0), x)
    return x.astype(jnp.bfloat16)


def _laid(s: _Settings, x, layout):
    """x spread over the threads as products want it."""
    return x if s.emulated else plgpu.layout_cast(x, layout)


def _filled(s: _Settings, value: float, *shape):
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else BY_ROW
    return _laid(s, jnp.full(shape, value, jnp.float32), layout)


def _forward_state(s: _Settings, r):
    top = _filled(s, LOWEST, ROWS)
    state = {"top": top, "total": _filled(s, 0.0, ROWS), "out": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    if s.measured:
        state["zsum"] = _filled(s, 0.0, ROWS)
    if s.by_block:
        state["mass"] = _filled(s, 0.0, ROWS, r.e.shape[-1])
    return state


def _forward_step(s: _Settings, r, at, state):
    x, scale, shift = _logits(s, r, at, (r.q, _turn(s, r.k)), _bias_of_queries(s, r), then=at.take_turns)
    top = jnp.maximum(state["top"], x.max(axis=1) * scale + shift)
    weight, fade = jnp.exp2(x * scale - _along_rows(top - shift, TILE)), jnp.exp2(state["top"] - top)
    new = {"top": top, "total": state["total"] * fade + weight.sum(axis=1)}
    if s.measured:
        zsum = (weight * x).sum(axis=1) * scale + weight.sum(axis=1) * shift
        new["zsum"] = state["zsum"] * fade + zsum
    at.take_turns()
    narrow = weight.astype(jnp.bfloat16)
    new["out"] = state["out"] * _along_rows(fade, r.v.shape[-1]) + _product(s, narrow, r.v)
    if s.by_block:
        mass = _product(s, _beyond(s, r, at, weight), r.e)
        new["mass"] = state["mass"] * _along_rows(fade, r.e.shape[-1]) + mass
    return new


def _forward_end(s: _Settings, r, state):
    some = state["total"] > 0
    inverse = 1.0 / jnp.where(some, state["total"], 1.0)
    lse = (state["top"] + jnp.log2(jnp.where(some, state["total"], 1.0))) / LOG2E
    found = {"out": state["out"] * _along_rows(inverse, state["out"].shape[-1])}
    found["lse"] = jnp.where(some, lse, -jnp.inf)
    if s.measured:
        found["zsum"] = state["zsum"] * inverse / LOG2E
    if s.by_block:
        found["mass"] = state["mass"] * _along_rows(inverse, state["mass"].shape[-1])
    return found


def _bias_of_queries(s: _Settings, r):
    return ((r.high, _turn(s, r.e)), (r.low, _turn(s, r.e))) if s.mixed else ()


def _dq_state(s: _Settings, r):
    return {"dq": _filled(s, 0.0, ROWS, r.q.shape[-1])} | (
        {"sums": _filled(s, 0.0, ROWS, r.e.shape[-1])} if s.by_block else {}
    )


def _dq_step(s: _Settings, r, at, state):
    x, scale, shift = _logits(s, r, at, (r.q, _turn(s, r.k)), _bias_of_queries(s, r))
    lse, c = (_laid(s, ref[...], BY_ROW) for ref in (r.lse, r.c))
    lse, c = _along_rows(lse - shift, TILE), _along_rows(c, TILE)
    dz = jnp.exp2(x * scale - lse) * (_product(s, r.dout, _turn(s, r.v)) - c)
    new = {"dq": state["dq"] + _product(s, dz.astype(jnp.bfloat16), r.k)}
    if s.by_block:
        new["sums"] = state["sums"] + _product(s, _beyond(s, r, at, dz), r.e)
    return new


def _dk_state(s: _Settings, r):
    state = {"dk": _filled(s, 0.0, ROWS, r.k.shape[-1]), "dv": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    return state | ({"by_query": _filled(s, 0.0, ROWS, r.own.shape[-1])} if s.by_block else {})


def _dk_step(s: _Settings, r, at, state):
    bias = ((r.e, _turn(s, r.high)), (r.e, _turn(s, r.low))) if s.mixed else ()
    x, scale, shift = _logits(s, r, at, (r.k, _turn(s, r.q)), bias, keys_first=True)
    lse, c = (_laid(s, ref[...], BY_COLUMN) for ref in (r.lse, r.c))
    lse, c = _along_columns(lse - shift), _along_columns(c)
    alpha = jnp.exp2(x * scale - lse)
    dz = alpha * (_product(s, r.v, _turn(s, r.dout)) - c)
    new = {
        "dk": state["dk"] + _product(s, dz.astype(jnp.bfloat16), r.q),
        "dv": state["dv"] + _product(s, alpha.astype(jnp.bfloat16), r.dout),
    }
    if s.by_block:
        new["by_query"] = state["by_query"] + _product(s, _beyond(s, r, at, dz, keys_first=True), r.own)
    return new


def _last(s: _Settings, r, state):
    return state


@dataclasses.dataclass(frozen=True)
class Call:
    """A kernel over work lists.

    Attributes:
      name, settings: of the kernel.
      begin, step, end: the state of a row's half in registers before, after each visit, and its results.
      narrow: results in bfloat16 that lie as heads do, and the row's array whose place in shared memory each may take.
      wide: what stands in each position of the other results; float32.
      row_side, visit_side: of the arrays.
      turns: whether steps take turns at the tensor cores, twice each.
    """

    name: str
    settings: _Settings
    begin: Callable
    step: Callable
    end: Callable
    narrow: dict[str, str]
    wide: dict[str, tuple[int, ...]]
    row_side: Side
    visit_side: Side
    turns: bool = False

    def __call__(self, lists: Lists, per_row: dict, per_visit: dict) -> dict[str, jax.Array]:
        """Runs it.

        Args:
          lists: what to do.
          per_row, per_visit: arrays by name: [B, tiles, C, heads, H], the same for all heads [B, tiles, C, K], or by
            tile [R, C, …].

        Returns:
          By name [B, tiles, C, heads of the lists, H] if narrow, else [rows, C, …].
        """
        rows = len(lists.order)
        if self.settings.emulated:
            return self._emulate(lists, per_row, per_visit)
        axes = {5: 2, 4: 2, 3: 1, 2: 1}
        halves = {name: _halved(x, axes[x.ndim]) for name, x in per_row.items()}
        row_at = {
            name: (GROUPS, ROWS, *((x.shape[-1],) if x.ndim > 2 else ())) for name, x in per_row.items()
        }
        slot_at = {name: (TILE, *((x.shape[-1],) if x.ndim > 2 else ())) for name, x in per_visit.items()}
        each = sum(_bytes(shape, per_visit[name].dtype) for name, shape in slot_at.items())
        own = sum(_bytes(shape, per_row[name].dtype) for name, shape in row_at.items())
        buffers = 2 if 2 * (own + each) <= SHARED else 1
        slots = min(4, (SHARED - buffers * own) // each)
        if slots < 1:
            raise ValueError(
                f"attend: {self.name} needs {own + each} bytes of shared memory, there are {SHARED}"
            )
        batch, _, tiles = self.row_side
        heads = rows // batch // tiles
        out = {}
        for name, place in self.narrow.items():
            out[name] = jax.ShapeDtypeStruct(
                (batch, tiles, GROUPS, ROWS, heads, per_row[place].shape[-1]), jnp.bfloat16
            )
        for name, shape in self.wide.items():
            out[name] = jax.ShapeDtypeStruct((rows, GROUPS, ROWS, *shape), jnp.float32)
        scratch = (
            {name: _shared((buffers, *shape), per_row[name].dtype) for name, shape in row_at.items()},
            {name: _shared((slots, *shape), per_visit[name].dtype) for name, shape in slot_at.items()},
            plgpu.Barrier(num_arrivals=GROUPS * len(halves), num_barriers=buffers),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=buffers),
            plgpu.Barrier(num_arrivals=len(per_visit), num_barriers=slots),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=slots),
            plgpu.Barrier(num_arrivals=GROUPS),
        )
        programs = min(rows, _processors())
        run = plgpu.kernel(
            partial(self._program, rows, programs, (batch, heads, tiles)),
            out_type=out,
            scratch_types=scratch,
            grid=(programs,),
            grid_names=("program",),
            num_threads=GROUPS + 1,
            thread_name="group",
            compiler_params=plgpu.CompilerParams(approx_math=True),
        )
        scalars = [lists.order, lists.counts, lists.tile, lists.entries]
        found = run(scalars if lists.bias is None else [*scalars, lists.bias], halves, per_visit)
        for name, x in found.items():
            at = 2 if name in self.narrow else 1
            found[name] = x.reshape(*x.shape[:at], TILE, *x.shape[at + 2 :])
        return found

    def _program(self, rows, programs, side, scalars, per_row, per_visit, out, row_at, slot_at, *barriers):
        loaded, released, filled, freed, turns = barriers
        s, group, first = self.settings, lax.axis_index("group"), lax.axis_index("program")
        order, counts, tiles, entries = scalars[:4]
        bias = scalars[4] if len(scalars) > 4 else None
        slots, buffers = (next(iter(x.values())).shape[0] for x in (slot_at, row_at))
        mine = lax.div(rows - 1 - first, jnp.int32(programs)) + 1

        def take_turns():
            plgpu.barrier_arrive(turns)
            plgpu.barrier_wait(turns)

        def work(i, done):
            row, buffer = order[first + i * programs], lax.rem(i, jnp.int32(buffers))
            count = counts[row]
            plgpu.barrier_wait(loaded.at[buffer])
            own = {name: ref.at[buffer, group] for name, ref in row_at.items()}

            def visit(j, carry):
                entry, shift, state = carry
                following = jnp.minimum(j + 1, count - 1)  # read early: it takes its time
                then = entries[row, following], shift if bias is None else bias[row, following]
                slot = lax.rem(done + j, jnp.int32(slots))
                plgpu.barrier_wait(filled.at[slot])
                r = SimpleNamespace(**own, **{name: ref.at[slot] for name, ref in slot_at.items()})
                at = SimpleNamespace(
                    full=entry >= FULL, bias=None if bias is None else shift, take_turns=take_turns
                )
                state = self.step(s, r, at, state)
                plgpu.barrier_arrive(freed.at[slot])
                return *then, state

            r = SimpleNamespace(**own, **{name: ref.at[0] for name, ref in slot_at.items()})
            start = entries[row, 0], jnp.float32(0) if bias is None else bias[row, 0], self.begin(s, r)
            pl.when(self.turns & (group == 1))(
                take_turns
            )  # half a visit behind; in step again when the row is done,
            *_, state = lax.fori_loop(0, count, visit, start)
            pl.when(self.turns & (group == 0))(take_turns)  # lest one waits for the other's next row
            found = self.end(s, r, state)
            for name in self.wide:
                out[name][row, group] = found[name]
            for name, place in self.narrow.items():
                own[place][...] = found[name].astype(jnp.bfloat16)
            plgpu.commit_smem()
            for name, place in self.narrow.items():
                batch, head, tile = _split(row, side)
                plgpu.copy_smem_to_gmem(own[place], out[name].at[batch, tile, group, :, head])
            plgpu.wait_smem_to_gmem(0)
            plgpu.barrier_arrive(released.at[buffer])
            return done + count

        def fetch(i, done):
            row, buffer = order[first + i * programs], lax.rem(i, jnp.int32(buffers))
            count, tile = counts[row], tiles[row]

            @pl.when(i >= buffers)
            def _():
                plgpu.barrier_wait(released.at[buffer])

            for name, ref in row_at.items():
                for half in range(GROUPS):
                    source = _find(per_row[name], tile, self.row_side, half)
                    plgpu.copy_gmem_to_smem(source, ref.at[buffer, half], loaded.at[buffer])

            @pl.loop(0, count)
            def _(j):
                slot, tile = lax.rem(done + j, jnp.int32(slots)), entries[row, j] & jnp.int32(FULL - 1)

                @pl.when(done + j >= slots)
                def _():
                    plgpu.barrier_wait(freed.at[slot])

                for name, ref in slot_at.items():
                    plgpu.copy_gmem_to_smem(
                        _find(per_visit[name], tile, self.visit_side), ref.at[slot], filled.at[slot]
                    )

            return done + count

        @pl.when(group < GROUPS)
        def _():
            plgpu.set_max_registers(232, action="increase")
            lax.fori_loop(0, mine, work, jnp.int32(0))

        @pl.when(group == GROUPS)
        def _():
            plgpu.set_max_registers(40, action="decrease")
            visits = lax.fori_loop(0, mine, fetch, jnp.int32(0))
            for left, barrier, places in ((visits, freed, slots), (mine, released, buffers)):

                @pl.loop(jnp.maximum(0, left - places), left)  # stays until all is read
                def _(i, barrier=barrier, places=places):
                    plgpu.barrier_wait(barrier.at[lax.rem(i, jnp.int32(places))])

    def _emulate(self, lists: Lists, per_row, per_visit):
        """The same without a GPU: its arithmetic, not its movements of data."""
        batch, _, tiles = self.row_side

        def program(row):
            own = {name: _find(x, lists.tile[row], self.row_side) for name, x in per_row.items()}

            def half(group):
                part = {name: x[group * ROWS : (group + 1) * ROWS] for name, x in own.items()}

                def visit(j, state):
                    entry, tile = lists.entries[row, j], lists.entries[row, j] & (FULL - 1)
                    r = {name: _find(x, tile, self.visit_side) for name, x in per_visit.items()}
                    bias = None if lists.bias is None else lists.bias[row, j]
                    at = SimpleNamespace(full=entry >= FULL, bias=bias, take_turns=lambda: None)
                    return self.step(self.settings, SimpleNamespace(**part, **r), at, state)

                r = SimpleNamespace(
                    **part, **{name: _find(x, 0, self.visit_side) for name, x in per_visit.items()}
                )
                state = lax.fori_loop(0, lists.counts[row], visit, self.begin(self.settings, r))
                return self.end(self.settings, r, state)

            return jax.tree.map(lambda *x: jnp.concatenate(x), *map(half, range(GROUPS)))

        found = lax.map(program, jnp.arange(len(lists.order)))
        for name in self.narrow:
            x = found[name].astype(jnp.bfloat16)
            found[name] = jnp.moveaxis(x.reshape(batch, -1, tiles, *x.shape[1:]), 1, 3)
        return found


def _split(number, side: Side):
    """Batch row, head and tile of a tile's number."""
    _, heads, tiles = side
    if isinstance(number, int):
        number = jnp.int32(number)
    row = lax.div(number, jnp.int32(tiles))
    return lax.div(row, jnp.int32(heads)), lax.rem(row, jnp.int32(heads)), lax.rem(number, jnp.int32(tiles))


def _find(x, number, side: Side, half: int | None = None):
    """A tile, or a half of it where tiles are cut into halves: of an array, or of a reference to one."""
    at, halves = getattr(x, "at", x) if not isinstance(x, jax.Array) else x, () if half is None else (half,)
    rank = x.ndim - len(halves)
    if rank < 4:
        return at[(number, *halves)]
    batch, head, tile = _split(number, side)
    return at[(batch, tile, *halves, slice(None), head)] if rank == 5 else at[(batch, tile, *halves)]


def _halved(x, axis: int):
    return x.reshape(*x.shape[:axis], GROUPS, ROWS, *x.shape[axis + 1 :])


def _processors() -> int:
    """Streaming multiprocessors of the GPU, or of the one that is compiled for."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    if target is not None and target.num_cores:
        return target.num_cores
    return getattr(jax.devices()[0], "core_count", 132)


def _bytes(shape, dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _shared(shape, dtype):
    """Shared memory; matrices lie as the tensor cores want them."""
    if dtype != jnp.bfloat16:
        return plgpu.SMEM(shape, dtype)
    columns = min(CHANNELS, shape[-1])
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(2 * columns))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def _emulated() -> bool:
    """Whether there is no GPU, and none is compiled for."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() != "gpu" and (target is None or target.platform != "gpu")


ENGINE = Engine(forward=forward, backward=backward, wide=(TILE, TILE, 1), small=(TILE, TILE, 1), band=(TILE, TILE),
                lanes=TILE, pure_cost=1.2, whole=True, in_place=True)  # fmt: skip

"""`flash.forward` and `flash.backward` as kernels for Hopper GPUs (Pallas on Mosaic), over the same passes and lists.

A program is a row of a work list. One warpgroup fetches the tiles on its list into a ring of slots; two others work on
64 of the row's 128 positions each. Three kernels: forward and dq take query tiles as rows and visit key tiles; dk and
dv take key tiles as rows and visit the query tiles of one head. An entry of a list says whether every pair of the
two tiles is seen and lies beyond the window: only the others are masked.

Blocks are channels. ln ω of a query with each block, cut into two bfloat16 that add up to it (to 2⁻¹⁷ of it), times the
one-hot blocks of the keys is a matrix product, as are the sums by block, in tiles of mixed blocks; where tiles are pure,
ln ω is a number per entry. Logits are kept to base 2 within.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

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


def forward(p: Pass, q, k, v):
    """See `flash.forward`."""
    return _as_it_needs(p, partial(_forward, q=q, k=k, v=v))


def _as_it_needs(p: Pass, run: Callable):
    """Runs a pass without ln ω where all of it is 0, as at λ=0."""
    if not _mixed(p):
        return run(p)
    plain = dataclasses.replace(p, queries=dataclasses.replace(p.queries, rows=None))
    return lax.cond((p.queries.rows == 0).all(), lambda: run(plain), lambda: run(p))


def _forward(p: Pass, q, k, v):
    K, value = p.keys.blocks if p.measured and p.pairs != "near" else 0, v.shape[-1]
    s = _Settings.of(p, by_block=K > 0)
    queries = {"q": _channels(q), "pos": p.queries.pos, "seg": p.queries.seg, **_log_odds(p)}
    keys = {"k": _channels(k), "v": _channels(v), "k_pos": p.keys.pos, "k_seg": p.keys.seg}
    if K or s.mixed:
        keys["e"] = _one_hot(p.keys.block)
    results: dict[str, tuple[int, ...]] = {"out": keys["v"].shape[2:], "lse": ()}
    if p.measured:
        results["zsum"] = ()
    if K:
        results["mass"] = (CHANNELS,)
    found = Call("attend", s, _forward_state, _forward_step, _forward_end, results)(Lists.of_queries(p), queries, keys)
    lse = found["lse"]
    entropy = jnp.where(jnp.isfinite(lse), lse - found["zsum"], 0.0) if p.measured else None
    return found["out"][..., :value], lse, entropy, found["mass"][..., :K] if K else None


def backward(p: Pass, q, k, v, lse, c, dout, dentropy, dmass, dexpected, columns: int):
    """See `flash.backward`; where statistics have cotangents it is that one which runs."""
    if not all(x is None for x in (dentropy, dmass, dexpected)):
        return flash.backward(p, q, k, v, lse, c, dout, dentropy, dmass, dexpected, columns)
    keyed = p.pairs != "near" and columns > 0
    return _as_it_needs(p, partial(_backward, q=q, k=k, v=v, lse=lse, c=c, dout=dout, keyed=keyed))


def _backward(p: Pass, q, k, v, lse, c, dout, keyed: bool):
    size, value, blocked = q.shape[-1], v.shape[-1], p.pairs != "near"
    q, k, v, dout = (_channels(x.astype(jnp.bfloat16)) for x in (q, k, v, dout))
    queries = {"q": q, "dout": dout, "pos": p.queries.pos, "seg": p.queries.seg, "lse": lse * LOG2E, "c": c}
    queries |= _log_odds(p)
    keys = {"k": k, "v": v, "k_pos": p.keys.pos, "k_seg": p.keys.seg}
    by_query = {"own": _one_hot(jnp.argmax(p.queries.own, -1))} if keyed else {}
    by_key = {"e": _one_hot(p.keys.block)} if blocked else {}
    lists = Lists.of_queries(p)

    results: dict[str, tuple[int, ...]] = {"dq": q.shape[2:]} | ({"sums": (CHANNELS,)} if blocked else {})
    call = Call("attend_dq", _Settings.of(p, by_block=blocked), _dq_state, _dq_step, _last, results)
    found = call(lists, queries, keys | by_key)
    dq, sums = found["dq"][..., :size] * p.scale, found["sums"][..., : p.keys.blocks] if blocked else None

    results = {"dk": k.shape[2:], "dv": v.shape[2:]} | ({"by_query": (CHANNELS,)} if keyed else {})
    call = Call("attend_dk", _Settings.of(p, by_block=keyed), _dk_state, _dk_step, _last, results)
    lists, heads = lists.of_keys(p)
    found = call(lists, keys | (by_key if _mixed(p) else {}), queries | by_query)
    J = p.work.lists.shape[1]
    dk, dv = (found[name].reshape(-1, heads, J, *found[name].shape[1:]).sum(1) for name in ("dk", "dv"))
    dk, dv = dk.reshape(k.shape)[..., :size] * p.scale, dv.reshape(v.shape)[..., :value]
    return dq, dk, dv, sums, found["by_query"][..., : p.queries.own.shape[-1]] if keyed else None


# Arrays as the kernels want them.


def _channels(x):
    """Pads the last axis to whole rows of shared memory."""
    short = -x.shape[-1] % CHANNELS
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, short)]) if short else x


def _one_hot(block):
    """Blocks [R, C | 1] as bfloat16 [R, C, 64]."""
    return jnp.broadcast_to(jax.nn.one_hot(block, CHANNELS, dtype=jnp.bfloat16), (len(block), TILE, CHANNELS))


def _log_odds(p: Pass):
    """ln ω of each query with each block to base 2, in tiles of mixed blocks: two bfloat16 [R, C, 64]."""
    if not _mixed(p):
        return {}
    rows = _channels(p.queries.rows * LOG2E)
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
        return cls(order, p.work.counts[:R], jnp.arange(R, dtype=jnp.int32), jnp.where(full, tile | FULL, tile), bias)

    def of_keys(self, p: Pass):
        """The same visits by key tile and query head, [B·N·J, I]; and how many query heads share a key tile."""
        (R, J), S = p.work.lists.shape, len(p.keys.pos)
        I, heads = R // p.heads, p.heads * J // S  # noqa: E741
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
        return Lists(work.order.reshape(-1)[: len(rows)], work.counts[: len(rows)], tile, queries | full, bias), heads


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


def _product(s: _Settings, a, b, *more):
    """a·b of a row's half, [64, columns] float32; `more`: further pairs to add."""
    columns = b.shape[1]
    if s.emulated:
        return sum(jnp.dot(left, right, preferred_element_type=jnp.float32) for left, right in ((a, b), *more))

    def run(acc):
        for left, right in ((a, b), *more):
            plgpu.wgmma(acc, left, right)
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


def _logits(s: _Settings, r, at, products, bias_products, keys_first=False):
    """z to base 2, [64, 128]."""
    z = _product(s, *products) * s.scale
    if at.bias is not None:
        z = z + at.bias  # of a whole tile: pairs inside the window are not in its pass
    bias = _product(s, *bias_products[0], bias_products[1]) if s.mixed else None

    def masked(z):
        seen, far = _pairs(s, r, keys_first)
        if bias is not None:
            z = z + (bias if s.pairs == "far" else jnp.where(far, bias, 0.0))
        return jnp.where(seen, z, MASKED)

    def unmasked(z):
        return z if bias is None else z + bias

    return masked(z) if s.pairs == "near" else lax.cond(at.full, unmasked, masked, z)


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
        state["mass"] = _filled(s, 0.0, ROWS, CHANNELS)
    return state


def _forward_step(s: _Settings, r, at, state):
    z = _logits(s, r, at, (r.q, _turn(s, r.k)), _bias_of_queries(s, r))
    top = jnp.maximum(state["top"], z.max(axis=1))
    weight, fade = jnp.exp2(z - _along_rows(top, TILE)), jnp.exp2(state["top"] - top)
    new = {"top": top, "total": state["total"] * fade + weight.sum(axis=1)}
    if s.measured:
        new["zsum"] = state["zsum"] * fade + (weight * z).sum(axis=1)
    value = r.v.shape[-1]
    new["out"] = state["out"] * _along_rows(fade, value) + _product(s, weight.astype(jnp.bfloat16), r.v)
    if s.by_block:
        mass = _product(s, _beyond(s, r, at, weight), r.e)
        new["mass"] = state["mass"] * _along_rows(fade, CHANNELS) + mass
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
        found["mass"] = state["mass"] * _along_rows(inverse, CHANNELS)
    return found


def _bias_of_queries(s: _Settings, r):
    return ((r.high, _turn(s, r.e)), (r.low, _turn(s, r.e))) if s.mixed else ()


def _dq_state(s: _Settings, r):
    return {"dq": _filled(s, 0.0, ROWS, r.q.shape[-1])} | ({"sums": _filled(s, 0.0, ROWS, CHANNELS)} if s.by_block else {})


def _dq_step(s: _Settings, r, at, state):
    z = _logits(s, r, at, (r.q, _turn(s, r.k)), _bias_of_queries(s, r))
    lse, c = (_along_rows(_laid(s, x[...], BY_ROW), TILE) for x in (r.lse, r.c))
    dz = jnp.exp2(z - lse) * (_product(s, r.dout, _turn(s, r.v)) - c)
    new = {"dq": state["dq"] + _product(s, dz.astype(jnp.bfloat16), r.k)}
    if s.by_block:
        new["sums"] = state["sums"] + _product(s, _beyond(s, r, at, dz), r.e)
    return new


def _dk_state(s: _Settings, r):
    state = {"dk": _filled(s, 0.0, ROWS, r.k.shape[-1]), "dv": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    return state | ({"by_query": _filled(s, 0.0, ROWS, CHANNELS)} if s.by_block else {})


def _dk_step(s: _Settings, r, at, state):
    bias = ((r.e, _turn(s, r.high)), (r.e, _turn(s, r.low))) if s.mixed else ()
    z = _logits(s, r, at, (r.k, _turn(s, r.q)), bias, keys_first=True)
    lse, c = (_along_columns(_laid(s, x[...], BY_COLUMN)) for x in (r.lse, r.c))
    alpha = jnp.exp2(z - lse)
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
      results: what stands in each position of them; float32.
    """

    name: str
    settings: _Settings
    begin: Callable
    step: Callable
    end: Callable
    results: dict[str, tuple[int, ...]]

    def __call__(self, lists: Lists, per_row: dict, per_visit: dict) -> dict[str, jax.Array]:
        """Runs it on the arrays of rows and of visits, [tiles, 128, …] by name; results are [rows, 128, …]."""
        rows = len(lists.order)
        if self.settings.emulated:
            return self._emulate(lists, per_row, per_visit)
        halves = {name: x.reshape(len(x), GROUPS, ROWS, *x.shape[2:]) for name, x in per_row.items()}
        scalars = [lists.order, lists.counts, lists.tile, lists.entries]
        scalars += [] if lists.bias is None else [lists.bias]
        out = {n: jax.ShapeDtypeStruct((rows, GROUPS, ROWS, *x), jnp.float32) for n, x in self.results.items()}
        each = sum(_bytes(x.shape[1:], x.dtype) for x in per_visit.values())
        fixed = sum(_bytes(x.shape[1:], x.dtype) for x in halves.values())
        slots = min(4, (SHARED - fixed) // each)
        if slots < 1:
            raise ValueError(f"attend: {self.name} needs {fixed + each} bytes of shared memory, there are {SHARED}")
        scratch = (
            {name: _shared(x.shape[1:], x.dtype) for name, x in halves.items()},
            {name: _shared((slots, *x.shape[1:]), x.dtype) for name, x in per_visit.items()},
            plgpu.Barrier(num_arrivals=len(halves), num_barriers=GROUPS),
            plgpu.Barrier(num_arrivals=len(per_visit), num_barriers=slots),
            plgpu.Barrier(num_arrivals=GROUPS, num_barriers=slots),
        )
        run = plgpu.kernel(
            partial(self._program, slots, lists.bias is not None),
            out_type=out,
            scratch_types=scratch,
            grid=(rows,),
            grid_names=("row",),
            num_threads=GROUPS + 1,
            thread_name="group",
            compiler_params=plgpu.CompilerParams(approx_math=True),
        )
        found = run(scalars, halves, per_visit)
        return {name: x.reshape(rows, TILE, *x.shape[3:]) for name, x in found.items()}

    def _emulate(self, lists: Lists, per_row, per_visit):
        """The same without a GPU: its arithmetic, not its movements of data."""

        def program(row, group):
            own = {name: x[lists.tile[row], group * ROWS : (group + 1) * ROWS] for name, x in per_row.items()}

            def visit(j, state):
                entry = lists.entries[row, j]
                r = SimpleNamespace(**own, **{name: x[entry & (FULL - 1)] for name, x in per_visit.items()})
                bias = None if lists.bias is None else lists.bias[row, j]
                return self.step(self.settings, r, SimpleNamespace(full=entry >= FULL, bias=bias), state)

            r = SimpleNamespace(**own, **{name: x[0] for name, x in per_visit.items()})
            state = lax.fori_loop(0, lists.counts[row], visit, self.begin(self.settings, r))
            return self.end(self.settings, r, state)

        halves = [lax.map(lambda row, group=group: program(row, group), jnp.arange(len(lists.order))) for group in range(GROUPS)]
        return jax.tree.map(lambda *x: jnp.concatenate(x, 1), *halves)

    def _program(self, slots, biased, scalars, per_row, per_visit, out, row_at, slot_at, loaded, filled, freed):
        s, group, number = self.settings, lax.axis_index("group"), lax.axis_index("row")
        order, counts, tiles, entries = scalars[:4]
        row = order[number]
        count = counts[row]

        @pl.when(group < GROUPS)
        def _():
            plgpu.set_max_registers(232, action="increase")
            half = {name: ref.at[group] for name, ref in row_at.items()}
            for name, ref in half.items():
                plgpu.copy_gmem_to_smem(per_row[name].at[tiles[row], group], ref, loaded.at[group])
            plgpu.barrier_wait(loaded.at[group])

            def visit(j, carry):
                entry, bias, state = carry
                following = jnp.minimum(j + 1, count - 1)  # read early: it takes its time
                then = (entries[row, following], scalars[4][row, following] if biased else bias)
                slot = lax.rem(j, jnp.int32(slots))
                plgpu.barrier_wait(filled.at[slot])
                r = SimpleNamespace(**half, **{name: ref.at[slot] for name, ref in slot_at.items()})
                at = SimpleNamespace(full=entry >= FULL, bias=bias if biased else None)
                state = self.step(s, r, at, state)
                plgpu.barrier_arrive(freed.at[slot])
                return *then, state

            widths = SimpleNamespace(**half, **{name: ref.at[0] for name, ref in slot_at.items()})
            first = (entries[row, 0], scalars[4][row, 0] if biased else jnp.float32(0))
            *_, state = lax.fori_loop(0, count, visit, (*first, self.begin(s, widths)))
            for name, x in self.end(s, widths, state).items():
                out[name][row, group] = x

        @pl.when(group == GROUPS)
        def _():
            plgpu.set_max_registers(40, action="decrease")

            def fetch(j, slot):
                tile = entries[row, j] & jnp.int32(FULL - 1)
                for name, ref in slot_at.items():
                    plgpu.copy_gmem_to_smem(per_visit[name].at[tile], ref.at[slot], filled.at[slot])

            for slot in range(slots):
                pl.when(slot < count)(partial(fetch, jnp.int32(slot), slot))

            @pl.loop(0, jnp.maximum(0, count - slots))
            def _(j):
                slot = lax.rem(j, jnp.int32(slots))
                plgpu.barrier_wait(freed.at[slot])
                fetch(j + slots, slot)


def _bytes(shape, dtype) -> int:
    return math.prod(shape) * jnp.dtype(dtype).itemsize


def _shared(shape, dtype):
    """Shared memory; matrices lie as the tensor cores want them."""
    if dtype != jnp.bfloat16:
        return plgpu.SMEM(shape, dtype)
    return plgpu.SMEM(shape, dtype, transforms=(plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128)))


def _emulated() -> bool:
    """Whether there is no GPU, and none is compiled for."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() != "gpu" and (target is None or target.platform != "gpu")


ENGINE = Engine(forward=forward, backward=backward, wide=(TILE, TILE, 1), small=(TILE, TILE, 1), band=(TILE, TILE),
                lanes=TILE, pure_cost=1.2, whole=True)  # fmt: skip

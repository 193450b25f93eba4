"""`flash.forward` and `flash.backward` as Pallas kernels for TPUs, over the same work lists.

A grid step is one visit: grid (row of a work list, place on it). Lists and counts are in scalar memory before the
kernel starts, so that the next tile is fetched while the current one is computed. The grid is as long as the longest
list; a shorter list repeats its last tile, which costs no fetch. Three kernels: forward and dq take query tiles as
rows and visit key tiles; dk and dv take key tiles as rows and visit the query tiles of all heads that share them.

Logits are kept as [keys, queries]: values per query (its maximum, sum, ln ω by block) are dense rows of lanes, and
reductions over keys run along sublanes, which is the cheap direction. ln ω and sums by block must not be rounded to
bfloat16, yet the matrix unit multiplies bfloat16. So a float32 is cut into three bfloat16 that add up to it
(`_parts`), which gives the exact result in half the products of precision HIGHEST.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from localist_jax.attention import kernel_passes
from localist_jax.attention.flash import LOWEST, MASKED
from localist_jax.attention.kernel_passes import Pass
from localist_jax.attention.sparse import AttentionEngine, PureTiles, sparse
from localist_jax.attention.tiles import WorkList, work_list

LANES = 128  # width of a vector register, to which head sizes are padded
PACK = 16  # rows of bfloat16 in a register, to which blocks are padded
MAX_LIST_ENTRIES = 1 << 17  # of work lists in scalar memory (half a MiB); longer lists run in several calls
# `lax.dot_general` dimension numbers: rows times columns, rows times rows, columns times columns.
ROWS = (((1,), (0,)), ((), ()))
BOTH_LAST = (((1,), (1,)), ((), ()))
BOTH_FIRST = (((0,), (0,)), ((), ()))
Blocks = dict[str, tuple[tuple[int, ...], float]]  # name → shape of a memory block, and its initial value


def tpu(q, k, v, **call):
    """Compute `attend` by `sparse` with these kernels; off TPU they are interpreted, which is slow.

    Raises:
      ValueError: for float64, which TPUs do not have.
    """
    if jnp.promote_types(q.dtype, jnp.float32) != jnp.float32:
        raise ValueError(f"attend: the TPU kernel takes bfloat16, float16 or float32, got {q.dtype}")
    return sparse(q, k, v, engine=ENGINE, **call)


def forward(p: Pass, q, k, v):
    """Run the forward kernel that `kernel_passes.forward` takes."""
    places = q.shape
    q, k, v = (_per_head(x) for x in (q, k, v))
    (R, C, _), Hv = q.shape, v.shape[-1]
    K = p.keys.blocks if p.measured and p.pairs != "near" else 0
    per_query = {"q_marks": _marks(p.queries), "q": _lanes(q).swapaxes(1, 2), **_bias(p)}
    per_key = {"k_marks": _marks(p.keys, p.keys.block), "k": _lanes(k), "v": _lanes(v).swapaxes(1, 2)}
    wide = per_key["v"].shape[1]
    results: Blocks = {"out": ((wide, C), 0.0), "lse_entropy": ((2, C), 0.0)}
    state: Blocks = {"top": ((1, C), LOWEST), "total": ((1, C), 0.0), "acc": ((wide, C), 0.0)}
    if p.measured:
        state["zsum"] = ((1, C), 0.0)
    if K:
        results["mass"] = ((_padded(K, PACK), C), 0.0)
    kernel = TpuKernel("attend", _Settings.of(p), _forward_step, _forward_end, results, state)
    made = kernel(p.work.lists, p.work.counts[:R], p.first, per_query, per_key)
    out, (lse, entropy) = made["out"].swapaxes(1, 2)[..., :Hv], made["lse_entropy"].swapaxes(0, 1)
    out = _in_place(out, places)
    mass = made["mass"].swapaxes(1, 2)[..., :K] if K else None
    return out, lse, entropy if p.measured else None, mass


def backward(p: Pass, q, k, v, lse, c, dout, dentropy, dmass, dexpected, columns: int):
    """Run the two backward kernels, for dq and for dk and dv, that `kernel_passes.backward` takes."""
    q_places, k_places = q.shape, k.shape
    q, k, v, dout = (_per_head(x) for x in (q, k, v, dout))
    (R, C, H), (S, C2, Hv) = q.shape, v.shape
    J, blocked = p.work.lists.shape[1], p.pairs != "near"
    K = p.keys.blocks if blocked else 0
    keyed = blocked and columns > 0
    settings = dataclasses.replace(
        _Settings.of(p),
        dentropy=dentropy is not None,
        dmass=blocked and dmass is not None,
        dexpected=dexpected is not None,
    )
    given = [jnp.zeros_like(lse) if x is None else x for x in (lse, c, dentropy, dexpected)]
    own = jnp.argmax(p.queries.own, -1) if keyed else 0  # needed only for the sums by query block
    per_query = {"q_marks": _marks(p.queries, own), "given": jnp.stack(given, 1), **_bias(p)}
    if settings.dmass:
        turned = _blocks(dmass.swapaxes(1, 2))
        per_query["dmass"] = turned if settings.pure else jnp.concatenate(_parts(turned), 1)
    per_key = {"k_marks": _marks(p.keys, p.keys.block), "k": _lanes(k), "v": _lanes(v)}
    q, dout = _lanes(q), _lanes(dout)
    wide, value = q.shape[-1], dout.shape[-1]

    results: Blocks = {"dq": ((wide, C), 0.0)}
    if blocked:
        results["sums"] = ((_padded(K, PACK), C), 0.0)
    turned = {"q": q.swapaxes(1, 2), "dout": dout.swapaxes(1, 2)}
    kernel = TpuKernel("attend_dq", settings, _dq_step, None, results, {})
    made = kernel(p.work.lists, p.work.counts[:R], p.first, {**per_query, **turned}, per_key)
    dq = made["dq"].swapaxes(1, 2)[..., :H] * p.scale
    sums = made["sums"].swapaxes(1, 2)[..., :K] if blocked else None

    work, base, each = _turned(p.work, R, S)
    results = {"dk": ((C2, wide), 0.0), "dv": ((C2, value), 0.0)}
    if keyed:  # one slot per head of the group
        heads, Kq = columns // S, p.queries.own.shape[-1]
        results["by_query"] = ((heads, _padded(Kq, PACK), C2), 0.0)
        settings = dataclasses.replace(settings, tiles_per_head=each // heads)
    kernel = TpuKernel("attend_dk", settings, _dk_step, None, results, {})
    made = kernel(work.lists, work.counts[:S], base, per_key, {**per_query, "q": q, "dout": dout})
    by_query = None
    if keyed:
        by_group = made["by_query"][:, :, :Kq].reshape(-1, J, heads, Kq, C2)
        by_query = jnp.einsum("gjhkc->ghjck", by_group).reshape(columns, C2, Kq)
    dk, dv = made["dk"][..., :H] * p.scale, made["dv"][..., :Hv]
    return _in_place(dq, q_places), _in_place(dk, k_places), _in_place(dv, k_places), sums, by_query


def _turned(work: WorkList, R: int, S: int):
    """Transpose a work list.

    Returns:
      For each key tile, query tiles numbered within those that share its keys; the first of these; their number.
    """
    J = work.lists.shape[1]
    each = R * J // S  # query tiles per row of key tiles; the heads of a group follow each other
    listed = jnp.arange(J) < work.counts[:R, None]
    visit = jnp.zeros((R, J + 1), bool).at[jnp.arange(R)[:, None], jnp.where(listed, work.lists, J)].set(True)
    visit = visit[:, :J].reshape(S // J, 1, each, J).swapaxes(2, 3)
    return work_list(visit, 1), jnp.arange(S, dtype=jnp.int32) // J * each, each


# Conversion of arrays to the layout of the kernels.


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to


def _per_head(x):
    """Transpose [B, tiles, C, heads, H] to [B·heads·tiles, C, H]."""
    return jnp.moveaxis(x, 3, 1).reshape(-1, x.shape[2], x.shape[4])


def _in_place(x, places: tuple[int, ...]):
    """Undo `_per_head`."""
    B, tiles, C, heads, _ = places
    return jnp.moveaxis(x.reshape(B, heads, tiles, C, -1), 1, 3)


def _lanes(x):
    """Pad head sizes to whole registers, as memory on the device does anyway."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, _padded(x.shape[-1], LANES) - x.shape[-1])))


def _blocks(x):
    """Pad the second axis, blocks."""
    return jnp.pad(x, ((0, 0), (0, _padded(x.shape[1], PACK) - x.shape[1]), (0, 0)))


def _marks(side, block: Any = 0):
    """Return position, segment and block number of each slot as rows of an int32 [R, 8, C]."""
    shape = side.pos.shape
    rows = [side.pos, side.seg, jnp.broadcast_to(block, shape)]
    return jnp.stack([x.astype(jnp.int32) for x in rows] + [jnp.zeros(shape, jnp.int32)] * 5, 1)


def _bias(p: Pass):
    """Return ln ω of each query with each block: float32 [R, K, 1] in pure tiles, else parts [R, 3K, C]."""
    if p.pairs == "near":
        return {}
    turned = _blocks(p.queries.rows.swapaxes(1, 2))
    return {"rows": turned if p.queries.rows.shape[1] == 1 else jnp.concatenate(_parts(turned), 1)}


def _parts(x):
    """Split a float32 into three bfloat16 that sum to it exactly.

    Bits are cut by a mask, since compilers may remove a conversion to bfloat16 and back.
    """
    parts = []
    for _ in range(3):
        bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(1 << 16))
        high = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(high.astype(jnp.bfloat16))
        x = x - high
    return parts


# The kernels. `r` holds memory blocks by name, without their leading axis: q_marks, k_marks, q, k, v, …


@dataclasses.dataclass(frozen=True)
class _Settings:
    """The static parameters of a kernel."""

    pairs: str
    window: int
    scale: float
    measured: bool
    pure: bool
    dentropy: bool = False
    dmass: bool = False
    dexpected: bool = False
    tiles_per_head: int = 0  # of queries, if sums by query block are wanted

    @classmethod
    def of(cls, p: Pass):
        pure = p.pairs != "near" and p.queries.rows.shape[1] == 1
        return cls(p.pairs, p.window, p.scale, p.measured, pure)


def _dot(a, b, dims=ROWS):
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _one_hot(block, shape, axis: int):
    """Return the one-hot of `block`, a row or a column, in bfloat16."""
    chosen = lax.broadcasted_iota(jnp.int32, shape, axis) == block
    return jnp.where(chosen, 1.0, 0.0).astype(jnp.bfloat16)


def _by_block(one_hot, x, dims=ROWS):
    """Sum a float32 by block, without rounding."""
    return sum(_dot(one_hot, part, dims) for part in _parts(x))


def _of_block(s: _Settings, r, rows, columns):
    """Return the row of each key's block: [C', C], or [1, C | 1] where tiles are pure."""
    if s.pure:
        chosen = lax.broadcasted_iota(jnp.int32, rows.shape, 0) == r.k_marks[2:3, 0:1]
        return jnp.where(chosen, rows[...], 0.0).sum(0, keepdims=True)
    three, K = rows.shape[0], rows.shape[0] // 3
    block, number = columns[:, 2:3], lax.broadcasted_iota(jnp.int32, (columns.shape[0], three), 1)
    chosen = (number == block) | (number == block + K) | (number == block + 2 * K)
    return _dot(jnp.where(chosen, 1.0, 0.0).astype(jnp.bfloat16), rows[...])


def _logits(s: _Settings, r, dims):
    """Return z [C', C], which pairs lie beyond the window (None: all), and the keys' marks as columns [C', 8]."""
    columns = r.k_marks[...].T
    z = _dot(r.k[...], r.q[...], dims) * s.scale
    gap = r.q_marks[0:1] - columns[:, 0:1]
    seen, far = r.q_marks[1:2] == columns[:, 1:2], gap >= s.window
    if s.pairs == "near":
        return jnp.where(seen & (gap >= 0) & ~far, z, MASKED), None, columns
    bias = _of_block(s, r, r.rows, columns)
    if s.pairs == "far":
        return jnp.where(seen & far, z + bias, MASKED), None, columns
    return jnp.where(seen & (gap >= 0), jnp.where(far, z + bias, z), MASKED), far, columns


def _sum_by_key(s: _Settings, r, x, far, into):
    """Add Σ_j x [C', C] to `into` [K, C] by the key's block; pairs inside the window count for no block."""
    beyond = x if far is None else jnp.where(far, x, 0.0)
    if s.pure:
        chosen = lax.broadcasted_iota(jnp.int32, into.shape, 0) == r.k_marks[2:3, 0:1]
        into[...] += jnp.where(chosen, beyond.sum(0, keepdims=True), 0.0)
    else:
        into[...] += _by_block(_one_hot(r.k_marks[2:3], (into.shape[0], x.shape[0]), 0), beyond)


def _forward_step(s: _Settings, r):
    z, far, _ = _logits(s, r, ROWS)
    top = r.top[...]
    new = jnp.maximum(top, z.max(0, keepdims=True))
    weight, fade = jnp.exp(z - new), jnp.exp(top - new)
    r.top[...] = new
    r.total[...] = fade * r.total[...] + weight.sum(0, keepdims=True)
    r.acc[...] = fade * r.acc[...] + _dot(r.v[...], weight.astype(r.v.dtype))
    if s.measured:
        r.zsum[...] = fade * r.zsum[...] + (weight * z).sum(0, keepdims=True)
        if s.pairs != "near":
            r.mass[...] = fade * r.mass[...]
            _sum_by_key(s, r, weight, far, r.mass)


def _forward_end(s: _Settings, r):
    total = r.total[...]
    some = total > 0
    safe = jnp.where(some, total, 1.0)
    lse = r.top[...] + jnp.log(safe)
    r.out[...] = r.acc[...] / safe
    r.lse_entropy[0:1] = jnp.where(some, lse, -jnp.inf)
    if s.measured:
        r.lse_entropy[1:2] = jnp.where(some, lse - r.zsum[...] / safe, 0.0)
        if s.pairs != "near":
            r.mass[...] = r.mass[...] / safe


def _gradients_of_logits(s: _Settings, r, dims):
    """Return α, dz, ∂/∂ln ω, and which pairs lie beyond the window, each [C', C]."""
    z, far, columns = _logits(s, r, dims)
    alpha = jnp.exp(z - r.given[0:1])
    push = _dot(r.v[...], r.dout[...], dims) - r.given[1:2]
    if s.dmass:
        by_key = _of_block(s, r, r.dmass, columns)
        push = push + by_key if far is None else jnp.where(far, push + by_key, push)
    if s.dentropy:
        push = push - r.given[2:3] * z
    dz = alpha * push
    return alpha, dz, dz + r.given[3:4] * alpha if s.dexpected else dz, far


def _dq_step(s: _Settings, r):
    _, dz, dbias, far = _gradients_of_logits(s, r, ROWS)
    r.dq[...] += _dot(r.k[...], dz.astype(r.k.dtype), BOTH_FIRST)
    if s.pairs != "near":
        _sum_by_key(s, r, dbias, far, r.sums)


def _dk_step(s: _Settings, r):
    alpha, dz, dbias, far = _gradients_of_logits(s, r, BOTH_LAST)
    r.dk[...] += _dot(dz.astype(r.q.dtype), r.q[...])
    r.dv[...] += _dot(alpha.astype(r.dout.dtype), r.dout[...])
    if s.tiles_per_head:
        head = lax.div(r.place, jnp.int32(s.tiles_per_head))
        beyond = dbias if far is None else jnp.where(far, dbias, 0.0)
        own = _one_hot(r.q_marks[2:3], (r.by_query.shape[1], beyond.shape[1]), 0)
        r.by_query[head] += _by_block(own, beyond, BOTH_LAST)


@dataclasses.dataclass(frozen=True)
class TpuKernel:
    """A kernel over work lists.

    Attributes:
      name, settings: name and static parameters.
      step, end: called on each visit, and after the last one of a row, with the settings and the blocks by name.
      results: float32 outputs, one block per row, which stay on the chip until the row is done.
      state: float32 blocks that last as long as a row.
    """

    name: str
    settings: _Settings
    step: Callable
    end: Callable | None
    results: Blocks
    state: Blocks

    def __call__(self, lists, counts, base, per_row: dict, per_visit: dict) -> dict[str, jax.Array]:
        """Run the kernel.

        Args:
          lists, counts: int32 [R, J] and [R], the tiles that each row visits, and how many.
          base: int32 [R], offset to add to the entries of each list.
          per_row: arrays [R, …] by name, one block per row.
          per_visit: arrays [S, …] by name, one block per visited tile.
        """
        R, J = lists.shape
        parts = -(-R * J // MAX_LIST_ENTRIES)
        rows = -(-R // parts)
        if parts == 1:
            return self._run_listed(lists, counts, base, per_row, per_visit)
        tree = (lists, counts, base, per_row)
        cut = jax.tree.map(lambda x: jnp.pad(x, [(0, rows * parts - R)] + [(0, 0)] * (x.ndim - 1)), tree)
        cut = jax.tree.map(lambda x: x.reshape(parts, rows, *x.shape[1:]), cut)
        results = lax.map(lambda part: self._run_listed(part[0], part[1], part[2], part[3], per_visit), cut)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:R], results)

    def _run_listed(self, lists, counts, base, per_row, per_visit):
        """Run the kernel on lists that fit into scalar memory."""
        J = lists.shape[1]
        args = (lists.reshape(-1), counts, base, *per_row.values(), *per_visit.values())
        run = partial(self._run_kernel, tuple(per_row), tuple(per_visit), J)
        return lax.platform_dependent(
            *args, tpu=partial(run, interpret=False), default=partial(run, interpret=True)
        )

    def _run_kernel(self, per_row, per_visit, J, lists, counts, base, *arrays, interpret):
        R = counts.shape[0]

        def visit(row, j, lists, counts, base):
            return base[row] + lists[row * J + jnp.maximum(0, jnp.minimum(j, counts[row] - 1))]

        def block(shape, index):
            whole = (0,) * len(shape)
            return pl.BlockSpec((None, *shape), lambda row, j, *work: (index(row, j, *work), *whole))

        def of_row(row, j, *work):
            return row

        indices = [of_row] * len(per_row) + [visit] * len(per_visit)
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(R, jnp.maximum(1, counts.max())),
            in_specs=[block(x.shape[1:], index) for x, index in zip(arrays, indices, strict=True)],
            out_specs=[block(shape, of_row) for shape, _ in self.results.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape, _ in self.state.values()],
        )
        call = pl.pallas_call(
            partial(self._kernel, (*per_row, *per_visit, *self.results, *self.state), J),
            [jax.ShapeDtypeStruct((R, *shape), jnp.float32) for shape, _ in self.results.values()],
            grid_spec=grid,
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
            interpret=interpret,
            name=self.name,
        )
        return dict(zip(self.results, call(lists, counts, base, *arrays), strict=True))

    def _kernel(self, names, J, lists, counts, base, *refs):
        row, j = pl.program_id(0), pl.program_id(1)
        r = SimpleNamespace(**dict(zip(names, refs, strict=True)))

        @pl.when(j == 0)
        def start():
            for name, (shape, value) in {**self.results, **self.state}.items():
                getattr(r, name)[...] = jnp.full(shape, value, jnp.float32)

        @pl.when(j < counts[row])
        def work():
            r.place = lists[row * J + j]
            self.step(self.settings, r)

        @pl.when(j == jnp.maximum(0, counts[row] - 1))
        def end():
            if self.end is not None:
                self.end(self.settings, r)


# Tiles are large because every visit has a fixed cost of about a third of a microsecond. The cost of a pair in pure
# tiles is an estimate from that, not measured.
ENGINE = AttentionEngine(
    partial(kernel_passes.forward, forward),
    partial(kernel_passes.backward, backward),
    wide=(256, 512, 1),
    small=(128, 128, 1),
    many_blocks=1
    << 30,  # never: the saving was not measured on TPU, and a second program takes longer to compile
    pure=(PureTiles((128, 128, 1), 3.0),),
    band=(128, 128),
    lanes=1,
    whole=True,
    overlaps=False,
)

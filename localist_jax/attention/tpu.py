"""`flash.forward` and `flash.backward` as Pallas kernels for TPUs, over the same work lists.

A grid step is one visit: grid (row of a work list, place on it). Lists and counts lie in scalar memory before the
kernel starts, so that the next tile is fetched while this one is worked on; the grid ends with the longest list,
and a shorter one repeats its last tile, which costs no fetch. Three kernels: forward and dq take query tiles as
rows and visit key tiles; dk and dv take key tiles as rows and visit the query tiles of all heads that share them.

Logits are kept as [keys, queries]: what belongs to a query (its maximum, sum, ln ω by block) is a dense row of
lanes, and reductions over keys run along sublanes, which is the cheap direction. ln ω and sums by block must not
round to bfloat16, yet the matrix unit multiplies bfloat16: a float32 is cut into three bfloat16 that add up to it
(`_parts`), which gives the exact figure in half the products of precision HIGHEST.
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

from localist_jax.attention import tiled
from localist_jax.attention.flash import LOWEST, MASKED
from localist_jax.attention.sparse import Engine, Pure, sparse
from localist_jax.attention.tiled import Pass
from localist_jax.attention.tiles import WorkList, work_list

LANES = 128  # width of a vector register, to which head sizes are padded
PACK = 16  # rows of bfloat16 in a register, to which blocks are padded
LISTED = 1 << 17  # entries of work lists in scalar memory (half a MiB of one): more rows run in several calls
ROWS = (((1,), (0,)), ((), ()))  # a product of rows with columns,
BOTH_LAST = (((1,), (1,)), ((), ()))  # of rows with rows,
BOTH_FIRST = (((0,), (0,)), ((), ()))  # and of columns with columns
Blocks = dict[str, tuple[tuple[int, ...], float]]  # name → shape of a block, and what it starts from


def tpu(q, k, v, **call):
    """See `attend`: `sparse` with these kernels; elsewhere than on a TPU they are interpreted, slowly.

    Raises:
      ValueError: for float64, which TPUs do not have.
    """
    if jnp.promote_types(q.dtype, jnp.float32) != jnp.float32:
        raise ValueError(f"attend: the TPU kernel takes bfloat16, float16 or float32, got {q.dtype}")
    return sparse(q, k, v, engine=ENGINE, **call)


def forward(p: Pass, q, k, v):
    """See `tiled.forward`."""
    places = q.shape
    q, k, v = (_per_head(x) for x in (q, k, v))
    (R, C, _), Hv = q.shape, v.shape[-1]
    K = p.keys.blocks if p.measured and p.pairs != "near" else 0
    per_query = {"at": _marks(p.queries), "q": _lanes(q).swapaxes(1, 2), **_bias(p)}
    per_key = {"to": _marks(p.keys, p.keys.block), "k": _lanes(k), "v": _lanes(v).swapaxes(1, 2)}
    wide = per_key["v"].shape[1]
    results: Blocks = {"out": ((wide, C), 0.0), "found": ((2, C), 0.0)}
    state: Blocks = {"top": ((1, C), LOWEST), "total": ((1, C), 0.0), "acc": ((wide, C), 0.0)}
    if p.measured:
        state["zsum"] = ((1, C), 0.0)
    if K:
        results["mass"] = ((_padded(K, PACK), C), 0.0)
    call = Call("attend", _Settings.of(p), _forward_step, _forward_end, results, state)
    found = call(p.work.lists, p.work.counts[:R], p.first, per_query, per_key)
    out, (lse, entropy) = found["out"].swapaxes(1, 2)[..., :Hv], found["found"].swapaxes(0, 1)
    out = _in_place(out, places)
    mass = found["mass"].swapaxes(1, 2)[..., :K] if K else None
    return out, lse, entropy if p.measured else None, mass


def backward(p: Pass, q, k, v, lse, c, dout, dentropy, dmass, dexpected, columns: int):
    """See `tiled.backward`."""
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
    own = jnp.argmax(p.queries.own, -1) if keyed else 0  # only the keys' sums ask for the queries' blocks
    per_query = {"at": _marks(p.queries, own), "given": jnp.stack(given, 1), **_bias(p)}
    if settings.dmass:
        turned = _blocks(dmass.swapaxes(1, 2))
        per_query["dmass"] = turned if settings.pure else jnp.concatenate(_parts(turned), 1)
    per_key = {"to": _marks(p.keys, p.keys.block), "k": _lanes(k), "v": _lanes(v)}
    q, dout = _lanes(q), _lanes(dout)
    wide, value = q.shape[-1], dout.shape[-1]

    results: Blocks = {"dq": ((wide, C), 0.0)}
    if blocked:
        results["sums"] = ((_padded(K, PACK), C), 0.0)
    turned = {"q": q.swapaxes(1, 2), "dout": dout.swapaxes(1, 2)}
    call = Call("attend_dq", settings, _dq_step, None, results, {})
    found = call(p.work.lists, p.work.counts[:R], p.first, {**per_query, **turned}, per_key)
    dq = found["dq"].swapaxes(1, 2)[..., :H] * p.scale
    sums = found["sums"].swapaxes(1, 2)[..., :K] if blocked else None

    work, base, each = _turned(p.work, R, S)
    results = {"dk": ((C2, wide), 0.0), "dv": ((C2, value), 0.0)}
    if keyed:  # the heads of a group one after the other
        heads, Kq = columns // S, p.queries.own.shape[-1]
        results["by_query"] = ((heads, _padded(Kq, PACK), C2), 0.0)
        settings = dataclasses.replace(settings, tiles_per_head=each // heads)
    call = Call("attend_dk", settings, _dk_step, None, results, {})
    found = call(work.lists, work.counts[:S], base, per_key, {**per_query, "q": q, "dout": dout})
    by_query = None
    if keyed:
        by_group = found["by_query"][:, :, :Kq].reshape(-1, J, heads, Kq, C2)
        by_query = jnp.einsum("gjhkc->ghjck", by_group).reshape(columns, C2, Kq)
    dk, dv = found["dk"][..., :H] * p.scale, found["dv"][..., :Hv]
    return _in_place(dq, q_places), _in_place(dk, k_places), _in_place(dv, k_places), sums, by_query


def _turned(work: WorkList, R: int, S: int):
    """The list of each key tile: query tiles, counted within those that share its keys; where these begin; how many."""
    J = work.lists.shape[1]
    each = R * J // S  # query tiles per row of key tiles: those of the heads of a group follow each other
    listed = jnp.arange(J) < work.counts[:R, None]
    visit = jnp.zeros((R, J + 1), bool).at[jnp.arange(R)[:, None], jnp.where(listed, work.lists, J)].set(True)
    visit = visit[:, :J].reshape(S // J, 1, each, J).swapaxes(2, 3)
    return work_list(visit, 1), jnp.arange(S, dtype=jnp.int32) // J * each, each


# Arrays as the kernels want them.


def _padded(size: int, to: int) -> int:
    return -(-size // to) * to


def _per_head(x):
    """[B, tiles, C, heads, H] → [B·heads·tiles, C, H]."""
    return jnp.moveaxis(x, 3, 1).reshape(-1, x.shape[2], x.shape[4])


def _in_place(x, places: tuple[int, ...]):
    """The inverse of `_per_head`."""
    B, tiles, C, heads, _ = places
    return jnp.moveaxis(x.reshape(B, heads, tiles, C, -1), 1, 3)


def _lanes(x):
    """Pads head sizes to whole registers, as memory on the device does anyway."""
    return jnp.pad(x, ((0, 0), (0, 0), (0, _padded(x.shape[-1], LANES) - x.shape[-1])))


def _blocks(x):
    """Pads blocks, the second axis."""
    return jnp.pad(x, ((0, 0), (0, _padded(x.shape[1], PACK) - x.shape[1]), (0, 0)))


def _marks(side, block: Any = 0):
    """Position, segment and block of each slot as rows of an int32 [R, 8, C]; the block as a number, not one-hot."""
    shape = side.pos.shape
    rows = [side.pos, side.seg, jnp.broadcast_to(block, shape)]
    return jnp.stack([x.astype(jnp.int32) for x in rows] + [jnp.zeros(shape, jnp.int32)] * 5, 1)


def _bias(p: Pass):
    """ln ω of each query with each block: float32 [R, K, 1] of pure tiles, else parts [R, 3K, C]."""
    if p.pairs == "near":
        return {}
    turned = _blocks(p.queries.rows.swapaxes(1, 2))
    return {"rows": turned if p.queries.rows.shape[1] == 1 else jnp.concatenate(_parts(turned), 1)}


def _parts(x):
    """Three bfloat16 whose sum is a float32, exactly. Bits are cut, since compilers may drop a conversion there and
    back as if it changed nothing.
    """
    found = []
    for _ in range(3):
        bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-(1 << 16))
        high = lax.bitcast_convert_type(bits, jnp.float32)
        found.append(high.astype(jnp.bfloat16))
        x = x - high
    return found


# The kernels. `r` holds blocks of memory by name, without their leading axis: at, to (marks), q, k, v, …


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What a kernel is specialised to."""

    pairs: str
    window: int
    scale: float
    measured: bool
    pure: bool
    dentropy: bool = False
    dmass: bool = False
    dexpected: bool = False
    tiles_per_head: int = 0  # of queries, if the keys' sums are wanted

    @classmethod
    def of(cls, p: Pass):
        pure = p.pairs != "near" and p.queries.rows.shape[1] == 1
        return cls(p.pairs, p.window, p.scale, p.measured, pure)


def _dot(a, b, dims=ROWS):
    return lax.dot_general(a, b, dims, preferred_element_type=jnp.float32)


def _one_hot(block, shape, axis: int):
    """Bfloat16; `block` is a row or a column."""
    found = lax.broadcasted_iota(jnp.int32, shape, axis) == block
    return jnp.where(found, 1.0, 0.0).astype(jnp.bfloat16)


def _by_block(one_hot, x, dims=ROWS):
    """Sums a float32 by block, unrounded."""
    return sum(_dot(one_hot, part, dims) for part in _parts(x))


def _of_block(s: _Settings, r, rows, columns):
    """Σ_l onehot_l·rows_l: [C', C], or a row [1, C | 1] where tiles are pure."""
    if s.pure:
        chosen = lax.broadcasted_iota(jnp.int32, rows.shape, 0) == r.to[2:3, 0:1]
        return jnp.where(chosen, rows[...], 0.0).sum(0, keepdims=True)
    three, K = rows.shape[0], rows.shape[0] // 3
    block, number = columns[:, 2:3], lax.broadcasted_iota(jnp.int32, (columns.shape[0], three), 1)
    chosen = (number == block) | (number == block + K) | (number == block + 2 * K)
    return _dot(jnp.where(chosen, 1.0, 0.0).astype(jnp.bfloat16), rows[...])


def _logits(s: _Settings, r, dims):
    """z [C', C], which pairs lie beyond the window (None: all), and the keys' marks as columns [C', 8]."""
    columns = r.to[...].T
    z = _dot(r.k[...], r.q[...], dims) * s.scale
    gap = r.at[0:1] - columns[:, 0:1]
    seen, far = r.at[1:2] == columns[:, 1:2], gap >= s.window
    if s.pairs == "near":
        return jnp.where(seen & (gap >= 0) & ~far, z, MASKED), None, columns
    bias = _of_block(s, r, r.rows, columns)
    if s.pairs == "far":
        return jnp.where(seen & far, z + bias, MASKED), None, columns
    return jnp.where(seen & (gap >= 0), jnp.where(far, z + bias, z), MASKED), far, columns


def _sum_by_key(s: _Settings, r, x, far, into):
    """Adds Σ_j x [C', C] to `into` [K, C] by the key's block; inside the window counts for no block."""
    beyond = x if far is None else jnp.where(far, x, 0.0)
    if s.pure:
        chosen = lax.broadcasted_iota(jnp.int32, into.shape, 0) == r.to[2:3, 0:1]
        into[...] += jnp.where(chosen, beyond.sum(0, keepdims=True), 0.0)
    else:
        into[...] += _by_block(_one_hot(r.to[2:3], (into.shape[0], x.shape[0]), 0), beyond)


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
    r.found[0:1] = jnp.where(some, lse, -jnp.inf)
    if s.measured:
        r.found[1:2] = jnp.where(some, lse - r.zsum[...] / safe, 0.0)
        if s.pairs != "near":
            r.mass[...] = r.mass[...] / safe


def _slopes(s: _Settings, r, dims):
    """α, dz, what ∂/∂ln ω is, and which pairs lie beyond the window: [C', C] each."""
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
    _, dz, dbias, far = _slopes(s, r, ROWS)
    r.dq[...] += _dot(r.k[...], dz.astype(r.k.dtype), BOTH_FIRST)
    if s.pairs != "near":
        _sum_by_key(s, r, dbias, far, r.sums)


def _dk_step(s: _Settings, r):
    alpha, dz, dbias, far = _slopes(s, r, BOTH_LAST)
    r.dk[...] += _dot(dz.astype(r.q.dtype), r.q[...])
    r.dv[...] += _dot(alpha.astype(r.dout.dtype), r.dout[...])
    if s.tiles_per_head:
        head = lax.div(r.place, jnp.int32(s.tiles_per_head))
        beyond = dbias if far is None else jnp.where(far, dbias, 0.0)
        own = _one_hot(r.at[2:3], (r.by_query.shape[1], beyond.shape[1]), 0)
        r.by_query[head] += _by_block(own, beyond, BOTH_LAST)


@dataclasses.dataclass(frozen=True)
class Call:
    """A kernel over work lists.

    Attributes:
      name, settings: of the kernel.
      step, end: run on each visit, and after the last one of a row, with the settings and the blocks by name.
      results: float32, a block per row, which stays on the chip until the row is done.
      state: likewise, and not kept.
    """

    name: str
    settings: _Settings
    step: Callable
    end: Callable | None
    results: Blocks
    state: Blocks

    def __call__(self, lists, counts, base, per_row: dict, per_visit: dict) -> dict[str, jax.Array]:
        """Runs it.

        Args:
          lists: int32 [R, J], counts [R]: what each row visits.
          base: int32 [R], what to add to the entries of its list.
          per_row: arrays [R, …], by name; one block per row.
          per_visit: arrays [S, …]; one block per visit.
        """
        R, J = lists.shape
        parts = -(-R * J // LISTED)
        rows = -(-R // parts)
        if parts == 1:
            return self._on(lists, counts, base, per_row, per_visit)
        tree = (lists, counts, base, per_row)
        cut = jax.tree.map(lambda x: jnp.pad(x, [(0, rows * parts - R)] + [(0, 0)] * (x.ndim - 1)), tree)
        cut = jax.tree.map(lambda x: x.reshape(parts, rows, *x.shape[1:]), cut)
        found = lax.map(lambda part: self._on(part[0], part[1], part[2], part[3], per_visit), cut)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:R], found)

    def _on(self, lists, counts, base, per_row, per_visit):
        """The same for what fits into scalar memory."""
        J = lists.shape[1]
        args = (lists.reshape(-1), counts, base, *per_row.values(), *per_visit.values())
        run = partial(self._run, tuple(per_row), tuple(per_visit), J)
        return lax.platform_dependent(
            *args, tpu=partial(run, interpret=False), default=partial(run, interpret=True)
        )

    def _run(self, per_row, per_visit, J, lists, counts, base, *arrays, interpret):
        R = counts.shape[0]

        def visit(row, j, lists, counts, base):
            return base[row] + lists[row * J + jnp.maximum(0, jnp.minimum(j, counts[row] - 1))]

        def block(shape, at):
            whole = (0,) * len(shape)
            return pl.BlockSpec((None, *shape), lambda row, j, *work: (at(row, j, *work), *whole))

        def of_row(row, j, *work):
            return row

        ats = [of_row] * len(per_row) + [visit] * len(per_visit)
        grid = pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=3,
            grid=(R, jnp.maximum(1, counts.max())),
            in_specs=[block(x.shape[1:], at) for x, at in zip(arrays, ats, strict=True)],
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


# Tiles are large because a visit costs a third of a microsecond whatever it does. The cost of a pair in pure tiles
# is an estimate from that; no TPU was at hand to measure it.
ENGINE = Engine(
    partial(tiled.forward, forward),
    partial(tiled.backward, backward),
    wide=(256, 512, 1),
    small=(128, 128, 1),
    many_blocks=1 << 30,  # what this saves there was not measured, and a second program compiles longer
    pure=(Pure((128, 128, 1), 3.0),),
    band=(128, 128),
    lanes=1,
    whole=True,
    overlaps=False,
)

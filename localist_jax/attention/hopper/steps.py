"""What the kernels work out, tile by tile, in registers.

`r` holds a warpgroup's half of its row, and the tile it visits, by name: references to shared memory. `at` is what is
known of the visit: `full`, `bias` (ln ω to base 2, if tiles are pure), and `take_turns` at the tensor cores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from localist_jax.attention.flash import LOWEST, MASKED
from localist_jax.attention.hopper.lists import LOG2E, ROWS, TILE, is_mixed
from localist_jax.attention.tiled import Pass

BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Settings:
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
        """Those of a pass."""
        return cls(p.pairs, p.window, p.scale * LOG2E, p.measured, is_mixed(p), by_block, emulated())


def _product(s: Settings, a, b, *more, then: Callable[[], None] = lambda: None):
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


def _turn(s: Settings, ref):
    return ref.T if s.emulated else plgpu.transpose_ref(ref, (1, 0))


def _along_rows(x, columns: int):
    return lax.broadcast_in_dim(x, (ROWS, columns), (0,))


def _along_columns(x):
    return lax.broadcast_in_dim(x, (ROWS, x.shape[0]), (1,))


def _pairs(s: Settings, r, keys_first: bool):
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


def _logits(s: Settings, r, at, products, bias_products, keys_first=False, then=lambda: None):
    """(x, scale, shift): z = x·scale + shift to base 2, x [64, 128]; scale and shift are numbers."""
    x = _product(s, *products, then=then)
    scale, shift = (
        s.scale,
        0.0 if at.bias is None else at.bias,
    )  # pure tiles' passes have no pairs in the window
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


def _beyond(s: Settings, r, at, x, keys_first=False):
    """x where pairs lie beyond the window: what counts for a block; narrow."""
    if s.pairs == "all":
        x = lax.cond(at.full, lambda x: x, lambda x: jnp.where(_pairs(s, r, keys_first)[1], x, 0.0), x)
    return x.astype(jnp.bfloat16)


def _laid(s: Settings, x, layout):
    """x spread over the threads as products want it."""
    return x if s.emulated else plgpu.layout_cast(x, layout)


def _filled(s: Settings, value: float, *shape):
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else BY_ROW
    return _laid(s, jnp.full(shape, value, jnp.float32), layout)


def forward_begin(s: Settings, r):
    """Nothing attended to yet."""
    top = _filled(s, LOWEST, ROWS)
    state = {"top": top, "total": _filled(s, 0.0, ROWS), "out": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    if s.measured:
        state["zsum"] = _filled(s, 0.0, ROWS)
    if s.by_block:
        state["mass"] = _filled(s, 0.0, ROWS, r.e.shape[-1])
    return state


def forward_step(s: Settings, r, at, state):
    """Attends to a tile of keys: online softmax."""
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


def forward_end(s: Settings, r, state):
    """Values, log-sum-exp and statistics of what was attended to."""
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


def _bias_of_queries(s: Settings, r):
    return ((r.high, _turn(s, r.e)), (r.low, _turn(s, r.e))) if s.mixed else ()


def dq_begin(s: Settings, r):
    """No gradient yet."""
    state = {"dq": _filled(s, 0.0, ROWS, r.q.shape[-1])}
    return state | ({"sums": _filled(s, 0.0, ROWS, r.e.shape[-1])} if s.by_block else {})


def dq_step(s: Settings, r, at, state):
    """Adds what a tile of keys says of ∂/∂q, and of ∂/∂ln ω by the key's block."""
    x, scale, shift = _logits(s, r, at, (r.q, _turn(s, r.k)), _bias_of_queries(s, r))
    lse, c = (_laid(s, ref[...], BY_ROW) for ref in (r.lse, r.c))
    lse, c = _along_rows(lse - shift, TILE), _along_rows(c, TILE)
    dz = jnp.exp2(x * scale - lse) * (_product(s, r.dout, _turn(s, r.v)) - c)
    new = {"dq": state["dq"] + _product(s, dz.astype(jnp.bfloat16), r.k)}
    if s.by_block:
        new["sums"] = state["sums"] + _product(s, _beyond(s, r, at, dz), r.e)
    return new


def dk_begin(s: Settings, r):
    """No gradient yet."""
    state = {"dk": _filled(s, 0.0, ROWS, r.k.shape[-1]), "dv": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    return state | ({"by_query": _filled(s, 0.0, ROWS, r.own.shape[-1])} if s.by_block else {})


def dk_step(s: Settings, r, at, state):
    """Adds what a tile of queries says of ∂/∂k and ∂/∂v, and of ∂/∂ln ω by the query's block."""
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


def as_it_is(s: Settings, r, state):
    """The state is the result."""
    return state


def emulated() -> bool:
    """Whether there is no GPU, and none is compiled for."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() != "gpu" and (target is None or target.platform != "gpu")

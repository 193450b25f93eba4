"""Arithmetic of the kernels: what each warpgroup computes for a tile, in registers.

`r` holds references to shared memory by name: a warpgroup's half of its row, and the tile it visits. `visit` describes
the visit: `full`, `bias` (ln ω to base 2, if tiles are pure), and `take_turns`, which waits for the tensor cores.
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
from localist_jax.attention.kernel_passes import Pass

BY_ROW, BY_COLUMN = plgpu.Layout.WGMMA.reduce(1), plgpu.Layout.WGMMA.reduce(0)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The static parameters of a kernel."""

    pairs: str
    window: int
    scale: float  # of logits, to base 2
    measured: bool
    mixed: bool
    by_block: bool  # whether sums by block are wanted
    emulated: bool

    @classmethod
    def of(cls, p: Pass, by_block: bool):
        """Return the settings of a pass."""
        return cls(p.pairs, p.window, p.scale * LOG2E, p.measured, is_mixed(p), by_block, emulated())


def _product(s: Settings, a, b, *more, then: Callable[[], None] = lambda: None):
    """Return a·b for half a row, [64, columns] float32, plus the products in `more`; `then` runs meanwhile."""
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
    """Return which pairs of a tile are visible, and which lie beyond the window."""
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


def _logits(s: Settings, r, visit, products, bias_products, keys_first=False, then=lambda: None):
    """Return x [64, 128] and numbers scale and shift such that z = x·scale + shift, to base 2."""
    x = _product(s, *products, then=then)
    scale, shift = (
        s.scale,
        0.0 if visit.bias is None else visit.bias,
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

    return masked(x) if s.pairs == "near" else lax.cond(visit.full, unmasked, masked, x), scale, shift


def _beyond(s: Settings, r, visit, x, keys_first=False):
    """Return x in bfloat16, with 0 for pairs inside the window, which count for no block."""
    if s.pairs == "all":
        x = lax.cond(visit.full, lambda x: x, lambda x: jnp.where(_pairs(s, r, keys_first)[1], x, 0.0), x)
    return x.astype(jnp.bfloat16)


def _laid(s: Settings, x, layout):
    """Return x in the register layout that matrix products need."""
    return x if s.emulated else plgpu.layout_cast(x, layout)


def _filled(s: Settings, value: float, *shape):
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else BY_ROW
    return _laid(s, jnp.full(shape, value, jnp.float32), layout)


def forward_begin(s: Settings, r):
    """Return the state before the first visit."""
    top = _filled(s, LOWEST, ROWS)
    state = {"top": top, "total": _filled(s, 0.0, ROWS), "out": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    if s.measured:
        state["zsum"] = _filled(s, 0.0, ROWS)
    if s.by_block:
        state["mass"] = _filled(s, 0.0, ROWS, r.e.shape[-1])
    return state


def forward_step(s: Settings, r, visit, state):
    """Attend to a tile of keys by online softmax."""
    x, scale, shift = _logits(
        s, r, visit, (r.q, _turn(s, r.k)), _bias_of_queries(s, r), then=visit.take_turns
    )
    top = jnp.maximum(state["top"], x.max(axis=1) * scale + shift)
    weight, fade = jnp.exp2(x * scale - _along_rows(top - shift, TILE)), jnp.exp2(state["top"] - top)
    new = {"top": top, "total": state["total"] * fade + weight.sum(axis=1)}
    if s.measured:
        zsum = (weight * x).sum(axis=1) * scale + weight.sum(axis=1) * shift
        new["zsum"] = state["zsum"] * fade + zsum
    visit.take_turns()
    narrow = weight.astype(jnp.bfloat16)
    new["out"] = state["out"] * _along_rows(fade, r.v.shape[-1]) + _product(s, narrow, r.v)
    if s.by_block:
        mass = _product(s, _beyond(s, r, visit, weight), r.e)
        new["mass"] = state["mass"] * _along_rows(fade, r.e.shape[-1]) + mass
    return new


def forward_end(s: Settings, r, state):
    """Return the attended values, log-sum-exp and statistics."""
    some = state["total"] > 0
    inverse = 1.0 / jnp.where(some, state["total"], 1.0)
    lse = (state["top"] + jnp.log2(jnp.where(some, state["total"], 1.0))) / LOG2E
    results = {"out": state["out"] * _along_rows(inverse, state["out"].shape[-1])}
    results["lse"] = jnp.where(some, lse, -jnp.inf)
    if s.measured:
        results["zsum"] = state["zsum"] * inverse / LOG2E
    if s.by_block:
        results["mass"] = state["mass"] * _along_rows(inverse, state["mass"].shape[-1])
    return results


def _bias_of_queries(s: Settings, r):
    return ((r.high, _turn(s, r.e)), (r.low, _turn(s, r.e))) if s.mixed else ()


def dq_begin(s: Settings, r):
    """Return zero gradients."""
    state = {"dq": _filled(s, 0.0, ROWS, r.q.shape[-1])}
    return state | ({"sums": _filled(s, 0.0, ROWS, r.e.shape[-1])} if s.by_block else {})


def dq_step(s: Settings, r, visit, state):
    """Add the contribution of a tile of keys to ∂/∂q, and to ∂/∂ln ω by the key's block."""
    x, scale, shift = _logits(s, r, visit, (r.q, _turn(s, r.k)), _bias_of_queries(s, r))
    lse, c = (_laid(s, ref[...], BY_ROW) for ref in (r.lse, r.c))
    lse, c = _along_rows(lse - shift, TILE), _along_rows(c, TILE)
    dz = jnp.exp2(x * scale - lse) * (_product(s, r.dout, _turn(s, r.v)) - c)
    new = {"dq": state["dq"] + _product(s, dz.astype(jnp.bfloat16), r.k)}
    if s.by_block:
        new["sums"] = state["sums"] + _product(s, _beyond(s, r, visit, dz), r.e)
    return new


def dk_begin(s: Settings, r):
    """Return zero gradients."""
    state = {"dk": _filled(s, 0.0, ROWS, r.k.shape[-1]), "dv": _filled(s, 0.0, ROWS, r.v.shape[-1])}
    return state | ({"by_query": _filled(s, 0.0, ROWS, r.own.shape[-1])} if s.by_block else {})


def dk_step(s: Settings, r, visit, state):
    """Add the contribution of a tile of queries to ∂/∂k and ∂/∂v, and to ∂/∂ln ω by the query's block."""
    bias = ((r.e, _turn(s, r.high)), (r.e, _turn(s, r.low))) if s.mixed else ()
    x, scale, shift = _logits(s, r, visit, (r.k, _turn(s, r.q)), bias, keys_first=True)
    lse, c = (_laid(s, ref[...], BY_COLUMN) for ref in (r.lse, r.c))
    lse, c = _along_columns(lse - shift), _along_columns(c)
    alpha = jnp.exp2(x * scale - lse)
    dz = alpha * (_product(s, r.v, _turn(s, r.dout)) - c)
    new = {
        "dk": state["dk"] + _product(s, dz.astype(jnp.bfloat16), r.q),
        "dv": state["dv"] + _product(s, alpha.astype(jnp.bfloat16), r.dout),
    }
    if s.by_block:
        new["by_query"] = state["by_query"] + _product(s, _beyond(s, r, visit, dz, keys_first=True), r.own)
    return new


def identity(s: Settings, r, state):
    """Return the state itself as the results."""
    return state


def emulated() -> bool:
    """Return whether to emulate: there is no GPU, and the compilation target is not one."""
    target = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() != "gpu" and (target is None or target.platform != "gpu")

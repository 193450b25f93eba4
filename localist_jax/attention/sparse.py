"""`attend` in pure XLA, for every platform: flash attention over the tiles that the odds leave open.

There are several orders of work, called ways, which give the same result; each call takes the cheapest. *In order*
keeps positions where they are, and causality skips half of the tiles. *By block* sorts positions by block, skips every
tile of a closed pair of blocks, and computes the window as a separate banded pass. A few queries, as in decoding, read
the keys in their stored order: *page by page* where few pages are open, else several *pages together*. The choice is
made on the device from the odds and the blocks, so moving the dial recompiles nothing, and a request or head at λ=1
costs only its open tiles even in a batch with others at λ=0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero, custom_vjp_primal_tree_values

from localist_jax import bits
from localist_jax.attention import flash, tiles
from localist_jax.attention.flash import MASKED, Accumulated, Gradients, SumsByBlock, Terms
from localist_jax.attention.stats import AttentionStats, Stats
from localist_jax.attention.tiles import Filed, Layout, Marks, Section

Size = tuple[int, int, int]  # queries and keys of a tile, and lanes

# Fast on CPU: XLA uses all cores for the matrix products of tiles from about this size, and one core below it.
WIDE, SMALL = (512, 512, 4), (64, 64, 64)
MIN_PAIRS_BY_BLOCK = 1 << 17  # query-key pairs of a row below which positions always stay in order
MIN_KEYS_FOR_WIDE_PAGES = 4096  # keys above which a few queries may read them in wide tiles


@dataclasses.dataclass(frozen=True)
class PureTiles:
    """A tile size for tiles of one block.

    Attributes:
      size: of these tiles.
      cost: time per pair, relative to wide tiles.
      since: average block length, in positions, from which this size is used.
    """

    size: Size
    cost: float
    since: int = 0


@dataclasses.dataclass(frozen=True)
class AttentionEngine:
    """The functions that run the passes, and the tile sizes they want.

    Attributes:
      forward, backward: functions like those in `flash`; for kernels that take tiles, those in `kernel_passes`.
      wide, small: sizes of tiles of neighbouring positions.
      pure: sizes of tiles of one block, in order of block length.
      band: the smallest and largest tile of the pass over the window.
      lanes: number of queries computed side by side in that pass.
      page_cost: time per pair in small tiles with few queries, relative to wide tiles.
      whole: whether tiles keep their size where there are fewer positions.
      many_blocks: number of blocks from which a single pass gets a separate program for odds that are all 1.
      overlaps: whether tiles of keys may overlap, so that one tile of keys holds the whole window of a query tile.
    """

    forward: Callable = flash.forward
    backward: Callable = flash.backward
    wide: Size = WIDE
    small: Size = SMALL
    pure: tuple[PureTiles, ...] = (
        PureTiles(SMALL, 1.8),
        PureTiles((128, 128, 32), 1.7, 256),
        PureTiles((512, 256, 8), 1.0, 768),
    )
    band: tuple[int, int] = (32, 128)
    lanes: int = 8192
    page_cost: float = 2.0
    whole: bool = False
    many_blocks: int = 32
    overlaps: bool = True

    def fit(self, size: int, length: int) -> int:
        """Return the tile size to use for `length` positions."""
        return size if self.whole else min(size, length)

    def tiles_of_blocks(self, length: int) -> PureTiles:
        """Return the pure tiles for blocks of this average length."""
        return [x for x in self.pure if length >= x.since][-1]


CPU = AttentionEngine()
# A GPU runs its lanes side by side and pays for each iteration of a loop. These sizes are estimates, not measured.
GPU = AttentionEngine(
    wide=(128, 128, 256),
    small=(64, 64, 512),
    pure=(PureTiles((64, 64, 512), 1.2), PureTiles((128, 128, 256), 1.2, 256)),
    lanes=16384,
)


@dataclasses.dataclass(frozen=True)
class CallSpec:
    """The static part of a call: window, statistics, the ways that may be taken, and the engine."""

    window: int
    stats: Stats = "none"
    ways: tuple[str, ...] = ("in order", "by block")
    engine: AttentionEngine = CPU


def sparse(
    q, k, v, *, odds, relevant, filing, route, window, stats, engine: AttentionEngine | None = None, **places
):
    """Compute `attend` over open tiles only; `engine` runs the passes (default: the XLA engine of the platform)."""
    if engine is None:
        engine = GPU if jax.default_backend() == "gpu" else CPU
    marks = {side: Marks(**{x: places[f"{side}_{x}"] for x in ("block", "pos", "seg")}) for side in "qk"}
    keys = Filed(marks=marks["k"], filing=filing)
    spec = CallSpec(window=window, stats=stats, ways=_ways(engine, q.shape[1], k.shape[1]), engine=engine)
    accumulated = _attend(spec, q, k, v, odds, route, relevant, marks["q"], keys)
    if stats in ("none", "lse"):
        statistics = None if stats == "none" else AttentionStats(lse=jnp.moveaxis(accumulated.lse, 1, 2))
        return accumulated.out, statistics
    with jax.named_scope("statistics"):
        by_trait = jnp.moveaxis(accumulated.mass, 3, 0)
        lse, entropy, *masses = (
            jnp.moveaxis(x, 1, 2) for x in (accumulated.lse, accumulated.entropy, *by_trait)
        )
        sees = jnp.isfinite(lse)
        price = None
        if stats == "dense":
            plain = CallSpec(window=1, ways=("in order",), engine=engine)
            ones = jnp.ones_like(odds)
            dense = _attend(plain, q, k, v[..., :1], ones, None, relevant, marks["q"], keys)
            gain = jnp.where(sees, lse, 0.0) - jnp.where(sees, jnp.moveaxis(dense.lse, 1, 2), 0.0)
            price = bits.from_nats(masses[2] - gain)
        return accumulated.out, AttentionStats(
            lse=lse,
            entropy_bits=bits.from_nats(entropy),
            fidelity=sees - masses[0],
            gated_mass=masses[1],
            price_bits=price,
        )


def _ways(engine: AttentionEngine, queries: int, keys: int) -> tuple[str, ...]:
    """Return the ways that may be taken: the first one, unless the second costs less."""
    if queries < engine.small[0]:
        return ("pages together", "page by page") if keys > MIN_KEYS_FOR_WIDE_PAGES else ("in order",)
    return ("in order",) if queries * keys < MIN_PAIRS_BY_BLOCK else ("in order", "by block")


def _rows(table, block):
    """Return table[b, n, block[b, t], :] as [B, T, N, K]."""
    return jax.vmap(lambda by_head, row: by_head[:, row].swapaxes(0, 1))(table, block)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(spec: CallSpec, q, k, v, odds, route, relevant, q_marks: Marks, k_marks: Filed) -> Accumulated:
    """Run all passes; `out` has the dtype of the values."""
    return _in_type_of_values(_accumulate(spec, q, k, v, odds, route, relevant, q_marks, k_marks), v)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Saved:
    """Residuals of the backward pass: arguments, results, and which sums by block it has to compute."""

    arguments: tuple
    accumulated: Accumulated
    wanted: SumsByBlock = dataclasses.field(metadata={"static": True})


def _forward(spec, *arguments):
    """Run forward and keep residuals; each leaf of the arguments says whether its gradient is wanted."""
    learned = arguments[3].perturbed
    arguments = custom_vjp_primal_tree_values(arguments)
    accumulated, route = _accumulate(spec, *arguments), arguments[4]
    wanted: SumsByBlock = "route" if route is not None else "odds" if learned else "none"
    return _in_type_of_values(accumulated, arguments[2]), Saved(arguments, accumulated, wanted)


def _accumulate(spec, q, k, v, odds, route, relevant, q_marks, k_marks) -> Accumulated:
    return _choose(
        spec, partial(_attend_forward, spec), q, k, odds, q_marks, k_marks, q, k, v, odds, relevant
    )


def _in_type_of_values(accumulated: Accumulated, v) -> Accumulated:
    return dataclasses.replace(accumulated, out=accumulated.out.astype(v.dtype))


def _terms(spec: CallSpec, q, odds, relevant) -> Terms:
    """Return the inputs that all passes share.

    Traits of a pair of blocks: whether it is irrelevant; whether a gate opened it; and, for the price, ln ω.
    """
    wide = jnp.promote_types(odds.dtype, jnp.float32)
    shape = (len(q), *odds.shape[1:])
    log_odds = jnp.broadcast_to(jnp.where(odds > 0, _log(odds), MASKED).astype(wide), shape)
    traits = None
    if spec.stats in ("open", "dense"):
        gated = relevant & (jnp.arange(odds.shape[3]) > 0)
        kinds = [~relevant, gated] + [_log(odds)] * (spec.stats == "dense")
        traits = jnp.stack([jnp.broadcast_to(x, shape).astype(wide) for x in kinds], -1)
    return Terms(spec.window, q.shape[-1] ** -0.5, log_odds, traits)


def _log(odds):
    """Return ln ω, and 0 where ω = 0, since closed pairs have no mass."""
    return jnp.log(jnp.where(odds > 0, odds, 1.0))


def _backward(spec, saved, cotangents: Accumulated):
    q, k, v, odds, route, relevant, q_marks, k_marks = saved.arguments
    accumulated = saved.accumulated
    no_entropy, no_mass = _is_zero(cotangents.entropy), _is_zero(cotangents.mass)
    cotangents = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x, cotangents)
    wide = jnp.promote_types(accumulated.out.dtype, jnp.float32)
    seen = jnp.isfinite(accumulated.lse)
    safe, dout = jnp.where(seen, accumulated.lse, 0.0), cotangents.out
    c = jnp.einsum("BTNH,BTNH->BTN", accumulated.out, dout, preferred_element_type=wide)
    given = {"lse": safe, "dentropy": None, "dmass": None, "dexpected": None}
    c = c - jnp.where(seen, cotangents.lse, 0.0)
    if not no_mass:
        c, given["dmass"] = c + (accumulated.mass * cotangents.mass).sum(-1), cotangents.mass
        given["dexpected"] = cotangents.mass[..., 2] if spec.stats == "dense" else None
    if not no_entropy:
        c, given["dentropy"] = c - cotangents.entropy * (safe - accumulated.entropy), cotangents.entropy
    work = partial(_attend_backward, spec, wanted=saved.wanted)
    more = q, k, v, odds, relevant, dout, {**given, "c": c}
    gradients = _choose(spec, work, q, k, odds, q_marks, k_marks, *more)

    dodds, droute = None, None
    if saved.wanted != "none":
        with jax.named_scope("odds"):
            dodds, droute = _gradient_of_odds(gradients, odds, route, q_marks, k_marks)
    narrow = (x.astype(like.dtype) for x, like in ((gradients.dq, q), (gradients.dk, k), (gradients.dv, v)))
    return (*narrow, dodds, droute, None, None, None)


def _is_zero(cotangent) -> bool:
    """Return whether this is the cotangent of a result that nothing depends on."""
    return cotangent is None or isinstance(cotangent, SymbolicZero)


def _gradient_of_odds(gradients: Gradients, odds, route, q_marks: Marks, k_marks: Filed):
    """Return the gradients of odds and route, from sums of ∂/∂ln ω."""
    wide_odds = jnp.broadcast_to(odds, gradients.odds.shape).astype(gradients.odds.dtype)
    inverse = jnp.where(wide_odds > 0, 1 / jnp.where(wide_odds > 0, wide_odds, 1.0), 0.0)
    dodds = gradients.odds * inverse
    if odds.shape[0] == 1:
        dodds = dodds.sum(0, keepdims=True)
    if route is None:
        return dodds.astype(odds.dtype), None
    by_key = gradients.by_key * _rows(inverse, q_marks.block)
    by_query = gradients.by_query * _rows(inverse.swapaxes(2, 3), k_marks.marks.block[:, 0])
    droute = jnp.einsum("BTNl,BNkl->BTk", by_key, wide_odds)
    droute = droute + jnp.einsum("BSNk,BNkl->BSl", by_query, wide_odds)
    return dodds.astype(odds.dtype), droute.astype(route.dtype)


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _choose(spec: CallSpec, work, q, k, odds, q_marks, k_marks, *arguments):
    """Run `work` on the passes of the way that costs least."""
    plans = {way: PLANNERS[way](spec, q, k, odds, q_marks, k_marks) for way in spec.ways}
    if len(plans) == 1:
        return work(next(iter(plans.values())), *arguments)
    first, second = plans.values()
    run = [lambda args, plan=plan: work(plan, *args) for plan in (second, first)]
    return lax.cond(second.cost < first.cost, *run, arguments)


@dataclasses.dataclass(frozen=True)
class PassPlan:
    """The sections of one way, and their cost."""

    sections: tuple[Section, ...]
    cost: Any


def _section(
    pairs: tiles.Pairs, queries: Layout, keys: tuple[Layout, Marks], q_marks, odds, window, lanes
) -> Section:
    """Return the section in these layouts; `keys` is their layout and marks."""
    q_marks, (k_layout, k_marks) = queries.mark(q_marks), keys
    visit = tiles.visited(q_marks, k_marks, odds > 0, window, pairs)
    return Section(pairs, queries, k_layout, q_marks, k_marks, visit, odds.shape[1], lanes)


def _keys_in_order(k_marks: Filed, size: int, overlap: int = 0) -> tuple[Layout, Marks]:
    """Lay out keys in tiles of neighbours; return the layout and marks [B, 1 | G, J, C]."""
    each = k_marks.each()
    return _for_heads(tiles.in_order(len(each.pos), each.pos.shape[1], size, overlap), each, k_marks)


def _keys_by_block(k_marks: Filed, blocks: int, size: int) -> tuple[Layout, Marks]:
    """Lay out keys in tiles of one block; they are sorted once for each filing."""
    each = k_marks.each()
    return _for_heads(tiles.by_block(each.block, blocks, size), each, k_marks)


def _for_heads(layout: Layout, each: Marks, k_marks: Filed) -> tuple[Layout, Marks]:
    return layout.for_heads(k_marks), jax.tree.map(k_marks.by_head, layout.mark(each))


def _in_order(spec, q, k, odds, q_marks, k_marks) -> PassPlan:
    engine, few, many = spec.engine, min(q.shape[1], k.shape[1]), max(q.shape[1], k.shape[1])
    size = engine.small if few < engine.small[0] or many < engine.wide[1] else engine.wide
    section = _neighbours(spec, q, k, odds, q_marks, k_marks, size)
    return PassPlan((section,), section.cost)


def _page_by_page(spec, q, k, odds, q_marks, k_marks) -> PassPlan:
    section = _neighbours(spec, q, k, odds, q_marks, k_marks, spec.engine.small)
    return PassPlan((section,), spec.engine.page_cost * section.cost)


def _pages_together(spec, q, k, odds, q_marks, k_marks) -> PassPlan:
    """Group as many pages as a wide tile holds, and visit a group if any of its pages has to be visited."""
    (pages,) = _page_by_page(spec, q, k, odds, q_marks, k_marks).sections
    count = spec.engine.wide[1] // spec.engine.small[1]
    visit = jnp.pad(pages.visit, ((0, 0),) * 3 + ((0, -pages.visit.shape[3] % count),))
    visit = visit.reshape(*visit.shape[:3], -1, count).any(-1)
    layout, marks = _keys_in_order(k_marks, spec.engine.wide[1])
    together = dataclasses.replace(pages, k_layout=layout, k_marks=marks, visit=visit)
    return PassPlan((together,), together.cost)


def _neighbours(spec, q, k, odds, q_marks, k_marks, size: Size) -> Section:
    """Return one section of all pairs, in tiles of neighbours."""
    rows, columns, lanes = size
    (B, T), S, fit = q.shape[:2], k.shape[1], spec.engine.fit
    queries, keys = tiles.in_order(B, T, fit(rows, T)), _keys_in_order(k_marks, fit(columns, S))
    return _section("all", queries, keys, q_marks, odds, spec.window, lanes)


def _by_block(spec, q, k, odds, q_marks, k_marks) -> PassPlan:
    pure = spec.engine.tiles_of_blocks(min(q.shape[1], k.shape[1]) // odds.shape[3])
    rows, columns, lanes = pure.size
    queries = tiles.by_block(q_marks.block, odds.shape[2], rows)
    keys = _keys_by_block(k_marks, odds.shape[3], columns)
    far = _section("far", queries, keys, q_marks, odds, spec.window, lanes)
    near = _in_window(spec, q, k, odds, q_marks, k_marks)
    return PassPlan((near, far), pure.cost * (far.cost + near.cost))


def _in_window(spec, q, k, odds, q_marks, k_marks) -> Section:
    (B, T), S, N = q.shape[:2], k.shape[1], odds.shape[1]
    engine, (smallest, largest) = spec.engine, spec.engine.band
    size = min(largest, max(smallest, 1 << (spec.window - 1).bit_length()))
    lanes, size = max(1, engine.lanes // size), engine.fit(size, T)
    queries = tiles.in_order(B, T, size)
    if not engine.overlaps or T != S:
        keys = _keys_in_order(k_marks, engine.fit(size, S))
        return _section("near", queries, keys, q_marks, odds, spec.window, lanes)
    layout, marks = _keys_in_order(k_marks, size, overlap=spec.window - 1)
    whole = tiles.in_step(q_marks, k_marks.marks)
    return Section("near", queries, layout, queries.mark(q_marks), marks, None, N, lanes, whole)


PLANNERS = {
    "in order": _in_order,
    "by block": _by_block,
    "pages together": _pages_together,
    "page by page": _page_by_page,
}


def _attend_forward(spec: CallSpec, plan: PassPlan, q, k, v, odds, relevant) -> Accumulated:
    terms = _terms(spec, q, odds, relevant)

    def run(sections, terms) -> Accumulated:
        accumulated = None
        for section in sections:
            with jax.named_scope(f"attend_{section.pairs}"):
                accumulated = spec.engine.forward(section, terms, q, k, v, accumulated)
        assert accumulated is not None
        return accumulated

    in_one = [section.pairs for section in plan.sections] == ["all"] and terms.traits is None
    if not in_one or odds.shape[3] < spec.engine.many_blocks:
        return run(plan.sections, terms)
    # At λ=0 every ω is 1. With many blocks, looking each up would cost as much again as the logits do.
    plain = dataclasses.replace(
        terms, log_odds=jnp.zeros((*terms.log_odds.shape[:2], 1, 1), terms.log_odds.dtype)
    )
    return lax.cond(
        (odds == 1).all(),
        lambda: run([s.without_blocks() for s in plan.sections], plain),
        lambda: run(plan.sections, terms),
    )


def _attend_backward(
    spec: CallSpec, plan: PassPlan, q, k, v, odds, relevant, dout, given, *, wanted: SumsByBlock
) -> Gradients:
    terms, gradients = _terms(spec, q, odds, relevant), None
    for section in plan.sections:
        with jax.named_scope(f"attend_{section.pairs}_backward"):
            gradients = spec.engine.backward(section, terms, q, k, v, dout, given, wanted, gradients)
    assert gradients is not None
    return gradients

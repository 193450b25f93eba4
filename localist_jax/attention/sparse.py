"""`attend` in pure XLA, for every platform: flash attention over the tiles that the odds leave open.

The ways give the same result, and each call takes one with less to do: positions *in order*, where causality skips
half of the tiles, or *by block*, where every tile of a closed pair of blocks is skipped and the window is a banded pass
of its own. Few queries, as in decoding, take the keys as they lie, *page by page* where few are open, else several
*pages together*. The choice is made on the device from the odds and the blocks, so that moving the dial recompiles
nothing, and a request or head at λ=1 costs its open tiles even beside others at λ=0.
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
from localist_jax.attention.api import AttentionStats, Stats
from localist_jax.attention.flash import MASKED, Found, Slopes, SumsByBlock, Terms
from localist_jax.attention.tiles import Filed, Layout, Marks, Section

Size = tuple[int, int, int]  # queries and keys of a tile, and lanes

# Fast on CPU. XLA runs the products of a tile on all cores from about this size, and those of smaller ones on one.
WIDE, SMALL = (512, 512, 4), (64, 64, 64)
SMALLEST = 1 << 17  # pairs of a row below which positions always stay in order
MANY = 4096  # keys from which few queries may take them in wide tiles


@dataclasses.dataclass(frozen=True)
class Pure:
    """Tiles of one block.

    Attributes:
      size: of these tiles.
      cost: time of a pair in them over that in wide ones.
      since: positions that blocks must have on average.
    """

    size: Size
    cost: float
    since: int = 0


@dataclasses.dataclass(frozen=True)
class Engine:
    """What runs the passes, and in what tiles.

    Attributes:
      forward, backward: as those of `flash`; with kernels that take tiles, those of `tiled`.
      wide, small: tiles of neighbours.
      pure: tiles of one block, for ever longer blocks.
      band: the smallest and largest tile of the pass over the window.
      lanes: queries side by side in that pass.
      many_blocks: from so many on a pass in one piece has another program for odds that are all 1.
      overlaps: whether tiles of keys may overlap, so that each of these tiles has one that holds its whole window.
      page_cost: time of a pair in small tiles of few queries over that in wide ones.
      whole: whether tiles keep their size where there are fewer positions.
    """

    forward: Callable = flash.forward
    backward: Callable = flash.backward
    wide: Size = WIDE
    small: Size = SMALL
    pure: tuple[Pure, ...] = (Pure(SMALL, 1.8), Pure((128, 128, 32), 1.7, 256), Pure((512, 256, 8), 1.0, 768))
    band: tuple[int, int] = (32, 128)
    lanes: int = 8192
    page_cost: float = 2.0
    whole: bool = False
    many_blocks: int = 32
    overlaps: bool = True

    def fit(self, size: int, length: int) -> int:
        """The size of tiles of so many positions."""
        return size if self.whole else min(size, length)

    def tiles_of_blocks(self, length: int) -> Pure:
        """For blocks of this length on average."""
        return [x for x in self.pure if length >= x.since][-1]


CPU = Engine()
# A GPU runs its lanes side by side and pays for each step of a loop. Sizes by reasoning: not yet measured on one.
GPU = Engine(
    wide=(128, 128, 256),
    small=(64, 64, 512),
    pure=(Pure((64, 64, 512), 1.2), Pure((128, 128, 256), 1.2, 256)),
    lanes=16384,
)


@dataclasses.dataclass(frozen=True)
class How:
    """What is known when tracing: window, whether statistics are wanted, which ways may be taken, and the engine."""

    window: int
    stats: Stats = "none"
    ways: tuple[str, ...] = ("in order", "by block")
    engine: Engine = CPU


def sparse(q, k, v, *, odds, relevant, filing, route, window, stats, engine: Engine | None = None, **places):
    """See `attend`; `engine` is what runs the passes (None: what suits the platform)."""
    if engine is None:
        engine = GPU if jax.default_backend() == "gpu" else CPU
    where = {side: Marks(**{x: places[f"{side}_{x}"] for x in ("block", "pos", "seg")}) for side in "qk"}
    keys = Filed(marks=where["k"], filing=filing)
    how = How(window=window, stats=stats, ways=_ways(engine, q.shape[1], k.shape[1]), engine=engine)
    found = _attend(how, q, k, v, odds, route, relevant, where["q"], keys)
    if stats in ("none", "lse"):
        return found.out, None if stats == "none" else AttentionStats(lse=jnp.moveaxis(found.lse, 1, 2))
    with jax.named_scope("statistics"):
        lse, entropy, *masses = (
            jnp.moveaxis(x, 1, 2) for x in (found.lse, found.entropy, *jnp.moveaxis(found.mass, 3, 0))
        )
        sees = jnp.isfinite(lse)
        price = None
        if stats == "dense":
            plain = How(window=1, ways=("in order",), engine=engine)
            ones = jnp.ones_like(odds)
            dense = _attend(plain, q, k, v[..., :1], ones, None, relevant, where["q"], keys)
            gain = jnp.where(sees, lse, 0.0) - jnp.where(sees, jnp.moveaxis(dense.lse, 1, 2), 0.0)
            price = bits.from_nats(masses[2] - gain)
        return found.out, AttentionStats(
            lse=lse,
            entropy_bits=bits.from_nats(entropy),
            fidelity=sees - masses[0],
            gated_mass=masses[1],
            price_bits=price,
        )


def _ways(engine: Engine, queries: int, keys: int) -> tuple[str, ...]:
    """Those that may be taken, the first unless the second has less to do."""
    if queries < engine.small[0]:
        return ("pages together", "page by page") if keys > MANY else ("in order",)
    return ("in order",) if queries * keys < SMALLEST else ("in order", "by block")


def _rows(table, block):
    """table[b, n, block[b, t], :] → [B, T, N, K]."""
    return jax.vmap(lambda by_head, row: by_head[:, row].swapaxes(0, 1))(table, block)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q, k, v, odds, route, relevant, q_at: Marks, k_at: Filed) -> Found:
    """What all passes find; `out` in the values' type."""
    return _in_type_of_values(_found(how, q, k, v, odds, route, relevant, q_at, k_at), v)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Saved:
    """What the backward pass needs: the arguments, what was found, and which sums by block are wanted of it."""

    arguments: tuple
    found: Found
    wanted: SumsByBlock = dataclasses.field(metadata={"static": True})


def _forward(how, *arguments):
    """Run forward for a backward pass; each leaf of the arguments comes with whether its gradient is wanted."""
    learned = arguments[3].perturbed
    arguments = custom_vjp_primal_tree_values(arguments)
    found, route = _found(how, *arguments), arguments[4]
    wanted: SumsByBlock = "route" if route is not None else "odds" if learned else "none"
    return _in_type_of_values(found, arguments[2]), Saved(arguments, found, wanted)


def _found(how, q, k, v, odds, route, relevant, q_at, k_at) -> Found:
    return _choose(how, partial(_attend_forward, how), q, k, odds, q_at, k_at, q, k, v, odds, relevant)


def _in_type_of_values(found: Found, v) -> Found:
    return dataclasses.replace(found, out=found.out.astype(v.dtype))


def _terms(how: How, q, odds, relevant) -> Terms:
    """Traits of a pair of blocks: whether it is not relevant; whether a gate opened it; and, for the price, ln ω."""
    wide = jnp.promote_types(odds.dtype, jnp.float32)
    shape = (len(q), *odds.shape[1:])
    log_odds = jnp.broadcast_to(jnp.where(odds > 0, _log(odds), MASKED).astype(wide), shape)
    traits = None
    if how.stats in ("open", "dense"):
        gated = relevant & (jnp.arange(odds.shape[3]) > 0)
        kinds = [~relevant, gated] + [_log(odds)] * (how.stats == "dense")
        traits = jnp.stack([jnp.broadcast_to(x, shape).astype(wide) for x in kinds], -1)
    return Terms(how.window, q.shape[-1] ** -0.5, log_odds, traits)


def _log(odds):
    """ln ω, and 0 where ω = 0: what is closed has no mass."""
    return jnp.log(jnp.where(odds > 0, odds, 1.0))


def _backward(how, saved, cotangents: Found):
    q, k, v, odds, route, relevant, q_at, k_at = saved.arguments
    found, no_entropy, no_mass = saved.found, _is_zero(cotangents.entropy), _is_zero(cotangents.mass)
    cotangents = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if _is_zero(x) else x, cotangents)
    wide = jnp.promote_types(found.out.dtype, jnp.float32)
    seen = jnp.isfinite(found.lse)
    safe, dout = jnp.where(seen, found.lse, 0.0), cotangents.out
    c = jnp.einsum("BTNH,BTNH->BTN", found.out, dout, preferred_element_type=wide)
    given = {"lse": safe, "dentropy": None, "dmass": None, "dexpected": None}
    c = c - jnp.where(seen, cotangents.lse, 0.0)
    if not no_mass:
        c, given["dmass"] = c + (found.mass * cotangents.mass).sum(-1), cotangents.mass
        given["dexpected"] = cotangents.mass[..., 2] if how.stats == "dense" else None
    if not no_entropy:
        c, given["dentropy"] = c - cotangents.entropy * (safe - found.entropy), cotangents.entropy
    work = partial(_attend_backward, how, wanted=saved.wanted)
    more = q, k, v, odds, relevant, dout, {**given, "c": c}
    s = _choose(how, work, q, k, odds, q_at, k_at, *more)

    dodds, droute = None, None
    if saved.wanted != "none":
        with jax.named_scope("odds"):
            dodds, droute = _of_odds(s, odds, route, q_at, k_at)
    narrow = (x.astype(like.dtype) for x, like in ((s.dq, q), (s.dk, k), (s.dv, v)))
    return (*narrow, dodds, droute, None, None, None)


def _is_zero(cotangent) -> bool:
    """Whether nothing depends on what this is the cotangent of."""
    return cotangent is None or isinstance(cotangent, SymbolicZero)


def _of_odds(s: Slopes, odds, route, q_at: Marks, k_at: Filed):
    """The gradients of odds and route, from sums of ∂/∂ln ω."""
    wide_odds = jnp.broadcast_to(odds, s.odds.shape).astype(s.odds.dtype)
    inverse = jnp.where(wide_odds > 0, 1 / jnp.where(wide_odds > 0, wide_odds, 1.0), 0.0)
    dodds = s.odds * inverse
    if odds.shape[0] == 1:
        dodds = dodds.sum(0, keepdims=True)
    if route is None:
        return dodds.astype(odds.dtype), None
    by_key = s.by_key * _rows(inverse, q_at.block)
    by_query = s.by_query * _rows(inverse.swapaxes(2, 3), k_at.marks.block[:, 0])
    droute = jnp.einsum("BTNl,BNkl->BTk", by_key, wide_odds)
    droute = droute + jnp.einsum("BSNk,BNkl->BSl", by_query, wide_odds)
    return dodds.astype(odds.dtype), droute.astype(route.dtype)


_attend.defvjp(_forward, _backward, symbolic_zeros=True)


def _choose(how: How, work, q, k, odds, q_at, k_at, *arguments):
    """Runs `work` on the passes of the way that has less to do."""
    plans = {way: PLANS[way](how, q, k, odds, q_at, k_at) for way in how.ways}
    if len(plans) == 1:
        return work(next(iter(plans.values())), *arguments)
    first, second = plans.values()
    run = [lambda args, plan=plan: work(plan, *args) for plan in (second, first)]
    return lax.cond(second.cost < first.cost, *run, arguments)


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sections of one way, and what they cost."""

    sections: tuple[Section, ...]
    cost: Any


def _section(
    pairs: tiles.Pairs, queries: Layout, keys: tuple[Layout, Marks], q_at, odds, window, lanes
) -> Section:
    """The section in these layouts; that of keys comes with their marks."""
    q_at, (k_layout, k_at) = queries.mark(q_at), keys
    visit = tiles.visited(q_at, k_at, odds > 0, window, pairs)
    return Section(pairs, queries, k_layout, q_at, k_at, visit, odds.shape[1], lanes)


def _keys_in_order(k_at: Filed, size: int, overlap: int = 0) -> tuple[Layout, Marks]:
    """Keys in tiles of neighbours, with their marks [B, 1 | G, J, C]."""
    each = k_at.each()
    return _for_heads(tiles.in_order(len(each.pos), each.pos.shape[1], size, overlap), each, k_at)


def _keys_by_block(k_at: Filed, blocks: int, size: int) -> tuple[Layout, Marks]:
    """Keys in tiles of one block; they are sorted once for each filing."""
    each = k_at.each()
    return _for_heads(tiles.by_block(each.block, blocks, size), each, k_at)


def _for_heads(layout: Layout, each: Marks, k_at: Filed) -> tuple[Layout, Marks]:
    return layout.for_heads(k_at), jax.tree.map(k_at.by_head, layout.mark(each))


def _in_order(how, q, k, odds, q_at, k_at) -> Plan:
    engine, few, many = how.engine, min(q.shape[1], k.shape[1]), max(q.shape[1], k.shape[1])
    size = engine.small if few < engine.small[0] or many < engine.wide[1] else engine.wide
    section = _neighbours(how, q, k, odds, q_at, k_at, size)
    return Plan((section,), section.cost)


def _page_by_page(how, q, k, odds, q_at, k_at) -> Plan:
    section = _neighbours(how, q, k, odds, q_at, k_at, how.engine.small)
    return Plan((section,), how.engine.page_cost * section.cost)


def _pages_together(how, q, k, odds, q_at, k_at) -> Plan:
    """As many pages as a wide tile holds are visited if one of them is."""
    (pages,) = _page_by_page(how, q, k, odds, q_at, k_at).sections
    count = how.engine.wide[1] // how.engine.small[1]
    visit = jnp.pad(pages.visit, ((0, 0),) * 3 + ((0, -pages.visit.shape[3] % count),))
    visit = visit.reshape(*visit.shape[:3], -1, count).any(-1)
    layout, marks = _keys_in_order(k_at, how.engine.wide[1])
    together = dataclasses.replace(pages, k_layout=layout, k_at=marks, visit=visit)
    return Plan((together,), together.cost)


def _neighbours(how, q, k, odds, q_at, k_at, size: Size) -> Section:
    """All pairs, in tiles of neighbours."""
    rows, columns, lanes = size
    (B, T), S, fit = q.shape[:2], k.shape[1], how.engine.fit
    queries, keys = tiles.in_order(B, T, fit(rows, T)), _keys_in_order(k_at, fit(columns, S))
    return _section("all", queries, keys, q_at, odds, how.window, lanes)


def _by_block(how, q, k, odds, q_at, k_at) -> Plan:
    pure = how.engine.tiles_of_blocks(min(q.shape[1], k.shape[1]) // odds.shape[3])
    rows, columns, lanes = pure.size
    queries = tiles.by_block(q_at.block, odds.shape[2], rows)
    keys = _keys_by_block(k_at, odds.shape[3], columns)
    far = _section("far", queries, keys, q_at, odds, how.window, lanes)
    near = _in_window(how, q, k, odds, q_at, k_at)
    return Plan((near, far), pure.cost * (far.cost + near.cost))


def _in_window(how, q, k, odds, q_at, k_at) -> Section:
    (B, T), S, N = q.shape[:2], k.shape[1], odds.shape[1]
    engine, (smallest, largest) = how.engine, how.engine.band
    size = min(largest, max(smallest, 1 << (how.window - 1).bit_length()))
    lanes, size = max(1, engine.lanes // size), engine.fit(size, T)
    queries = tiles.in_order(B, T, size)
    if not engine.overlaps or T != S:
        keys = _keys_in_order(k_at, engine.fit(size, S))
        return _section("near", queries, keys, q_at, odds, how.window, lanes)
    layout, marks = _keys_in_order(k_at, size, overlap=how.window - 1)
    whole = tiles.in_step(q_at, k_at.marks)
    return Section("near", queries, layout, queries.mark(q_at), marks, None, N, lanes, whole)


PLANS = {
    "in order": _in_order,
    "by block": _by_block,
    "pages together": _pages_together,
    "page by page": _page_by_page,
}


def _attend_forward(how: How, plan: Plan, q, k, v, odds, relevant) -> Found:
    terms = _terms(how, q, odds, relevant)

    def run(sections, terms) -> Found:
        found = None
        for section in sections:
            with jax.named_scope(f"attend_{section.pairs}"):
                found = how.engine.forward(section, terms, q, k, v, found)
        assert found is not None
        return found

    in_one = [section.pairs for section in plan.sections] == ["all"] and terms.traits is None
    if not in_one or odds.shape[3] < how.engine.many_blocks:
        return run(plan.sections, terms)
    # At λ=0 every ω is 1: looking each up costs as much again as the logits do where blocks are many.
    plain = dataclasses.replace(
        terms, log_odds=jnp.zeros((*terms.log_odds.shape[:2], 1, 1), terms.log_odds.dtype)
    )
    return lax.cond(
        (odds == 1).all(),
        lambda: run([s.without_blocks() for s in plan.sections], plain),
        lambda: run(plan.sections, terms),
    )


def _attend_backward(
    how: How, plan: Plan, q, k, v, odds, relevant, dout, given, *, wanted: SumsByBlock
) -> Slopes:
    terms, slopes = _terms(how, q, odds, relevant), None
    for section in plan.sections:
        with jax.named_scope(f"attend_{section.pairs}_backward"):
            slopes = how.engine.backward(section, terms, q, k, v, dout, given, wanted, slopes)
    assert slopes is not None
    return slopes

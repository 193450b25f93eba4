"""`attend` in pure XLA, for every platform: flash attention over the tiles that the odds leave open.

Two ways give the same result, and each call takes the one with less to do: positions *in order*, where
causality skips half of the tiles, or *by block*, where every tile of a closed pair of blocks is skipped and
the window is a banded pass of its own. The choice is made on the device from the odds and the blocks, so
that moving the dial recompiles nothing, and a request or head at λ=1 costs its open tiles even beside others
at λ=0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from localist_jax import bits
from localist_jax.attention import flash, tiles
from localist_jax.attention.api import AttentionStats, Stats
from localist_jax.attention.flash import MASKED, Keys, Pass, Queries
from localist_jax.attention.tiles import Layout, Marks

# Queries and keys of a tile, and lanes, that are fast on CPU.
WIDE, MIDDLE, SMALL = (256, 512, 4), (128, 128, 16), (64, 64, 32)
LONG_BLOCKS = 256  # positions, on average, from which tiles of one block are of the middle size
SMALLEST = 1 << 17  # pairs of a row below which positions always stay in order


@dataclasses.dataclass(frozen=True)
class Engine:
    """What runs the passes, and in what tiles.

    Attributes:
      forward, backward: as those of `flash`.
      wide, middle, small: queries and keys of a tile, and lanes; middle and small ones are also the pure ones.
      band: the smallest and largest tile of the pass over the window.
      lanes: queries side by side in that pass.
      pure_cost: time of a pair in small tiles over that in wide ones.
      whole: whether tiles keep their size where there are fewer positions.
    """

    forward: Callable = flash.forward
    backward: Callable = flash.backward
    wide: tuple[int, int, int] = WIDE
    middle: tuple[int, int, int] = MIDDLE
    small: tuple[int, int, int] = SMALL
    band: tuple[int, int] = (32, 128)
    lanes: int = 2048
    pure_cost: float = 1.7
    whole: bool = False

    def fit(self, size: int, length: int) -> int:
        """The size of tiles of so many positions."""
        return size if self.whole else min(size, length)


CPU = Engine()
# A GPU runs its lanes side by side and pays for each step of a loop. Sizes by reasoning: not yet measured on one.
GPU = Engine(wide=(128, 128, 256), middle=(128, 128, 256), small=(64, 64, 512), lanes=16384, pure_cost=1.2)


@dataclasses.dataclass(frozen=True)
class How:
    """What is known when tracing: window, whether statistics are wanted, which ways may be taken, and the engine."""

    window: int
    stats: Stats = "none"
    ways: tuple[str, ...] = ("in order", "by block")
    engine: Engine = CPU


def sparse(q, k, v, *, odds, relevant, route, window, stats, engine: Engine | None = None, **places):
    """See `attend`; `engine` is what runs the passes (None: what suits the platform)."""
    if engine is None:
        engine = GPU if jax.default_backend() == "gpu" else CPU
    where = {side: Marks(**{x: places[f"{side}_{x}"] for x in ("block", "pos", "seg")}) for side in "qk"}
    few = q.shape[1] < engine.small[0] or q.shape[1] * k.shape[1] < SMALLEST
    ways = ("in order",) if few else ("in order", "by block")
    how = How(window=window, stats=stats, ways=ways, engine=engine)
    out, lse, entropy, mass, expected = _attend(how, q, k, v, odds, route, where["q"], where["k"])
    if stats == "none":
        return out, None
    with jax.named_scope("statistics"):
        is_relevant = _rows(relevant, places["q_block"]).astype(mass.dtype)
        sees = jnp.isfinite(lse)
        fidelity = sees - (mass * (1 - is_relevant)).sum(-1)
        gated = (mass * is_relevant)[..., 1:].sum(-1)
        price = None
        if stats == "dense":
            plain = How(window=1, ways=("in order",), engine=engine)
            ones = jnp.ones_like(odds)
            _, dense_lse, *_ = _attend(plain, q, k, v[..., :1], ones, None, where["q"], where["k"])
            gain = jnp.where(sees, lse, 0.0) - jnp.where(sees, dense_lse, 0.0)
            price = bits.from_nats(expected - gain)
        return out, AttentionStats(
            lse=lse,
            entropy_bits=bits.from_nats(entropy),
            fidelity=fidelity,
            gated_mass=gated,
            price_bits=price,
        )


def _rows(table, block):
    """table[b, n, block[b, t], :] → [B, N, T, K]."""
    table = jnp.broadcast_to(table, (block.shape[0], *table.shape[1:]))
    return jax.vmap(lambda by_head, row: by_head[:, row])(table, block)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(how: How, q, k, v, odds, route, q_at: Marks, k_at: Marks):
    """out [B, T, N, Hv]; lse [B, N, T]; if measured H in nats, mass by key block [B, N, T, K], and Σ α ln ω."""
    return _forward(how, q, k, v, odds, route, q_at, k_at)[0]


def _forward(how, q, k, v, odds, route, q_at, k_at):
    out, *figures = _choose(how, partial(_attend_forward, how), q, k, v, odds, q_at, k_at)
    expected = (figures[-1] * _rows(_log(odds), q_at.block)).sum(-1) if how.stats == "dense" else None
    result = (out.astype(v.dtype), *figures, expected)
    return result, (q, k, v, odds, route, q_at, k_at, out, *figures)


def _log(odds):
    """ln ω, and 0 where ω = 0: what is closed has no mass."""
    return jnp.log(jnp.where(odds > 0, odds, 1.0))


def _backward(how, saved, cotangents):
    q, k, v, odds, route, q_at, k_at, out, lse, entropy, mass = saved
    dout, dlse, dentropy, dmass, dexpected = cotangents
    B, wide = len(q), jnp.promote_types(out.dtype, jnp.float32)
    seen = jnp.isfinite(lse)
    safe = jnp.where(seen, lse, 0.0)
    c = jnp.einsum("BTNH,BTNH->BNT", out, dout, preferred_element_type=wide) - jnp.where(seen, dlse, 0.0)
    if how.stats == "none":
        dentropy = dmass = dexpected = None
    else:
        if how.stats == "dense":
            dmass = dmass + dexpected[..., None] * _rows(_log(odds), q_at.block)
        else:
            dexpected = None
        c = c + (mass * dmass).sum(-1) - dentropy * (safe - entropy)
    work = partial(_attend_backward, how, keyed=route is not None)
    more = (safe, c, dout, dentropy, dmass, dexpected)
    dq, dk, dv, by_key, by_query = _choose(how, work, q, k, v, odds, q_at, k_at, *more)

    with jax.named_scope("odds"):
        wide_odds = jnp.broadcast_to(odds, (B, *odds.shape[1:])).astype(wide)
        inverse = jnp.where(wide_odds > 0, 1 / jnp.where(wide_odds > 0, wide_odds, 1.0), 0.0)
        by_key = by_key * _rows(inverse, q_at.block)  # Σ_j ∂/∂ω of each query and key block
        own = jax.nn.one_hot(q_at.block, odds.shape[2], dtype=wide)
        dodds = jnp.where(odds > 0, jnp.einsum("BTk,BNTl->BNkl", own, by_key), 0.0)
        if odds.shape[0] == 1:
            dodds = dodds.sum(0, keepdims=True)
        droute = None
        if route is not None:
            by_query = by_query * _rows(inverse.swapaxes(2, 3), k_at.block)
            droute = jnp.einsum("BNTl,BNkl->BTk", by_key, wide_odds)
            droute = droute + jnp.einsum("BNSk,BNkl->BSl", by_query, wide_odds)
            droute = droute.astype(route.dtype)
    narrow = (x.astype(like.dtype) for x, like in ((dq, q), (dk, k), (dv, v), (dodds, odds)))
    return (*narrow, droute, None, None)


_attend.defvjp(_forward, _backward)


def _choose(how: How, work, q, k, v, odds, q_at, k_at, *more):
    """Runs `work` on the passes of the way that has less to do."""
    plans = {way: PLANS[way](how, q, k, odds, q_at, k_at) for way in how.ways}
    if len(plans) == 1:
        return work(next(iter(plans.values())), q, k, v, odds, *more)
    first, second = plans.values()
    run = [lambda args, plan=plan: work(plan, *args) for plan in (second, first)]
    return lax.cond(second.cost < first.cost, *run, (q, k, v, odds, *more))


@dataclasses.dataclass(frozen=True)
class Section:
    """One pass of a plan before its work lists are made: pairs, layouts, marks in tiles, visits, lanes."""

    pairs: tiles.Pairs
    q_layout: Layout
    k_layout: Layout
    q_at: Marks
    k_at: Marks
    visit: jax.Array
    lanes: int

    @classmethod
    def make(cls, pairs: tiles.Pairs, layouts: tuple[Layout, Layout], q_at, k_at, is_open, window, lanes):
        """The section of these pairs in these layouts (of queries and of keys)."""
        q_at, k_at = (layout.mark(at) for layout, at in zip(layouts, (q_at, k_at), strict=True))
        visit = tiles.visited(q_at, k_at, is_open, window, pairs)
        return cls(pairs, *layouts, q_at, k_at, visit, min(lanes, visit.size // visit.shape[-1]))

    @property
    def cost(self):
        """Pairs in the tiles to visit."""
        return self.visit.sum(dtype=jnp.float32) * self.q_at.pos.shape[-1] * self.k_at.pos.shape[-1]

    def prepare(self, how: How, odds, groups: int, scale: float, keyed: bool) -> Pass:
        """The pass, ready to run."""
        B, N, I, J = self.visit.shape
        wide = jnp.promote_types(odds.dtype, jnp.float32)
        slots = slice(0, 1) if self.q_layout.pure else slice(None)  # the first slot of a tile is filled
        rows = own = None
        if self.pairs != "near":
            log_odds = jnp.where(odds > 0, _log(odds), MASKED).astype(wide)
            block = self.q_at.block[..., slots]
            rows = _rows(log_odds, block.reshape(B, -1)).reshape(B * N * I, block.shape[-1], -1)
            if keyed:
                own = _per_head(jax.nn.one_hot(block, odds.shape[2], dtype=wide), N)
        at = self.k_at
        seg = jnp.where(at.seg > 0, at.seg, -1)  # padding is seen by nothing, not even by itself
        pos, seg, block = (_per_head(x, groups) for x in (at.pos, seg, at.block[..., slots]))
        row = jnp.arange(B * N * I) // I
        kv_row = row // N * groups + row % N // (N // groups)
        queries = Queries(_per_head(self.q_at.pos, N), _per_head(self.q_at.seg, N), rows, own)
        return Pass(
            pairs=self.pairs, window=how.window, scale=scale, work=tiles.work_list(self.visit, self.lanes),
            heads=B * N, first=kv_row * J, first_of_head=row * J, queries=queries,
            keys=Keys(pos, seg, block, odds.shape[3]), measured=how.stats != "none",
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """The sections of one way, and what they cost."""

    sections: tuple[Section, ...]
    cost: Any


def _in_order(how, q, k, odds, q_at, k_at) -> Plan:
    (B, T), S = q.shape[:2], k.shape[1]
    engine = how.engine
    is_small = min(T, S) < engine.small[0] or max(T, S) < engine.wide[1]
    rows, columns, lanes = engine.small if is_small else engine.wide
    layouts = tiles.in_order(B, T, engine.fit(rows, T)), tiles.in_order(B, S, engine.fit(columns, S))
    section = Section.make("all", layouts, q_at, k_at, odds > 0, how.window, lanes)
    return Plan((section,), section.cost)


def _by_block(how, q, k, odds, q_at, k_at) -> Plan:
    (B, T), S = q.shape[:2], k.shape[1]
    engine = how.engine
    size, _, lanes = engine.middle if min(T, S) >= LONG_BLOCKS * odds.shape[3] else engine.small
    layouts = tiles.by_block(q_at.block, odds.shape[2], size), tiles.by_block(k_at.block, odds.shape[3], size)
    far = Section.make("far", layouts, q_at, k_at, odds > 0, how.window, lanes)
    smallest, largest = engine.band
    size = min(largest, max(smallest, 1 << (how.window - 1).bit_length()))
    layouts = tiles.in_order(B, T, engine.fit(size, T)), tiles.in_order(B, S, engine.fit(size, S))
    near = Section.make("near", layouts, q_at, k_at, odds > 0, how.window, max(1, engine.lanes // size))
    return Plan((far, near), engine.pure_cost * (far.cost + near.cost))


PLANS = {"in order": _in_order, "by block": _by_block}


def _per_head(x, heads: int):
    """[B, M, …] → [B·heads·M, …]."""
    return jnp.repeat(x[:, None], heads, 1).reshape(-1, *x.shape[2:])


def _split(layout: Layout, x):
    """[B, T, N, …] → tiles [B·N·M, C, …]."""
    cut = jnp.moveaxis(layout.cut(x), 3, 1)
    return cut.reshape(-1, *cut.shape[3:])


def _merge(layout: Layout, x, B: int):
    """Tiles [B·N·M, C, …] → [B, T, N, …]."""
    M, C = layout.index.shape[1:]
    return layout.join(jnp.moveaxis(x.reshape(B, -1, M, C, *x.shape[2:]), 1, 3))


def _attend_forward(how: How, plan: Plan, q, k, v, odds):
    """Unmerged passes are merged by their log-sum-exp: w = e^{lse_a − lse}, H = Σ w (H_a − ln w)."""
    B, (G, H) = q.shape[0], k.shape[2:]
    parts: list[Any] = []
    for section in plan.sections:
        p = section.prepare(how, odds, G, H**-0.5, keyed=False)
        ql, kl = section.q_layout, section.k_layout
        with jax.named_scope(f"attend_{section.pairs}"):
            values, *figures = how.engine.forward(p, ql.cut(q), kl.cut(k), kl.cut(v))
        parts.append([ql.join(values), *(None if x is None else _merge(ql, x, B) for x in figures)])
    lse = parts[0][1] if len(parts) == 1 else jnp.logaddexp(parts[0][1], parts[1][1])
    out: Any = None
    entropy: Any = None
    mass: Any = None
    for part_out, part_lse, part_entropy, part_mass in parts:
        gap = jnp.where(jnp.isfinite(part_lse), part_lse - jnp.where(jnp.isfinite(lse), lse, 0.0), 0.0)
        share = jnp.where(jnp.isfinite(part_lse), jnp.exp(gap), 0.0)
        out = _plus(out, share[..., None] * part_out)
        if how.stats != "none":
            entropy = _plus(entropy, share * (part_entropy - gap))
            mass = _plus(mass, None if part_mass is None else share[..., None] * part_mass)
    by_head = [None if x is None else jnp.moveaxis(x, 2, 1) for x in (lse, entropy, mass)]
    return out, *by_head


def _plus(a, b):
    return b if a is None else a if b is None else a + b


def _attend_backward(
    how: How, plan: Plan, q, k, v, odds, lse, c, dout, dentropy, dmass, dexpected, *, keyed: bool
):
    """dq, dk, dv; Σ_j ∂/∂ln ω by key block [B, N, T, K]; Σ_i of it by query block [B, N, S, Kq] if `keyed`."""
    B, N, (G, H) = q.shape[0], q.shape[2], k.shape[2:]
    by_row = dict(lse=lse, c=c, dentropy=dentropy, dmass=dmass, dexpected=dexpected)
    totals: list[Any] = [None] * 5
    for section in plan.sections:
        p = section.prepare(how, odds, G, H**-0.5, keyed)
        ql, kl = section.q_layout, section.k_layout
        rows = {name: None if x is None else _split(ql, jnp.moveaxis(x, 1, 2)) for name, x in by_row.items()}
        columns = B * N * section.visit.shape[-1] if keyed else 0
        with jax.named_scope(f"attend_{section.pairs}_backward"):
            tiles_of_all = ql.cut(q), kl.cut(k), kl.cut(v)
            found = how.engine.backward(p, *tiles_of_all, dout=ql.cut(dout), columns=columns, **rows)
        for at, (x, layout) in enumerate(zip(found, (ql, kl, kl, ql, kl), strict=True)):
            if x is not None:
                whole = layout.join(x) if at < 3 else _merge(layout, x, B)
                totals[at] = _plus(totals[at], whole)
    dq, dk, dv, *sums = totals
    return dq, dk, dv, *(None if x is None else jnp.moveaxis(x, 2, 1) for x in sums)

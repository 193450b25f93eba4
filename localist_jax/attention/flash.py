"""Flash attention over work lists: online softmax, tile after tile, in lanes that run side by side.

For each query i and the keys j of the tiles on its list, with z = s + ln ω:

    lse = ln Σ e^z,   out = Σ α v,   mass_f = Σ α t_f   where α = e^{z − lse}
    H = lse − Σ α z   (nats)

where the traits t_f are those of the pair of blocks, and backward, from the cotangents of all four,

    dz = α ∘ (dout·v + Σ_f dmass_f t_f − dH·z − c),   c = out·dout + mass·dmass − dlse − dH·(lse − H)

so that a pass over any part of the keys needs only lse, H and c of the whole. A pass cuts what it is given into tiles
of all heads, goes on from what the pass before has found, and joins the tiles again. Block-dependent terms are
contractions with the keys' blocks: in tiles of mixed blocks a one-hot per key, in pure tiles one row per tile.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from localist_jax.attention.tiles import FAR, Layout, Marks, Section, WorkList

MASKED = -1e30  # a logit whose exponential is exactly 0; finite, so that 0·z is 0
LOWEST = -1e29  # running maxima start above it: e^(MASKED − LOWEST) = 0

SumsByBlock = Literal[
    "none", "odds", "route"
]  # which sums of ∂/∂ln ω a backward pass takes: those of the gates, or
# also those of the router


@dataclasses.dataclass(frozen=True)
class Terms:
    """What all passes of a call share.

    Attributes:
      window, scale: of the attention.
      log_odds: [B, N, Kq, K], MASKED where closed.
      traits: of pairs of blocks, [B, N, Kq, K, F], whose mass is wanted; None without statistics.
    """

    window: int
    scale: float
    log_odds: jax.Array
    traits: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Found:
    """What passes have found so far: out [B, T, N, Hv]; lse, H [B, T, N] and mass [B, T, N, F], or None."""

    out: jax.Array
    lse: jax.Array
    entropy: Any = None
    mass: Any = None

    @classmethod
    def nothing(cls, shape: tuple[int, ...], v, terms: Terms) -> Found:
        """Of queries in this shape, before the first pass."""
        wide = _wide(v)
        lse = jnp.full(shape, -jnp.inf, wide)
        out = jnp.zeros((*shape, v.shape[-1]), wide)
        if terms.traits is None:
            return cls(out, lse)
        return cls(out, lse, jnp.zeros(shape, wide), jnp.zeros((*shape, terms.traits.shape[-1]), wide))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slopes:
    """Gradients, summed over passes: dq, dk, dv in the inputs' shapes, and of ln ω by blocks [B, N, Kq, K].

    For the router also, of each query head, Σ_j ∂/∂ln ω by the key's block, by_key [B, T, N, K], and Σ_i of it by the
    query's, by_query [B, S, N, Kq]. None is 0: inside the window blocks do not matter.
    """

    dq: jax.Array
    dk: jax.Array
    dv: jax.Array
    odds: Any = None
    by_key: Any = None
    by_query: Any = None

    def plus(self, other: Slopes | None) -> Slopes:
        """The sum; None: of nothing."""
        if other is None:
            return self
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return Slopes(*(b if a is None else a if b is None else a + b for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class Board:
    """The tiles of a section, and who visits which.

    All arrays are cut into tiles of all heads, [B·M, C, heads, …], and a lane takes those of its head from them.

    Attributes:
      section, work: what is visited.
      q_at, k_at: marks [B·M, C]; of pure tiles the block is [B·M, 1]. Marks of keys [B·G·M, C] where heads differ.
    """

    section: Section
    work: WorkList
    q_at: Marks
    k_at: Marks

    @classmethod
    def of(cls, s: Section) -> Board:
        """Padding of keys is seen by nothing, not even by itself."""
        at = dataclasses.replace(s.k_at, seg=jnp.where(s.k_at.seg > 0, s.k_at.seg, -1))
        return cls(s, s.listed(), _marks(s.q_layout, s.q_at), _marks(s.k_layout, at))

    @property
    def shape(self) -> tuple[int, int]:
        """Lanes, and queries of each."""
        return self.work.order.shape[1], self.q_at.pos.shape[1]

    def lanes(self, g, groups: int) -> Lanes:
        """Those of group g, where keys have `groups` heads; numbers past the last tile are padding."""
        s, index = self.section, self.work.order[g]
        (B, I, _), (_, alike, J, _) = s.q_at.pos.shape, s.k_at.pos.shape
        tile = jnp.minimum(index, B * s.heads * I - 1)
        head, row = tile // I, tile // (s.heads * I)
        place, of_head = (row * I + tile % I).astype(jnp.uint32), (head % s.heads).astype(jnp.uint32)
        group = of_head * groups // s.heads
        return Lanes(
            board=self, head=head, own=jax.tree.map(lambda x: _get(x, place), self.q_at),
            place=(place, slice(None), of_head),
            into=(jnp.where(index == tile, place, jnp.uint32(FAR)), slice(None), of_head),
            counts=self.work.counts[index], lists=self.work.lists[tile], first=row * J,
            first_marks=row * J if alike == 1 else (row * alike + group.astype(row.dtype)) * J, group=group,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Query tiles that run side by side.

    Attributes:
      board: on which they lie.
      head: int32 [P], counted through B·N.
      own: marks [P, C].
      place, into: where a lane's tile is read and written; past the end where there is none.
      counts, lists: int32 [P], [P, J], how many key tiles they visit, and which.
      first, first_marks: int32 [P], what to add to these to find a key tile, and its marks.
      group: uint32 [P], the head of keys.
    """

    board: Board
    head: jax.Array
    own: Marks
    place: tuple
    into: tuple
    counts: jax.Array
    lists: jax.Array
    first: jax.Array
    first_marks: jax.Array
    group: jax.Array

    def of_blocks(self, table):
        """Table[b, n, block] of each query (or pure tile): [P, C | 1, K, …]."""
        return table.reshape(-1, *table.shape[2:])[self.head[:, None], self.own.block]

    def visit(self, j) -> tuple[Marks, tuple, jax.Array]:
        """Return the marks, index and validity of each lane's j-th key tile; a lane that is done stays at its last."""
        here = jnp.clip(self.counts - 1, 0, j)[:, None]
        listed = jnp.take_along_axis(self.lists, here, 1)[:, 0]
        tile, marked = ((first + listed).astype(jnp.uint32) for first in (self.first, self.first_marks))
        to = jax.tree.map(lambda x: _get(x, marked), self.board.k_at)
        return to, (tile, slice(None), self.group), j < self.counts

    def run(self, step, state):
        """All visits."""
        return lax.fori_loop(0, self.counts.max(), lambda j, state: step(state, *self.visit(j)), state)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _matmul(spec, a, b):
    """A product in the inputs' precision, summed in at least float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=_wide(a))


def _exact(spec, a, b):
    """A product with one-hot rows, which must not round: ln ω has to come out as it went in."""
    return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST)


def _marks(layout: Layout, at: Marks) -> Marks:
    """Marks in a layout's tiles, one row for each: [B·M, C]."""
    block = at.block[..., : 1 if layout.pure else None]
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), dataclasses.replace(at, block=block))


def _cut(layout: Layout, x):
    """[B, T, heads, …] → [B·M, C, heads, …]."""
    return layout.cut(x).reshape(-1, layout.size, *x.shape[2:])


def _join(layout: Layout, x):
    """[B·M, C, heads, …] → [B, T, heads, …]."""
    return layout.join(x.reshape(-1, layout.count, *x.shape[1:]))


def _get(tiles, place):
    return tiles.at[place].get(mode="promise_in_bounds")


def _put(tiles, place, x):
    return tiles.at[place].set(x, mode="drop", unique_indices=True)


def _add(tiles, place, x):
    return tiles.at[place].add(x, mode="drop")


def by_block(weights, rows):
    """Σ_j weights[p, i, j]·rows[p, j, l]: rows of keys, or one row for all of them."""
    if rows.shape[1] == 1:
        return weights.sum(-1, keepdims=True) * rows
    return _exact("pij,pjl->pil", weights, rows)


def _by_key(rows, weights):
    """Σ_j rows[p, j, l]·weights[p, j, i]: that of `by_block`, [P, K, C], from weights whose rows are keys.

    The same product with queries as rows of what comes out takes several times as long on CPU.
    """
    if rows.shape[1] == 1:
        return rows.swapaxes(1, 2) * weights.sum(1, keepdims=True)
    return _exact("plj,pji->pli", rows.swapaxes(1, 2), weights)


def _one_hot(block, blocks: int):
    return jax.nn.one_hot(block, blocks, dtype=jnp.float32)


def _logits(s: Section, terms: Terms, at: Marks, to: Marks, live, q, k, log_odds, keys_first=False):
    """z and, where the window matters, which pairs lie beyond it (None: all).

    [P, C, C'], or with `keys_first` [P, C', C]: products that contract a left factor's rows are slow on CPU, so
    the forward pass keeps queries as rows and the backward pass keys.
    """
    turn = (lambda a, b: (b, a)) if keys_first else (lambda a, b: (a, b))
    z = _matmul("pxh,pyh->pxy", *turn(q, k)) * terms.scale
    a, b = turn(at, to)
    gap = (a.pos[:, :, None] - b.pos[:, None, :]) * (-1 if keys_first else 1)
    seen = (a.seg[:, :, None] == b.seg[:, None, :]) & live[:, None, None]
    far = gap >= terms.window
    if s.pairs == "near":
        return jnp.where(seen & (gap >= 0) & ~far, z, MASKED), None
    bias = _exact("pxn,pyn->pxy", *turn(log_odds, _one_hot(to.block, log_odds.shape[-1])))
    if s.pairs == "far":
        return jnp.where(seen & far, z + bias, MASKED), None
    return jnp.where(seen & (gap >= 0), z + jnp.where(far, bias, 0.0), MASKED), far


def forward(s: Section, terms: Terms, q, k, v, found: Found | None) -> Found:
    """Attends to a section's pairs besides what was found before.

    Args:
      s, terms: the section, and what it shares with others.
      q: [B, T, N, H]; k: [B, S, G, H]; v: [B, S, G, Hv].
      found: so far; None: nothing.
    """
    measured, blocked, blocks = terms.traits is not None, s.pairs != "near", terms.log_odds.shape[-1]
    mixed = blocked and measured and not s.q_layout.pure
    board = Board.of(s)
    qs, ks, vs = _cut(s.q_layout, q), _cut(s.k_layout, k), _cut(s.k_layout, v)
    start, nothing = (Found.nothing(shape, v, terms) for shape in (board.shape, qs.shape[:3]))
    whole = nothing if found is None else jax.tree.map(partial(_cut, s.q_layout), found)

    def group(g, whole):
        at = board.lanes(g, k.shape[2])
        qt = _get(qs, at.place)
        log_odds = at.of_blocks(terms.log_odds) if blocked else None
        traits = at.of_blocks(terms.traits) if blocked and measured else None

        def step(state, to, place, live):
            top, total, acc, zsum, mass = state
            z, far = _logits(s, terms, at.own, to, live, qt, _get(ks, place), log_odds)
            new = jnp.maximum(top, z.max(-1))
            weight, fade = jnp.exp(z - new[..., None]), jnp.exp(top - new)
            total = fade * total + weight.sum(-1)
            acc = fade[..., None] * acc + _matmul("pqk,pkh->pqh", weight.astype(v.dtype), _get(vs, place))
            if measured:
                zsum = fade * zsum + (weight * z).sum(-1)
                mass = fade[..., None] * mass
            if traits is not None:
                beyond = weight if far is None else jnp.where(far, weight, 0.0)
                rows = _one_hot(to.block, blocks)
                mass = mass + by_block(beyond, rows if mixed else _exact("pyn,pynf->pyf", rows, traits))
            return new, total, acc, zsum, mass

        before = start if found is None else jax.tree.map(lambda x: _get(x, at.place), whole)
        some = jnp.isfinite(before.lse)
        lse = jnp.where(some, before.lse, LOWEST)
        zsum = jnp.where(some, lse - before.entropy, 0.0) if measured else None
        mass = jnp.zeros((*board.shape, blocks), before.out.dtype) if mixed else before.mass
        top, total, acc, zsum, mass = at.run(step, (lse, some.astype(lse.dtype), before.out, zsum, mass))
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        lse = jnp.where(some, top + jnp.log(safe), -jnp.inf)
        after = Found(acc / safe[..., None], lse)
        if measured:
            mass = _exact("pqn,pqnf->pqf", mass, traits) if mixed else mass
            entropy = jnp.where(some, lse - zsum / safe, 0.0)
            after = dataclasses.replace(after, entropy=entropy, mass=mass / safe[..., None])
        return jax.tree.map(lambda x, new: _put(x, at.into, new), whole, after)

    return jax.tree.map(partial(_join, s.q_layout), lax.fori_loop(0, board.work.groups, group, whole))


def backward(
    s: Section, terms: Terms, q, k, v, dout, given: dict[str, Any], wanted: SumsByBlock, slopes: Slopes | None
) -> Slopes:
    """Adds a section's gradients.

    Args:
      s, terms, q, k, v: as in `forward`.
      dout: [B, T, N, Hv].
      given: lse (finite) and c [B, T, N] of the whole; dentropy [B, T, N] per nat, dmass [B, T, N, F], and dexpected
        [B, T, N], that of Σ α ln ω, for what it adds to ∂/∂ln ω besides dz; or None.
      wanted: what is summed by block; without it `odds` of the result is None.
      slopes: so far; None: nothing.
    """
    blocked, (B, _, N), (Kq, blocks) = s.pairs != "near", q.shape[:3], terms.log_odds.shape[2:]
    summed, keyed = blocked and wanted != "none", blocked and wanted == "route"
    in_one = s.q_layout.pure and not keyed  # a pure tile's queries have one sum by key block
    board = Board.of(s)
    (lanes, C), wide = board.shape, _wide(q)
    of_queries, of_keys = partial(_cut, s.q_layout), partial(_cut, s.k_layout)
    qs, ks, vs, douts = of_queries(q), of_keys(k), of_keys(v), of_queries(dout)
    givens = jax.tree.map(of_queries, given)

    def group(g, slopes):
        at = board.lanes(g, k.shape[2])
        qt, dout_t = _get(qs, at.place), _get(douts, at.place)
        of = jax.tree.map(lambda x: _get(x, at.place), givens)
        own = _one_hot(at.own.block, Kq).astype(wide)
        log_odds = at.of_blocks(terms.log_odds) if blocked else None
        dmass = None
        if blocked and of["dmass"] is not None:
            dmass = (of["dmass"][:, :, None] * at.of_blocks(terms.traits)).sum(-1)

        def step(state, to, place, live):
            dq, sums, dk, dv, by_query = state
            kt, rows = _get(ks, place), _one_hot(to.block, blocks)
            z, far = _logits(s, terms, at.own, to, live, qt, kt, log_odds, keys_first=True)
            alpha = jnp.exp(z - of["lse"][:, None])
            push = _matmul("pkh,pqh->pkq", _get(vs, place), dout_t) - of["c"][:, None]
            if dmass is not None:
                by_key = _exact("pkn,pqn->pkq", rows, dmass)
                push = push + (by_key if far is None else jnp.where(far, by_key, 0.0))
            if of["dentropy"] is not None:
                push = push - of["dentropy"][:, None] * z
            dz = alpha * push
            narrow = dz.astype(k.dtype)
            dq = dq + _matmul("pkh,pkq->phq", kt, narrow)
            dk = _add(dk, place, _matmul("pkq,pqh->pkh", narrow, qt) * terms.scale)
            dv = _add(dv, place, _matmul("pkq,pqh->pkh", alpha.astype(v.dtype), dout_t))
            if summed:
                dbias = dz if of["dexpected"] is None else dz + of["dexpected"][:, None] * alpha
                beyond = dbias if far is None else jnp.where(far, dbias, 0.0)
                sums = sums + _by_key(rows, beyond.sum(2, keepdims=True) if in_one else beyond)
                if keyed:
                    by_query = _add(by_query, (place[0], slice(None), at.place[2]), by_block(beyond, own))
            return dq, sums, dk, dv, by_query

        dq = jnp.zeros((lanes, q.shape[-1], C), wide)
        sums = jnp.zeros((lanes, blocks if summed else 0, 1 if in_one else C), wide)
        dq, sums, dk, dv, by_query = at.run(step, (dq, sums, slopes.dk, slopes.dv, slopes.by_query))
        odds, by_key = slopes.odds, slopes.by_key
        if summed:
            table = _exact("pqk,plq->pkl", jnp.broadcast_to(own, (lanes, sums.shape[2], Kq)), sums)
            odds = odds.at[at.head].add(table)
            if keyed:
                by_key = _put(by_key, at.into, sums.swapaxes(1, 2))
        dq = _put(slopes.dq, at.into, dq.swapaxes(1, 2) * terms.scale)
        return Slopes(dq, dk, dv, odds, by_key, by_query)

    new = Slopes(*(jnp.zeros(x.shape, wide) for x in (qs, ks, vs)))
    if summed:
        new = dataclasses.replace(new, odds=jnp.zeros((B * N, Kq, blocks), wide))
    if keyed:
        by = [jnp.zeros((*x.shape[:2], N, n), wide) for x, n in ((qs, blocks), (ks, Kq))]
        new = dataclasses.replace(new, by_key=by[0], by_query=by[1])
    new = lax.fori_loop(0, board.work.groups, group, new)
    joined = Slopes(_join(s.q_layout, new.dq), _join(s.k_layout, new.dk), _join(s.k_layout, new.dv))
    if summed:
        joined = dataclasses.replace(joined, odds=new.odds.reshape(terms.log_odds.shape))
    if keyed:
        by = [_join(s.q_layout, new.by_key), _join(s.k_layout, new.by_query)]
        joined = dataclasses.replace(joined, by_key=by[0], by_query=by[1])
    return joined.plus(slopes)

"""Flash attention over work lists: online softmax, one tile at a time, in lanes that run side by side.

For each query i and the keys j of the tiles on its list, with z = s + ln ω:

    lse = ln Σ e^z,   out = Σ α v,   mass_f = Σ α t_f   where α = e^{z − lse}
    H = lse − Σ α z   (nats)

where t_f are traits of the pair of blocks. Backward, from the cotangents of all four,

    dz = α ∘ (dout·v + Σ_f dmass_f t_f − dH·z − c),   c = out·dout + mass·dmass − dlse − dH·(lse − H)

so a pass over any part of the keys needs only lse, H and c of all keys. A pass cuts its inputs into tiles of all heads,
continues from the results of the previous pass, and joins the tiles again. Terms that depend on blocks are contractions
with the keys' blocks: a one-hot per key in tiles of mixed blocks, one row per tile in pure tiles.
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

# Sums of ∂/∂ln ω that a backward pass computes: "odds" for the gates, "route" for gates and router.
SumsByBlock = Literal["none", "odds", "route"]


@dataclasses.dataclass(frozen=True)
class Terms:
    """Inputs that all passes of a call share.

    Attributes:
      window, scale: of the attention.
      log_odds: [B, N, Kq, K], MASKED where closed.
      traits: F numbers per pair of blocks whose mean under α is wanted, [B, N, Kq, K, F]; None without statistics.
    """

    window: int
    scale: float
    log_odds: jax.Array
    traits: jax.Array | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Accumulated:
    """Results of the passes so far: out [B, T, N, Hv]; lse, H [B, T, N] and mass [B, T, N, F], or None."""

    out: jax.Array
    lse: jax.Array
    entropy: Any = None
    mass: Any = None

    @classmethod
    def empty(cls, shape: tuple[int, ...], v, terms: Terms) -> Accumulated:
        """Return the results before the first pass, for queries of this shape."""
        wide = _wide(v)
        lse = jnp.full(shape, -jnp.inf, wide)
        out = jnp.zeros((*shape, v.shape[-1]), wide)
        if terms.traits is None:
            return cls(out, lse)
        return cls(out, lse, jnp.zeros(shape, wide), jnp.zeros((*shape, terms.traits.shape[-1]), wide))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gradients:
    """Gradients, summed over passes.

    Attributes:
      dq, dk, dv: in the inputs' shapes.
      odds: ∂/∂ln ω summed by pair of blocks, [B, N, Kq, K].
      by_key: for the router, ∂/∂ln ω summed over keys by the key's block, [B, T, N, K].
      by_query: likewise summed over queries by the query's block, [B, S, N, Kq].
        The last three are None where they are 0: inside the window blocks do not matter.
    """

    dq: jax.Array
    dk: jax.Array
    dv: jax.Array
    odds: Any = None
    by_key: Any = None
    by_query: Any = None

    def plus(self, other: Gradients | None) -> Gradients:
        """Return the sum; None counts as 0."""
        if other is None:
            return self
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return Gradients(*(b if a is None else a if b is None else a + b for a, b in pairs))


@dataclasses.dataclass(frozen=True)
class TileSchedule:
    """The tiles of a section, and which key tiles each query tile visits.

    Arrays are cut into tiles of all heads, [B·M, C, heads, …]; a lane reads the part of its head.

    Attributes:
      section: the section.
      work: its work list.
      q_marks, k_marks: marks [B·M, C]; [B·G·M, C] for keys whose heads differ. In pure tiles the block is [B·M, 1].
    """

    section: Section
    work: WorkList
    q_marks: Marks
    k_marks: Marks

    @classmethod
    def of(cls, s: Section) -> TileSchedule:
        """Cut a section. Keys that are padding get segment −1, so that nothing attends to them, not even padding."""
        visible = dataclasses.replace(s.k_marks, seg=jnp.where(s.k_marks.seg > 0, s.k_marks.seg, -1))
        return cls(s, s.listed(), _marks(s.q_layout, s.q_marks), _marks(s.k_layout, visible))

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of lanes, and of queries in each."""
        return self.work.order.shape[1], self.q_marks.pos.shape[1]

    def lanes(self, g, groups: int) -> Lanes:
        """Return the lanes of group g, where keys have `groups` heads; tile numbers past the last one are padding."""
        s, index = self.section, self.work.order[g]
        (B, I, _), (_, alike, J, _) = s.q_marks.pos.shape, s.k_marks.pos.shape
        tile = jnp.minimum(index, B * s.heads * I - 1)
        head, row = tile // I, tile // (s.heads * I)
        place, of_head = (row * I + tile % I).astype(jnp.uint32), (head % s.heads).astype(jnp.uint32)
        group = of_head * groups // s.heads
        return Lanes(
            schedule=self,
            head=head,
            q_marks=jax.tree.map(lambda x: _get(x, place), self.q_marks),
            place=(place, slice(None), of_head),
            into=(jnp.where(index == tile, place, jnp.uint32(FAR)), slice(None), of_head),
            counts=self.work.counts[index],
            lists=self.work.lists[tile],
            first=row * J,
            first_marks=row * J if alike == 1 else (row * alike + group.astype(row.dtype)) * J,
            group=group,
        )


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Query tiles that run side by side.

    Attributes:
      schedule: the schedule they belong to.
      head: int32 [P], numbered through B·N.
      q_marks: marks [P, C].
      place, into: indices at which a lane's tile is read and written; `into` is out of range for padding lanes.
      counts, lists: int32 [P], [P, J], how many key tiles each lane visits, and which.
      first, first_marks: int32 [P], offsets to add to `lists` to find a key tile, and its marks.
      group: uint32 [P], the key/value head.
    """

    schedule: TileSchedule
    head: jax.Array
    q_marks: Marks
    place: tuple
    into: tuple
    counts: jax.Array
    lists: jax.Array
    first: jax.Array
    first_marks: jax.Array
    group: jax.Array

    def of_blocks(self, table):
        """Return table[b, n, block] of each query (or pure tile): [P, C | 1, K, …]."""
        return table.reshape(-1, *table.shape[2:])[self.head[:, None], self.q_marks.block]

    def visit(self, j) -> tuple[Marks, tuple, jax.Array]:
        """Return the marks, index and validity of each lane's j-th key tile; a finished lane repeats its last."""
        here = jnp.clip(self.counts - 1, 0, j)[:, None]
        listed = jnp.take_along_axis(self.lists, here, 1)[:, 0]
        tile, marked = ((first + listed).astype(jnp.uint32) for first in (self.first, self.first_marks))
        k_marks = jax.tree.map(lambda x: _get(x, marked), self.schedule.k_marks)
        return k_marks, (tile, slice(None), self.group), j < self.counts

    def run(self, step, state):
        """Fold `step` over all visits."""
        return lax.fori_loop(0, self.counts.max(), lambda j, state: step(state, *self.visit(j)), state)


def _wide(x):
    return jnp.promote_types(x.dtype, jnp.float32)


def _matmul(spec, a, b):
    """Multiply in the inputs' precision, and sum in at least float32."""
    return jnp.einsum(spec, a, b, preferred_element_type=_wide(a))


def _exact(spec, a, b):
    """Multiply with one-hot rows at the highest precision, so that ln ω is selected without rounding."""
    return jnp.einsum(spec, a, b, precision=lax.Precision.HIGHEST)


def _marks(layout: Layout, marks: Marks) -> Marks:
    """Return marks with one row for each of a layout's tiles: [B·M, C]."""
    block = marks.block[..., : 1 if layout.pure else None]
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), dataclasses.replace(marks, block=block))


def _cut(layout: Layout, x):
    """Cut [B, T, heads, …] into tiles [B·M, C, heads, …]."""
    return layout.cut(x).reshape(-1, layout.size, *x.shape[2:])


def _join(layout: Layout, x):
    """Join tiles [B·M, C, heads, …] to [B, T, heads, …]."""
    return layout.join(x.reshape(-1, layout.count, *x.shape[1:]))


def _get(tiles, place):
    return tiles.at[place].get(mode="promise_in_bounds")


def _put(tiles, place, x):
    return tiles.at[place].set(x, mode="drop", unique_indices=True)


def _add(tiles, place, x):
    return tiles.at[place].add(x, mode="drop")


def by_block(weights, rows):
    """Return Σ_j weights[p, i, j]·rows[p, j, l], for one row per key, or one row for all keys."""
    if rows.shape[1] == 1:
        return weights.sum(-1, keepdims=True) * rows
    return _exact("pij,pjl->pil", weights, rows)


def _by_key(rows, weights):
    """Return Σ_j rows[p, j, l]·weights[p, j, i], [P, K, C]: the transpose of `by_block`, from weights [P, C', C].

    The same product with queries as rows of the result takes several times as long on CPU.
    """
    if rows.shape[1] == 1:
        return rows.swapaxes(1, 2) * weights.sum(1, keepdims=True)
    return _exact("plj,pji->pli", rows.swapaxes(1, 2), weights)


def _one_hot(block, blocks: int):
    return jax.nn.one_hot(block, blocks, dtype=jnp.float32)


def _logits(s: Section, terms: Terms, q_marks: Marks, k_marks: Marks, live, q, k, log_odds, keys_first=False):
    """Return z and, where the window matters, which pairs lie beyond it (None: all).

    Both are [P, C, C'], or [P, C', C] with `keys_first`. Products that contract a left factor's rows are slow on CPU,
    so the forward pass has queries as rows, and the backward pass keys.
    """
    turn = (lambda a, b: (b, a)) if keys_first else (lambda a, b: (a, b))
    z = _matmul("pxh,pyh->pxy", *turn(q, k)) * terms.scale
    a, b = turn(q_marks, k_marks)
    gap = (a.pos[:, :, None] - b.pos[:, None, :]) * (-1 if keys_first else 1)
    seen = (a.seg[:, :, None] == b.seg[:, None, :]) & live[:, None, None]
    far = gap >= terms.window
    if s.pairs == "near":
        return jnp.where(seen & (gap >= 0) & ~far, z, MASKED), None
    bias = _exact("pxn,pyn->pxy", *turn(log_odds, _one_hot(k_marks.block, log_odds.shape[-1])))
    if s.pairs == "far":
        return jnp.where(seen & far, z + bias, MASKED), None
    return jnp.where(seen & (gap >= 0), z + jnp.where(far, bias, 0.0), MASKED), far


def forward(s: Section, terms: Terms, q, k, v, before: Accumulated | None) -> Accumulated:
    """Attend to a section's pairs, and merge the results with those of earlier passes.

    Args:
      s, terms: the section, and the inputs that all sections share.
      q: [B, T, N, H]; k: [B, S, G, H]; v: [B, S, G, Hv].
      before: results of the earlier passes; None for the first.
    """
    measured, blocked, blocks = terms.traits is not None, s.pairs != "near", terms.log_odds.shape[-1]
    mixed = blocked and measured and not s.q_layout.pure
    schedule = TileSchedule.of(s)
    qs, ks, vs = _cut(s.q_layout, q), _cut(s.k_layout, k), _cut(s.k_layout, v)
    start, empty = (Accumulated.empty(shape, v, terms) for shape in (schedule.shape, qs.shape[:3]))
    whole = empty if before is None else jax.tree.map(partial(_cut, s.q_layout), before)

    def group(g, whole):
        lanes = schedule.lanes(g, k.shape[2])
        qt = _get(qs, lanes.place)
        log_odds = lanes.of_blocks(terms.log_odds) if blocked else None
        traits = lanes.of_blocks(terms.traits) if blocked and measured else None

        def step(state, k_marks, place, live):
            top, total, acc, zsum, mass = state
            z, far = _logits(s, terms, lanes.q_marks, k_marks, live, qt, _get(ks, place), log_odds)
            new = jnp.maximum(top, z.max(-1))
            weight, fade = jnp.exp(z - new[..., None]), jnp.exp(top - new)
            total = fade * total + weight.sum(-1)
            acc = fade[..., None] * acc + _matmul("pqk,pkh->pqh", weight.astype(v.dtype), _get(vs, place))
            if measured:
                zsum = fade * zsum + (weight * z).sum(-1)
                mass = fade[..., None] * mass
            if traits is not None:
                beyond = weight if far is None else jnp.where(far, weight, 0.0)
                rows = _one_hot(k_marks.block, blocks)
                mass = mass + by_block(beyond, rows if mixed else _exact("pyn,pynf->pyf", rows, traits))
            return new, total, acc, zsum, mass

        earlier = start if before is None else jax.tree.map(lambda x: _get(x, lanes.place), whole)
        some = jnp.isfinite(earlier.lse)
        lse = jnp.where(some, earlier.lse, LOWEST)
        zsum = jnp.where(some, lse - earlier.entropy, 0.0) if measured else None
        mass = jnp.zeros((*schedule.shape, blocks), earlier.out.dtype) if mixed else earlier.mass
        top, total, acc, zsum, mass = lanes.run(step, (lse, some.astype(lse.dtype), earlier.out, zsum, mass))
        some = total > 0
        safe = jnp.where(some, total, 1.0)
        lse = jnp.where(some, top + jnp.log(safe), -jnp.inf)
        after = Accumulated(acc / safe[..., None], lse)
        if measured:
            mass = _exact("pqn,pqnf->pqf", mass, traits) if mixed else mass
            entropy = jnp.where(some, lse - zsum / safe, 0.0)
            after = dataclasses.replace(after, entropy=entropy, mass=mass / safe[..., None])
        return jax.tree.map(lambda x, new: _put(x, lanes.into, new), whole, after)

    return jax.tree.map(partial(_join, s.q_layout), lax.fori_loop(0, schedule.work.groups, group, whole))


def backward(
    s: Section,
    terms: Terms,
    q,
    k,
    v,
    dout,
    given: dict[str, Any],
    wanted: SumsByBlock,
    before: Gradients | None,
) -> Gradients:
    """Compute a section's gradients, and add those of earlier passes.

    Args:
      s, terms, q, k, v: as in `forward`.
      dout: [B, T, N, Hv].
      given: lse (finite) and c of all keys, [B, T, N]; the cotangents dentropy [B, T, N] per nat, dmass [B, T, N, F],
        and dexpected [B, T, N] of Σ α ln ω, which adds to ∂/∂ln ω besides dz; each of the last three may be None.
      wanted: which sums by block to compute; with "none", `odds` of the result is None.
      before: gradients of the earlier passes; None for the first.
    """
    blocked, (B, _, N), (Kq, blocks) = s.pairs != "near", q.shape[:3], terms.log_odds.shape[2:]
    summed, keyed = blocked and wanted != "none", blocked and wanted == "route"
    in_one = s.q_layout.pure and not keyed  # all queries of a pure tile share one sum by key block
    schedule = TileSchedule.of(s)
    (P, C), wide = schedule.shape, _wide(q)
    of_queries, of_keys = partial(_cut, s.q_layout), partial(_cut, s.k_layout)
    qs, ks, vs, douts = of_queries(q), of_keys(k), of_keys(v), of_queries(dout)
    givens = jax.tree.map(of_queries, given)

    def group(g, gradients):
        lanes = schedule.lanes(g, k.shape[2])
        qt, dout_t = _get(qs, lanes.place), _get(douts, lanes.place)
        rows_given = jax.tree.map(lambda x: _get(x, lanes.place), givens)
        own = _one_hot(lanes.q_marks.block, Kq).astype(wide)
        log_odds = lanes.of_blocks(terms.log_odds) if blocked else None
        dmass = None
        if blocked and rows_given["dmass"] is not None:
            dmass = (rows_given["dmass"][:, :, None] * lanes.of_blocks(terms.traits)).sum(-1)

        def step(state, k_marks, place, live):
            dq, sums, dk, dv, by_query = state
            kt, rows = _get(ks, place), _one_hot(k_marks.block, blocks)
            z, far = _logits(s, terms, lanes.q_marks, k_marks, live, qt, kt, log_odds, keys_first=True)
            alpha = jnp.exp(z - rows_given["lse"][:, None])
            push = _matmul("pkh,pqh->pkq", _get(vs, place), dout_t) - rows_given["c"][:, None]
            if dmass is not None:
                by_key = _exact("pkn,pqn->pkq", rows, dmass)
                push = push + (by_key if far is None else jnp.where(far, by_key, 0.0))
            if rows_given["dentropy"] is not None:
                push = push - rows_given["dentropy"][:, None] * z
            dz = alpha * push
            narrow = dz.astype(k.dtype)
            dq = dq + _matmul("pkh,pkq->phq", kt, narrow)
            dk = _add(dk, place, _matmul("pkq,pqh->pkh", narrow, qt) * terms.scale)
            dv = _add(dv, place, _matmul("pkq,pqh->pkh", alpha.astype(v.dtype), dout_t))
            if summed:
                dbias = (
                    dz if rows_given["dexpected"] is None else dz + rows_given["dexpected"][:, None] * alpha
                )
                beyond = dbias if far is None else jnp.where(far, dbias, 0.0)
                sums = sums + _by_key(rows, beyond.sum(2, keepdims=True) if in_one else beyond)
                if keyed:
                    by_query = _add(by_query, (place[0], slice(None), lanes.place[2]), by_block(beyond, own))
            return dq, sums, dk, dv, by_query

        dq = jnp.zeros((P, q.shape[-1], C), wide)
        sums = jnp.zeros((P, blocks if summed else 0, 1 if in_one else C), wide)
        dq, sums, dk, dv, by_query = lanes.run(
            step, (dq, sums, gradients.dk, gradients.dv, gradients.by_query)
        )
        odds, by_key = gradients.odds, gradients.by_key
        if summed:
            table = _exact("pqk,plq->pkl", jnp.broadcast_to(own, (P, sums.shape[2], Kq)), sums)
            odds = odds.at[lanes.head].add(table)
            if keyed:
                by_key = _put(by_key, lanes.into, sums.swapaxes(1, 2))
        dq = _put(gradients.dq, lanes.into, dq.swapaxes(1, 2) * terms.scale)
        return Gradients(dq, dk, dv, odds, by_key, by_query)

    new = Gradients(*(jnp.zeros(x.shape, wide) for x in (qs, ks, vs)))
    if summed:
        new = dataclasses.replace(new, odds=jnp.zeros((B * N, Kq, blocks), wide))
    if keyed:
        by = [jnp.zeros((*x.shape[:2], N, n), wide) for x, n in ((qs, blocks), (ks, Kq))]
        new = dataclasses.replace(new, by_key=by[0], by_query=by[1])
    new = lax.fori_loop(0, schedule.work.groups, group, new)
    joined = Gradients(_join(s.q_layout, new.dq), _join(s.k_layout, new.dk), _join(s.k_layout, new.dv))
    if summed:
        joined = dataclasses.replace(joined, odds=new.odds.reshape(terms.log_odds.shape))
    if keyed:
        by = [_join(s.q_layout, new.by_key), _join(s.k_layout, new.by_query)]
        joined = dataclasses.replace(joined, by_key=by[0], by_query=by[1])
    return joined.plus(before)

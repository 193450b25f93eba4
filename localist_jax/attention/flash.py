"""Flash attention over work lists: online softmax, tile after tile, in lanes that run side by side.

For each query i and the keys j of the tiles on its list, with z = s + ln ω:

    lse = ln Σ e^z,   out = Σ α v,   mass_f = Σ α t_f   where α = e^{z − lse}
    H = lse − Σ α z   (nats)

where the traits t_f are those of the pair of blocks, and backward, from the cotangents of all four,

    dz = α ∘ (dout·v + Σ_f dmass_f t_f − dH·z − c),   c = out·dout + mass·dmass − dlse − dH·(lse − H)

so that a pass over any part of the keys needs only lse, H and c of the whole. A pass goes on from what the one before
has found, and only its own rows are written. Queries are gathered where they are needed, by the positions of their
tile's slots. Block-dependent terms are
contractions with the keys' blocks: in tiles of mixed blocks a one-hot per key, in pure tiles one row per tile.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from localist_jax.attention.tiles import FAR, Layout, Marks, Section, WorkList

MASKED = -1e30  # a logit whose exponential is exactly 0; finite, so that 0·z is 0
LOWEST = -1e29  # running maxima start above it: e^(MASKED − LOWEST) = 0


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
    query's, by_query [B, S, N, Kq]; else None.
    """

    dq: jax.Array
    dk: jax.Array
    dv: jax.Array
    odds: jax.Array
    by_key: Any = None
    by_query: Any = None

    @classmethod
    def nothing(cls, q, k, v, terms: Terms, keyed: bool) -> Slopes:
        """Before the first pass."""
        (B, T, N), S, wide, (Kq, K) = q.shape[:3], k.shape[1], _wide(q), terms.log_odds.shape[2:]
        of_each = [(x.shape) for x in (q, k, v)] + [terms.log_odds.shape]
        of_each += [(B, T, N, K), (B, S, N, Kq)] if keyed else []
        return cls(*(jnp.zeros(shape, wide) for shape in of_each))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """What is known of tiles; of M in each row of a batch, or of those in hand, [P, C].

    Attributes:
      rows: uint32 [B·heads·M, C], places among the rows of a [B, T, heads, …] array. A table, since a gather works out
        its indices anew for every number that it fetches; unsigned, since it looks after negative ones too.
      filled: bool [B·M, C].
      pos, seg, block: int32 [B·M, C]; of pure tiles the block is [B·M, 1].
    """

    rows: jax.Array
    filled: jax.Array
    pos: jax.Array
    seg: jax.Array
    block: jax.Array

    @classmethod
    def of(cls, layout: Layout, at: Marks, heads: int) -> Slots:
        """Those of a layout, for so many heads."""
        start = layout.length * jnp.arange(len(layout.index))
        rows = (layout.index + start[:, None, None])[:, None] * heads + jnp.arange(heads)[:, None, None]
        marks = layout.filled, at.pos, at.seg, at.block[..., : 1 if layout.pure else None]
        return cls(*(x.reshape(-1, x.shape[-1]) for x in (rows.astype(jnp.uint32), *marks)))

    def at(self, tile, of_batch) -> Slots:
        """Tiles `tile` [P], counted through B·heads·M, which are `of_batch` [P] of B·M."""
        marks = self.filled, self.pos, self.seg, self.block
        return Slots(_get(self.rows, tile), *(_get(x, of_batch) for x in marks))


@dataclasses.dataclass(frozen=True)
class Board:
    """The tiles of a section, and who visits which.

    Keys are kept in one of three ways, so that a visit finds its tile with the least work: as *slices* of the array,
    where tiles hold neighbours; as *rows*, gathered at each visit, where a tile has one at the most; as *tiles*,
    gathered once.
    """

    section: Section
    work: WorkList
    queries: Slots
    keys: Slots

    @classmethod
    def of(cls, s: Section, groups: int) -> Board:
        """With so many heads of keys."""
        seg = jnp.where(s.k_at.seg > 0, s.k_at.seg, -1)  # padding is seen by nothing, not even by itself
        keys = Slots.of(s.k_layout, dataclasses.replace(s.k_at, seg=seg), groups)
        return cls(s, s.listed(), Slots.of(s.q_layout, s.q_at, s.heads), keys)

    @property
    def shape(self) -> tuple[int, int]:
        """Lanes, and queries of each."""
        return self.work.order.shape[1], self.queries.pos.shape[1]

    @property
    def kept_as(self) -> Literal["slices", "rows", "tiles"]:
        """How keys are kept."""
        layout = self.section.k_layout
        if layout.slot is not None and not layout.pure:
            return "slices"
        return "rows" if self.section.visit is None else "tiles"

    def cut(self, x):
        """Heads of keys [B, S, G, H] as slices [B·J, C', G, H], rows [B·S·G, H] or tiles [B·G·J, C', H]."""
        match self.kept_as:
            case "slices":
                return self.section.k_layout.cut(x).reshape(*self.keys.pos.shape, *x.shape[2:])
            case "rows":
                return _flat(x)
            case "tiles":
                return _get(_flat(x), self.keys.rows)

    def blank(self, x):
        """Where to add what goes to x, in the shape of `cut`."""
        if self.kept_as == "tiles":
            return jnp.zeros((*self.keys.rows.shape, *x.shape[3:]), x.dtype)
        return self.cut(x)

    def join(self, x, summed):
        """x with what was added."""
        match self.kept_as:
            case "slices":
                layout = self.section.k_layout
                return layout.join(summed.reshape(*layout.index.shape, *x.shape[2:]))
            case "rows":
                return summed.reshape(x.shape)
            case "tiles":
                return _add(_flat(x), self.keys.rows, summed).reshape(x.shape)

    def lanes(self, g) -> Lanes:
        """Those of group g; numbers past the last tile are padding."""
        s, index = self.section, self.work.order[g]
        (B, I, _), J = s.q_layout.index.shape, s.k_layout.index.shape[1]
        groups = len(self.keys.rows) // len(self.keys.pos)
        tile = jnp.minimum(index, B * s.heads * I - 1)
        head, row = tile // I, tile // (s.heads * I)
        own = self.queries.at(tile, row * I + tile % I)
        into = jnp.where(own.filled & (index == tile)[:, None], own.rows, jnp.uint32(FAR))
        shared = head * groups // s.heads  # the head of keys, counted through B·G
        firsts = shared * J, row * J, (shared % groups).astype(jnp.uint32)
        return Lanes(self, head, own, into, self.work.counts[index], self.work.lists[tile], *firsts)


@dataclasses.dataclass(frozen=True)
class Lanes:
    """Query tiles that run side by side.

    Attributes:
      board: on which they lie.
      head: int32 [P], counted through B·N.
      own: what is known of them.
      into: uint32 [P, C], `own.rows`, but past the end where a slot is empty.
      counts, lists: int32 [P], [P, J], how many key tiles they visit, and which.
      first, of_batch: int32 [P], what to add to these: counted through B·G·J, and through B·J.
      group: uint32 [P], the head of keys in 0 … G−1.
    """

    board: Board
    head: jax.Array
    own: Slots
    into: jax.Array
    counts: jax.Array
    lists: jax.Array
    first: jax.Array
    of_batch: jax.Array
    group: jax.Array

    def of_blocks(self, table):
        """Table[b, n, block] of each query (or pure tile): [P, C | 1, K, …]."""
        return table.reshape(-1, *table.shape[2:])[self.head[:, None], self.own.block]

    def visit(self, j) -> tuple[Slots, Any, jax.Array]:
        """Of the j-th key tile of each lane its slots, where it lies in what `cut` gives, and which lanes have one.

        One that is done stays at its last.
        """
        here = jnp.clip(self.counts - 1, 0, j)[:, None]
        tile = jnp.take_along_axis(self.lists, here, 1)[:, 0]
        to = self.board.keys.at(self.first + tile, self.of_batch + tile)
        match self.board.kept_as:
            case "slices":
                place: Any = (self.of_batch + tile).astype(jnp.uint32), slice(None), self.group
            case "rows":
                place = to.rows
            case "tiles":
                place = self.first + tile
        return to, place, j < self.counts

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


def _flat(x):
    """[B, T, N, …] as rows."""
    return x.reshape(-1, *x.shape[3:])


def _get(flat, rows):
    return flat.at[rows].get(mode="promise_in_bounds")


def _put(flat, rows, x):
    return flat.at[rows].set(x, mode="drop", unique_indices=True)


def _add(flat, rows, x):
    return flat.at[rows].add(x, mode="drop")


def by_block(weights, rows):
    """Σ_j weights[p, i, j]·rows[p, j, l]: rows of keys, or one row for all of them."""
    if rows.shape[1] == 1:
        return weights.sum(-1, keepdims=True) * rows
    return _exact("pij,pjl->pil", weights, rows)


def _one_hot(block, blocks: int):
    return jax.nn.one_hot(block, blocks, dtype=jnp.float32)


def _logits(s: Section, terms: Terms, at: Slots, to: Slots, live, q, k, log_odds, keys_first=False):
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
    board = Board.of(s, k.shape[2])
    qs, ks, vs = _flat(q), board.cut(k), board.cut(v)
    start, whole = Found.nothing(board.shape, v, terms), found or Found.nothing(q.shape[:3], v, terms)

    def group(g, flats):
        at = board.lanes(g)
        qt = _get(qs, at.own.rows)
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

        before = start if found is None else jax.tree.map(lambda x: _get(x, at.own.rows), flats)
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
        return jax.tree.map(lambda x, new: _put(x, at.into, new), flats, after)

    flats = lax.fori_loop(0, board.work.groups, group, jax.tree.map(_flat, whole))
    return jax.tree.map(lambda x, like: x.reshape(like.shape), flats, whole)


def backward(s: Section, terms: Terms, q, k, v, dout, given: dict[str, Any], slopes: Slopes) -> Slopes:
    """Adds a section's gradients.

    Args:
      s, terms, q, k, v: as in `forward`.
      dout: [B, T, N, Hv].
      given: lse (finite) and c [B, T, N] of the whole; dentropy [B, T, N] per nat, dmass [B, T, N, F], and dexpected
        [B, T, N], that of Σ α ln ω, for what it adds to ∂/∂ln ω besides dz; or None.
      slopes: so far.
    """
    blocked, keyed, (Kq, blocks) = s.pairs != "near", slopes.by_key is not None, terms.log_odds.shape[2:]
    summed = blocked and s.q_layout.pure and not keyed  # a pure tile's queries have one sum by key block
    board, groups = Board.of(s, k.shape[2]), k.shape[2]
    (lanes, C), wide = board.shape, slopes.dq.dtype
    qs, ks, vs, douts = _flat(q), board.cut(k), board.cut(v), _flat(dout)
    givens = jax.tree.map(_flat, given)

    def group(g, slopes):
        at = board.lanes(g)
        qt, dout_t = _get(qs, at.own.rows), _get(douts, at.own.rows)
        of = jax.tree.map(lambda x: _get(x, at.own.rows), givens)
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
            if blocked:
                dbias = dz if of["dexpected"] is None else dz + of["dexpected"][:, None] * alpha
                beyond = dbias if far is None else jnp.where(far, dbias, 0.0)
                each = by_block(beyond.swapaxes(1, 2), rows)
                sums = sums + (each.sum(1, keepdims=True) if summed else each)
                if keyed:
                    head = (at.head % s.heads).astype(jnp.uint32)[:, None]
                    by_query = _add(by_query, to.rows // groups * s.heads + head, by_block(beyond, own))
            return dq, sums, dk, dv, by_query

        dq = jnp.zeros((lanes, q.shape[-1], C), wide)
        sums = jnp.zeros((lanes, 1 if summed else C, blocks if blocked else 0), wide)
        dq, sums, dk, dv, by_query = at.run(step, (dq, sums, slopes.dk, slopes.dv, slopes.by_query))
        odds, by_key = slopes.odds, slopes.by_key
        if blocked:
            table = _exact("pqk,pql->pkl", jnp.broadcast_to(own, (lanes, sums.shape[1], Kq)), sums)
            odds = odds.at[at.head].add(table)
            if keyed:
                by_key = _add(by_key, at.into, sums)
        dq = _add(slopes.dq, at.into, dq.swapaxes(1, 2) * terms.scale)
        return Slopes(dq, dk, dv, odds, by_key, by_query)

    flats = dataclasses.replace(jax.tree.map(_flat, slopes), odds=slopes.odds.reshape(-1, Kq, blocks))
    of_keys = slopes.dk, slopes.dv
    dk, dv = (board.blank(x) for x in of_keys)
    flats = lax.fori_loop(0, board.work.groups, group, dataclasses.replace(flats, dk=dk, dv=dv))
    dk, dv = (board.join(*x) for x in zip(of_keys, (flats.dk, flats.dv), strict=True))
    flats = dataclasses.replace(flats, dk=dk, dv=dv)
    return jax.tree.map(lambda x, like: x.reshape(like.shape), flats, slopes)

"""An ensemble: equal-shaped LLMs, their states stacked on a `specialist` axis of fixed capacity.

Each member has its own parameters, optimizer moments, blocks and gate prices (a whole `TrainState`), its own dial, and
a signature: how often it was given each token. One compiled function serves all members, since what differs between
them is traced; recruiting or dropping a member inside the capacity compiles nothing. What is done to one member
writes to its place alone: all the others stay bit-identical.

Members are numbered by their place. Member 0 is the base; the others descend from the member that they were copied
from, so that an ensemble is a tree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from localist_jax.locality import Dial
from localist_jax.recruitment import growth
from localist_jax.recruitment.growth import Names
from localist_jax.training.state import TrainState
from localist_jax.types import Numeric, PyTree

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Record:
    """The facts about a member that are not in its state.

    Attributes:
      name: unique in its ensemble.
      parent: name of the member that it was copied from; empty for the base.
      born: batches of the stream that came before it.
      cost_bits, saved_bits: that its description took, and that it had saved by the time it was recruited.
      frozen: it is not trained.
      concept: that somebody named, and by whose anchors its first documents were found.
    """

    name: str
    parent: str = ""
    born: int = 0
    cost_bits: float = 0.0
    saved_bits: float = 0.0
    frozen: bool = False
    concept: str = ""


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """M places for LLMs; nothing mutates.

    Attributes:
      states: a `TrainState` whose leaves have a leading axis M.
      beta: log-odds of each member's own dial, [M, L, N].
      signatures: [M, V], tokens that each member was given.
      records: one per place; None where a place is free.
    """

    states: TrainState
    beta: jax.Array
    signatures: Float[np.ndarray, "M V"]
    records: tuple[Record | None, ...]

    @classmethod
    def create(
        cls, state: TrainState, capacity: int, vocab_size: int, *, locality: float = 1.0, name: str = BASE
    ) -> Ensemble:
        """An ensemble of one LLM.

        Args:
          state: of the base, not stacked.
          capacity: M, places to begin with.
          vocab_size: V.
          locality: λ of the base's own dial.
          name: of the base.

        Raises:
          ValueError: no place.
        """
        if capacity < 1:
            raise ValueError(f"ensemble: capacity must be at least 1, got {capacity}")
        gates = state.params["localist"]["attention"]["gates"]  # [L − router_layer, N, K, K]
        layers = gates.shape[0] + state.params["perception"]["attention"]["query"].shape[0]
        beta = Dial(locality).broadcast(1, layers, gates.shape[1]).beta
        single = cls(
            states=jax.tree.map(lambda x: x[None], state),
            beta=beta,
            signatures=np.zeros((1, vocab_size)),
            records=(Record(name),),
        )
        return single.with_capacity(capacity)

    @property
    def capacity(self) -> int:
        """M."""
        return len(self.records)

    @property
    def active(self) -> tuple[int, ...]:
        """Places that are taken."""
        return tuple(i for i, record in enumerate(self.records) if record)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the members, by place."""
        return tuple(record.name for record in self.records if record)

    def place(self, name: str) -> int:
        """The place of a member.

        Raises:
          ValueError: no member of that name.
        """
        for at, record in enumerate(self.records):
            if record and record.name == name:
                return at
        raise ValueError(f"ensemble: no member {name!r}; there are {', '.join(self.names)}")

    def record(self, at: int) -> Record:
        """Return the record of the member at a place.

        Raises:
          ValueError: the place is free.
        """
        found = self.records[at] if 0 <= at < self.capacity else None
        if found is None:
            raise ValueError(f"ensemble: place {at} is free; members stand at {self.active}")
        return found

    def state(self, at: int) -> TrainState:
        """A copy of the state of the member at a place."""
        self.record(at)
        return _taken(self.states, at)

    def dial(self, at: int) -> Dial:
        """The dial of the member at a place, [1, L, N]."""
        self.record(at)
        return Dial.from_log_odds(self.beta[at][None])

    def with_state(self, at: int, state: TrainState) -> Ensemble:
        """A copy in which a member has another state; all others are bit-identical."""
        self.record(at)
        return dataclasses.replace(self, states=_put(self.states, state, at))

    def with_dial(self, at: int, dial: Dial) -> Ensemble:
        """A copy in which a member has another dial (one setting for all requests)."""
        self.record(at)
        beta = dial.broadcast(1, *self.beta.shape[1:]).beta[0]
        return dataclasses.replace(self, beta=self.beta.at[at].set(beta))

    def with_record(self, at: int, **changes: object) -> Ensemble:
        """A copy in which something else is known of a member."""
        records = list(self.records)
        records[at] = dataclasses.replace(self.record(at), **changes)  # type: ignore[arg-type]
        return dataclasses.replace(self, records=tuple(records))

    def served(self, at: int, counts: Float[np.ndarray, " V"]) -> Ensemble:
        """A copy in which a member was given more tokens."""
        signatures = self.signatures.copy()
        signatures[at] += counts
        return dataclasses.replace(self, signatures=signatures)

    def joined(
        self, state: TrainState, record: Record, dial: Dial, signature: Float[np.ndarray, " V"]
    ) -> tuple[Ensemble, int]:
        """A copy with one more member, and its place; the capacity doubles if none is free.

        Raises:
          ValueError: a name that is taken, or a state of another shape.
        """
        if record.name in self.names:
            raise ValueError(f"ensemble: there is a member {record.name!r} already; give it another name")
        _check_alike(self.states, state)
        free = [i for i, r in enumerate(self.records) if r is None]
        room = self if free else self.with_capacity(2 * self.capacity)
        at = free[0] if free else self.capacity
        records = (*room.records[:at], record, *room.records[at + 1 :])
        signatures = room.signatures.copy()
        signatures[at] = signature
        ensemble = dataclasses.replace(room, records=records, signatures=signatures)
        return ensemble.with_state(at, state).with_dial(at, dial), at

    def copied(self, source: int, record: Record) -> tuple[Ensemble, int]:
        """A copy in which the member at `source` has a twin; its signature is still empty."""
        empty = np.zeros(self.signatures.shape[1])
        return self.joined(self.state(source), record, self.dial(source), empty)

    def retired(self, at: int) -> Ensemble:
        """A copy without a member: its place is free; its children become those of its parent.

        Raises:
          ValueError: the base, or a free place.
        """
        leaving = self.record(at)
        if not leaving.parent:
            raise ValueError(f"ensemble: {leaving.name!r} has no parent that could take over; it stays")
        records = [
            dataclasses.replace(r, parent=leaving.parent) if r and r.parent == leaving.name else r
            for r in self.records
        ]
        records[at] = None
        return dataclasses.replace(self, records=tuple(records))

    def with_capacity(self, capacity: int) -> Ensemble:
        """A copy with room for `capacity` LLMs; one more compilation of whatever takes the whole stack.

        Raises:
          ValueError: fewer places than there are now.
        """
        more = capacity - self.capacity
        if more < 0:
            raise ValueError(f"ensemble: capacity {capacity} is below the present {self.capacity}")
        return Ensemble(
            states=_widened(self.states, capacity),
            beta=jnp.pad(self.beta, ((0, more), (0, 0), (0, 0))),
            signatures=np.pad(self.signatures, ((0, more), (0, 0))),
            records=(*self.records, *[None] * more),
        )


def specialist_names(states: TrainState) -> Names:
    """The names of the axes of every leaf of stacked states, as `recruitment.growth` wants them."""
    paths = jax.tree_util.tree_leaves_with_path(states)
    return tuple((jax.tree_util.keystr(p, simple=True, separator="/"), ("specialist",)) for p, _ in paths)


@jax.jit
def _taken(states: TrainState, at: Numeric) -> TrainState:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, at, 0, keepdims=False), states)


@jax.jit
def _put(states: TrainState, state: TrainState, at: Numeric) -> TrainState:
    return jax.tree.map(lambda x, y: jax.lax.dynamic_update_index_in_dim(x, y, at, 0), states, state)


@partial(jax.jit, static_argnums=1)
def _widened(states: TrainState, capacity: int) -> TrainState:
    """Through `growth`, by which blocks get room too; keys, which cannot be padded, as their data."""
    bare = dataclasses.replace(states, key=jax.random.key_data(states.key))
    wide = growth.widened(bare, specialist_names(bare), growth.SPECIALIST_AXES, capacity)
    return dataclasses.replace(wide, key=jax.random.wrap_key_data(wide.key))


def _check_alike(states: PyTree, state: PyTree) -> None:
    pairs = zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (states, state)), strict=False)
    for (path, stacked), (other, leaf) in pairs:
        if path != other or stacked.shape[1:] != leaf.shape:
            where = jax.tree_util.keystr(other, simple=True, separator="/")
            raise ValueError(
                f"ensemble: {where} of the newcomer is {leaf.shape}, members have {stacked.shape[1:]}; "
                "only LLMs of one shape can be members"
            )


def tree(ensemble: Ensemble) -> Sequence[tuple[int, Record]]:
    """(depth, record) of every member, each below its parent, in the order of birth."""
    by_parent: dict[str, list[Record]] = {}
    for at in ensemble.active:
        record = ensemble.record(at)
        by_parent.setdefault(record.parent, []).append(record)

    def below(name: str, depth: int) -> list[tuple[int, Record]]:
        children = sorted(by_parent.get(name, []), key=lambda r: r.born)
        return [row for child in children for row in ((depth, child), *below(child.name, depth + 1))]

    return below("", 0)

"""Recruitment on a frozen trunk: blocks are born because the text ahead takes fewer bits with them.

Router, filing and gates of every candidate are functions of the text that was read before, and nothing learns while
candidates are scored. So incumbent and candidate are fixed models, and T10's evidence is exact: if the incumbent were
right, a block would ever be recruited with probability at most α. The budget of open pairs is the same for all.

One turn: what was read says which divisions of a block would let most attention mass through (`cells`). A pilot codes
the row that was read last with each of the most promising ones, and picks the one with the fewest bits. Only rows that
nobody has read count as evidence, so the pilot spends nothing of α. The rows that come next are coded by incumbent and
candidate. Once the candidate has saved the bits of its description and log₂(1/α), placebos are coded on the same rows:
divisions of the same block by random cells, as many positions each, with gates that are chosen in the same way. The
candidate is recruited as soon as it has saved as many bits beyond the best of them. It is refused if it falls behind
by as much, or at the horizon. Then the rows are read, so that the next turn knows more.

When `PATIENCE` divisions in a row were refused, the newcomer that lets through least is tried: it is retired if rows
take fewer bits without it than its description adds. When none is, the search is over.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits, config
from localist_jax.adopt.calibrate import PINNED, Calibration, Look, choose
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer, forward
from localist_jax.recruitment.cells import Division, Partition, different, divisions, price_of, tree
from localist_jax.recruitment.cost import structure_bits
from localist_jax.recruitment.record import GATHERED_NOTHING, OUTDONE, REACHED_HORIZON, STREAM_ENDED
from localist_jax.training.state import FILING, GATES, with_leaf
from localist_jax.types import PyTree

BLOCK_OF_CELL = ("router", "block_of_cell")
PATIENCE = 4  # refusals in a row after which no division is tried any more
Stream = Callable[[int], Batch | None]  # number of a row → a batch of that row; None after the last


@dataclasses.dataclass(frozen=True, eq=False)
class SearchState:
    """Everything that a stopped search goes on from.

    Attributes:
      seen: look at cells, of all text that was read.
      partition: of the cells.
      last: the row that was read last.
      rows: rows of the stream used so far.
      trials: trials opened so far.
      refusals: refusals since the last birth.
      refused: sets of cells → tokens that had been read when they were refused.
      births: newcomer → its parent, and the bits that described its birth.
      over: whether no division pays any more, and no block is to be retired.
    """

    seen: Look
    partition: Partition
    last: Batch
    rows: int = 0
    trials: int = 0
    refusals: int = 0
    refused: Mapping[bytes, int] = dataclasses.field(default_factory=dict)
    births: Mapping[int, tuple[int, float]] = dataclasses.field(default_factory=dict)
    over: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """A partition, with the filing and the gates that the text read so far gives it.

    Attributes:
      partition, found, blocks: what it is.
      spent: bits of each row of a trial, as far as it was coded.
    """

    partition: Partition
    found: Calibration
    blocks: Blocks
    spent: list[float] = dataclasses.field(default_factory=list)

    def put_into(self, params: PyTree) -> PyTree:
        """Return parameters with this partition, filing and gates, in float32."""
        leaves = {
            GATES: self.found.gates,
            FILING: self.found.filing,
            BLOCK_OF_CELL: self.partition.block_of_cell,
        }
        for path, leaf in leaves.items():
            params = with_leaf(params, path, jnp.asarray(leaf, jnp.float32))
        return params


def check_cost(terms: config.Recruitment) -> None:
    """Check that parameters are paid for by prequential coding, the only way that fits a search.

    Raises:
      ValueError: another cost model.
    """
    if terms.cost != "prequential":
        raise ValueError(
            "recruitment.cost: expected 'prequential', since router, filing and gates follow from the text that was "
            f"coded before; got {terms.cost!r}"
        )


class FrozenRecruiter:
    """The search for a partition of the cells that pays.

    Args:
      model: with router cells; its capacity is the number of blocks that it can have.
      params: trunk and router; partition, filing and gates are not read.
      read: a batch → what `Look.plus` adds, at cells.
      centres: of the cells, unit vectors [C, D].
      settings: `recruitment` says what a division must do (a step is a row, and `candidates` are coded in a pilot),
        `gates.open_share_target` the budget, `train.seed` the placebos.
      concepts: cell → name and token ids of a concept, which is proposed before any other division.

    Attributes:
      passes: how many rows were coded so far.

    Raises:
      ValueError: another cost model than "prequential".
    """

    def __init__(
        self,
        model: Transformer,
        params: PyTree,
        read: Callable[[Batch], Mapping[str, Any]],
        centres: np.ndarray,
        settings: config.Config,
        concepts: Mapping[int, tuple[str, Sequence[int]]] | None = None,
    ):
        check_cost(settings.recruitment)
        self.passes, self._terms, self._seed = 0, settings.recruitment, settings.train.seed
        self._open_share = settings.gates.open_share_target
        self._config, self._params, self._read = model.config, params, read
        self._bits = jax.jit(partial(_row_bits, model))
        self._tree, self._concepts = tree(centres), concepts or {}

    def search(self, state: SearchState, stream: Stream) -> Iterator[tuple[SearchState, dict[str, Any]]]:
        """Yield the state after every decision, with its record, until nothing pays or the stream ends.

        Args:
          state: to go on from.
          stream: rows that nobody has read; `state.rows` is the number of the first.
        """
        while not state.over:
            decide = self._divide if state.refusals < PATIENCE else self._retire
            if (turn := decide(state, stream)) is None:
                return
            state, record = turn
            yield state, record

    def contender(self, seen: Look, partition: Partition) -> Contender:
        """Return a partition with the filing and gates that a look at cells gives it."""
        found = choose(self._config, partition.merged(seen), self._open_share)
        return Contender(partition, found, self.blocks(partition))

    def blocks(self, partition: Partition) -> Blocks:
        """Return the blocks in use, each with the anchors of its cells."""
        c = self._config
        blocks = Blocks.create(1, c.block_capacity, c.anchor_capacity)
        used = np.isin(np.arange(c.block_capacity), [0, *partition.blocks])
        blocks = dataclasses.replace(blocks, active=jnp.asarray(used))
        pinned: dict[int, dict[int, float]] = {}
        for cell, (_, tokens) in self._concepts.items():
            pinned.setdefault(int(partition.block_of_cell[cell]), {}).update(dict.fromkeys(tokens, PINNED))
        for block, log_odds in pinned.items():
            blocks = blocks.anchored(block, log_odds)
        return blocks

    def code(self, contender: Contender, batch: Batch, dial: float = 1.0) -> float:
        """Return the bits that a batch takes at a dial λ."""
        self.passes += 1
        return float(self._bits(contender.put_into(self._params), contender.blocks, batch, Dial(dial)))

    def _divide(self, state: SearchState, stream: Stream) -> tuple[SearchState, dict[str, Any]] | None:
        """Try the division that promises most; return None where there is none, or no row to try it on."""
        begun, passes, place = time.monotonic(), self.passes, state.partition.free_place()
        if place is None:
            return None
        incumbent = self.contender(state.seen, state.partition)
        division, offered = self._proposed(state, incumbent, place)
        if division is None or (first := stream(state.rows)) is None:
            return None
        number = state.trials + 1
        cost = structure_bits(number, offered)
        threshold = cost - math.log2(self._terms.alpha)
        candidate = self.contender(state.seen, state.partition.moved(division.cells, place))
        rows, placebos, reason = [first], list[Contender](), ""
        while not reason:
            saved = self._saved(incumbent, candidate, rows)
            if saved >= threshold and not placebos:
                parts = self._rivals(state, division)
                placebos = [
                    self.contender(state.seen, state.partition.moved(cells, place)) for cells in parts
                ]
            best = max([0.0, *(self._saved(incumbent, placebo, rows) for placebo in placebos)])
            if saved - best >= threshold:
                break
            if saved - best <= -threshold:
                reason = OUTDONE if best else GATHERED_NOTHING
            elif len(rows) == self._terms.horizon:
                reason = REACHED_HORIZON
            elif (batch := stream(state.rows + len(rows))) is None:
                reason = STREAM_ENDED
            else:
                rows.append(batch)
        born = not reason
        size, mine = state.seen.positions, state.partition.block_of_cell == division.parent
        before = np.array(incumbent.spent)
        curves = [np.cumsum(before - c.spent) for c in (candidate, *placebos)]
        best_curve = np.max([np.zeros(len(rows)), *curves[1:]], 0)
        record = {
            "step": state.rows + len(rows),
            "kind": "recruited" if born else "rejected",
            "proposal": "subtree",
            "name": self._name(division),
            "parent": division.parent,
            "trial": number,
            "reason": reason,
            "tokens": _scored(rows),
            "share": round(float(size @ division.cells / (size @ mine)), 4),
            "share_of_text": round(float(size @ division.cells / size.sum()), 4),
            "cells": np.flatnonzero(division.cells).tolist(),
            "mass_let_through": [round(c.found.mass, 4) for c in (incumbent, candidate, *placebos)],
            "incumbent_bits": round(float(before.sum()), 1),
            "llr_bits": round(float(curves[0][-1]), 2),
            "cost_bits": round(cost, 2),
            "threshold_bits": round(threshold, 2),
            "placebo_bits": [round(float(curve[-1]), 2) for curve in curves[1:]],
            "curve_bits": np.round(curves[0], 1).tolist(),
            "best_placebo_curve_bits": np.round(best_curve, 1).tolist(),
        }  # fmt: skip
        after = dataclasses.replace(self._after(state, rows), trials=number)
        if born:
            record["block"] = place
            births = {**state.births, place: (division.parent, cost)}
            after = dataclasses.replace(after, partition=candidate.partition, refusals=0, births=births)
        else:
            refused = {**state.refused, _key(division.cells): state.seen.tokens}
            after = dataclasses.replace(after, refusals=state.refusals + 1, refused=refused)
        return after, record | self._costs(begun, passes)

    def _retire(self, state: SearchState, stream: Stream) -> tuple[SearchState, dict[str, Any]] | None:
        """Try to do without the newcomer that lets through least; return None where there is none to try."""
        begun, passes = time.monotonic(), self.passes
        rows = [batch for n in range(self._terms.horizon) if (batch := stream(state.rows + n))]
        used = set(state.partition.blocks)
        without = {
            block: self.contender(state.seen, state.partition.moved(state.partition.block_of_cell == block, parent))
            for block, (parent, _) in state.births.items()
            if parent in used
        }  # fmt: skip
        if not (rows and without):
            return None
        block = max(without, key=lambda b: without[b].found.mass)
        saved = self._saved(self.contender(state.seen, state.partition), without[block], rows)
        parent, description = state.births[block]
        gone = saved + description > 0
        record = {
            "step": state.rows + len(rows),
            "kind": "retired" if gone else "kept",
            "block": block,
            "parent": parent,
            "tokens": _scored(rows),
            "llr_bits": round(saved, 2),
            "description_bits": round(description, 2),
        }
        after = dataclasses.replace(self._after(state, rows), over=not gone)
        if gone:
            births = {b: birth for b, birth in state.births.items() if b != block}
            after = dataclasses.replace(after, partition=without[block].partition, births=births)
        return after, record | self._costs(begun, passes)

    def _after(self, state: SearchState, rows: Sequence[Batch]) -> SearchState:
        """Return the state after these rows were read."""
        seen = state.seen
        for batch in rows:
            seen = seen.plus(self._read(batch))
        return dataclasses.replace(state, seen=seen, last=rows[-1], rows=state.rows + len(rows))

    def _costs(self, begun: float, passes: int) -> dict[str, float]:
        return {"passes": self.passes - passes, "seconds": round(time.monotonic() - begun, 1)}

    def _name(self, division: Division) -> str:
        """Return the name of the concept that a division is for; "": none."""
        alone = division.cells.sum() == 1
        return self._concepts.get(int(division.cells.argmax()), ("",))[0] if alone else ""

    def _proposed(self, state: SearchState, incumbent: Contender, place: int) -> tuple[Division | None, int]:
        """Return a concept that has no block, or what the pilot prefers, and among how many it was chosen."""
        found, merged = incumbent.found, state.partition.merged(state.seen)
        price = price_of(merged, found.gates, found.filing)
        random = np.random.default_rng((self._seed, state.trials))
        heads = self._config.kv_heads
        offered = [
            d
            for d in divisions(state.seen, state.partition, self._tree, price, heads, random)
            if 2 * state.refused.get(_key(d.cells), 0) < state.seen.tokens  # what was refused may come again
            and (self._name(d) or len(self._rivals(state, d)) == self._terms.placebos)
        ]
        if not offered:
            return None, 0
        wanted = [d for d in offered if self._name(d)][:1] or different(offered, self._terms.candidates)
        if len(wanted) == 1:
            return wanted[0], len(offered)
        candidates = [self.contender(state.seen, state.partition.moved(d.cells, place)) for d in wanted]
        spent = [self.code(candidate, state.last) for candidate in candidates]
        return wanted[int(np.argmin(spent))], len(offered)

    def _rivals(self, state: SearchState, division: Division) -> list[np.ndarray]:
        """Return random sets of the parent's cells with about as many positions; fewer where there are no more.

        Only a concept is tried with fewer than the terms ask for.
        """
        size = state.seen.positions
        mine = state.partition.block_of_cell == division.parent
        cells, wanted = np.flatnonzero(mine), size @ division.cells
        wanted = min(wanted, size @ mine - wanted)
        random = np.random.default_rng((self._seed, state.trials, 1))
        not_these, found = {_key(division.cells), _key(mine & ~division.cells)}, dict[bytes, np.ndarray]()
        for _ in range(16 * self._terms.placebos):
            order = random.permutation(cells)
            count = 1 + int(np.abs(np.cumsum(size[order])[:-1] - wanted).argmin())
            part = np.isin(np.arange(len(size)), order[:count])
            if _key(part) not in not_these:
                found[_key(part)] = part
            if len(found) == self._terms.placebos:
                break
        return list(found.values())

    def _saved(self, incumbent: Contender, contender: Contender, rows: Sequence[Batch]) -> float:
        """Return the bits that a contender saves on these rows; each row is coded once."""
        for each in (incumbent, contender):
            each.spent.extend(self.code(each, batch) for batch in rows[len(each.spent) :])
        return sum(incumbent.spent) - sum(contender.spent)


def _row_bits(model: Transformer, params: PyTree, blocks: Blocks, batch: Batch, dial: Dial) -> jax.Array:
    dial = dial.broadcast(batch.tokens.shape[0], model.config.layers, model.config.heads)
    places = {"positions": batch.positions, "segments": batch.segments}
    out = forward(model, params, batch.tokens, dial, blocks, **places)
    return jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0).sum()


def _scored(rows: Sequence[Batch]) -> int:
    return sum(int(np.asarray(batch.scored).sum()) for batch in rows)


def _key(cells: np.ndarray) -> bytes:
    return np.packbits(cells).tobytes()

"""The search on a frozen trunk: what pays is recruited, what does not is refused, and T10's α holds."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
from test_cells import CAPACITY, CELLS, SHAPE, look

from localist_jax import config
from localist_jax.data import Batch
from localist_jax.locality import router
from localist_jax.model import Transformer
from localist_jax.recruitment import chronicle
from localist_jax.recruitment.cells import Partition
from localist_jax.recruitment.frozen import FrozenRecruiter, SearchState

TERMS = {"horizon": 3, "candidates": 2, "placebos": 2, "survey": 1}
TARGET = (4, 7)  # cells that belong in two blocks
ROW = Batch(*(np.ones((1, 8), np.int32) for _ in range(4)))


def settings(**changes):
    return config.Config().replace(gates={"open_share_target": 0.5}, recruitment={**TERMS, **changes})


class Told(FrozenRecruiter):
    """A recruiter that is told what a row takes under a partition, instead of running a model."""

    def __init__(self, spend, concepts=None, **changes):
        seen = look()
        nothing = {"tokens": 100, "positions": seen.positions * 0.01}
        model = Transformer(SHAPE, 16)
        super().__init__(model, {}, lambda _: nothing, seen.centres, settings(**changes), concepts)
        self._spend, self.coded = spend, 0

    def code(self, contender, batch):
        self.passes += 1
        return self._spend(contender.partition, int(batch.tokens[0, 0]))


def stream(rows):
    def row(n):
        tokens = np.full((1, 8), n, np.int32)
        return dataclasses.replace(ROW, tokens=tokens) if n < rows else None

    return row


def begun():
    last = dataclasses.replace(ROW, tokens=np.full((1, 8), -1, np.int32))
    return SearchState(look(), Partition.single(CELLS + 1, CAPACITY), last)


def apart(partition, row):
    """Return 1,000 bits a row, 80 fewer where the target's cells are in two blocks."""
    one, other = partition.block_of_cell[list(TARGET)]
    return 1000.0 - 80.0 * (one != other)


def test_what_pays_is_recruited_and_no_more():
    found = [*Told(apart).search(begun(), stream(60))]
    records = [record for _, record in found]
    births = [r for r in records if r["kind"] == "recruited"]
    assert births
    first = births[0]
    assert first["llr_bits"] == 80.0 * len(first["curve_bits"])
    assert first["llr_bits"] - max(0.0, *first["placebo_bits"]) >= first["threshold_bits"]
    assert first["threshold_bits"] == pytest.approx(first["cost_bits"] - math.log2(0.05), abs=0.01)
    state = found[-1][0]
    one, other = state.partition.block_of_cell[list(TARGET)]
    assert one != other
    assert len(births) == len(state.births) == len(state.partition.blocks) - 1 == 1
    assert [r["trial"] for r in records if r["kind"] in ("recruited", "rejected")] == [
        *range(1, state.trials + 1)
    ]
    assert all(chronicle.sentences([r]) for r in records)


def test_a_division_that_any_other_equals_is_refused():
    def more_blocks(partition, row):
        return 1000.0 - 80.0 * len(partition.blocks)

    records = [r for _, r in Told(more_blocks).search(begun(), stream(60))]
    assert {r["kind"] for r in records} == {"rejected"}
    assert all(r["reason"] == "at its horizon" and len(r["curve_bits"]) == 3 for r in records)


def test_a_division_that_costs_bits_is_given_up_after_a_row_and_placebos_are_not_coded():
    def fewer(partition, row):
        return 1000.0 + 80.0 * len(partition.blocks)

    recruiter = Told(fewer)
    records = [r for _, r in recruiter.search(begun(), stream(60))]
    assert [r["reason"] for r in records] == ["it gathered nothing"] * 4
    assert all(len(r["curve_bits"]) == 1 and not r["placebo_bits"] and r["passes"] == 4 for r in records)


def false_recruits(runs, drift):
    """Return in how many searches of a stream without anything to find something was recruited."""
    spread = 6.0  # bits of a row

    def noise(seed):
        def spend(partition, row):
            if len(partition.blocks) == 1:
                return 1000.0
            random = np.random.default_rng([seed, row + 1, *partition.block_of_cell])
            return 1000.0 - random.normal(drift * spread**2 * math.log(2) / 2, spread)

        return spend

    searches = (Told(noise(seed), horizon=6).search(begun(), stream(40)) for seed in range(runs))
    return sum(any(r["kind"] == "recruited" for _, r in search) for search in searches)


def test_alpha_bounds_false_recruits():
    """Under the null E[2^llr] = 1, so a row's evidence has the mean −σ²·ln 2/2; a gain of as much is soon found."""
    assert false_recruits(60, drift=-1.0) <= 60 * 0.05 + 3
    assert false_recruits(10, drift=1.0) >= 5


def test_a_stopped_search_goes_on_and_decides_the_same():
    whole = [r for _, r in Told(apart).search(begun(), stream(60))]
    for r in whole:
        r.pop("seconds")
    assert {"recruited", "rejected", "kept"} <= {r["kind"] for r in whole}
    for done, (state, _) in enumerate(Told(apart).search(begun(), stream(60)), 1):
        rest = [r for _, r in Told(apart).search(state, stream(60))]
        assert [{**r, "seconds": 0} for r in rest] == [{**r, "seconds": 0} for r in whole[done:]]


def test_the_stream_may_end():
    assert [*Told(apart).search(begun(), stream(0))] == []
    kinds = [(r["kind"], r.get("reason")) for _, r in Told(lambda p, n: 1000.0).search(begun(), stream(2))]
    assert kinds == [("rejected", "the stream ended")]


def test_a_newcomer_that_stops_paying_is_retired():
    born = []

    def for_a_while(partition, row):
        gain = 200.0 if not born or row < born[0] else -200.0
        one, other = partition.block_of_cell[list(TARGET)]
        return 1000.0 - gain * (one != other)

    records = []
    for _, record in Told(for_a_while).search(begun(), stream(80)):
        records.append(record)
        if record["kind"] == "recruited" and not born:
            born.append(record["step"])
    assert [r["kind"] for r in records].count("retired") == 1
    lives = chronicle.lives(records)
    assert [life.ended is not None for life in lives if life.trial] == [True]


def test_a_concept_is_proposed_first_and_has_its_anchors():
    recruiter = Told(apart, concepts={9: ("drug", [3, 5])})
    _, record = next(recruiter.search(begun(), stream(60)))
    assert (record["name"], record["cells"]) == ("drug", [9])
    blocks = recruiter.blocks(Partition.single(CELLS + 1, CAPACITY).moved(np.arange(CELLS + 1) == 9, 3))
    assert sorted(np.asarray(blocks.anchor_tokens)[3].tolist())[-2:] == [3, 5]
    assert np.flatnonzero(np.asarray(blocks.active)).tolist() == [0, 1, 3]


def test_another_cost_model_is_refused():
    with pytest.raises(ValueError, match=r"recruitment.cost: expected 'prequential'"):
        Told(apart, cost="bic")


def test_dividing_a_block_moves_no_position_of_another():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, CELLS + 1)), jnp.float32)
    before = Partition(np.array([0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 1]), CAPACITY)
    after = before.moved(np.isin(np.arange(CELLS + 1), [5, 6]), 4)
    blocks = [
        np.asarray(router.best_cell(logits, jnp.asarray(p.block_of_cell), CAPACITY).argmax(-1))
        for p in (before, after)
    ]
    moved = blocks[0] != blocks[1]
    assert moved.any()
    assert (blocks[0][moved] == 2).all()
    assert (blocks[1][moved] == 4).all()
    alone = router.best_cell(logits, jnp.arange(CELLS + 1), CELLS + 1)
    np.testing.assert_array_equal(np.asarray(alone), np.asarray(logits))
    assert (
        np.asarray(router.best_cell(logits, jnp.asarray(before.block_of_cell), CAPACITY))[..., 4] == -1e9
    ).all()

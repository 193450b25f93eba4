"""Partitions of cells: tables add up, a gain is that of tables made anew, and only one block moves."""

import numpy as np
import pytest

from localist_jax import config
from localist_jax.adopt.calibrate import Look, choose
from localist_jax.locality import Blocks
from localist_jax.locality.budget import PRIOR_PAIRS
from localist_jax.recruitment.cells import Partition, different, divisions, gains_of, price_of, tree

CELLS, CAPACITY, F, L, N, G = 12, 5, 2, 2, 4, 2
SHAPE = config.Model(
    layers=L + 1, router_layer=1, heads=N, kv_heads=G, blocks=2, block_capacity=CAPACITY, filings=F,
    router_bias=True, router_cells=CELLS + 1,
)  # fmt: skip


def look(seed=0):
    """Return made-up tables: every head likes some pairs of cells."""
    random = np.random.default_rng(seed)
    pairs = random.integers(0, 40, (F, CELLS + 1, CELLS + 1)).astype(float)
    mass = pairs[:, None, None] * random.beta(0.3, 2.0, (F, L, N, CELLS + 1, CELLS + 1))
    mass[..., 0] = 0
    centres = random.normal(size=(CELLS, 8))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    positions = random.integers(1, 50, CELLS + 1).astype(float)
    blocks = Blocks.create(2, CAPACITY, 4)
    causal = float(pairs[0].sum()) * 1.2
    return Look({}, blocks, mass, pairs, 0.2 * causal * L, causal, 500, positions, centres)


def three_blocks():
    return Partition(np.array([0, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 1]), CAPACITY)


def value(seen, partition, price):
    """Return Σφ over all gates, with the best filing of each key/value head."""
    merged = partition.merged(seen)
    worth = np.maximum(0.0, merged.mass - price * (merged.pairs[:, None, None] + PRIOR_PAIRS)).sum((-1, -2))
    return worth.reshape(F, L, G, -1).sum(-1).max(0).sum()


def test_tables_of_blocks_are_sums_over_their_cells():
    seen, partition = look(), three_blocks()
    merged = partition.merged(seen)
    mine, other = np.flatnonzero(partition.block_of_cell == 2), np.flatnonzero(partition.block_of_cell == 3)
    expected = seen.mass[1, 1, 2][np.ix_(mine, other)].sum()
    assert merged.mass[1, 1, 2, 2, 3] == pytest.approx(expected)
    assert merged.mass.sum() == pytest.approx(seen.mass.sum())
    assert merged.pairs.sum() == pytest.approx(seen.pairs.sum())
    assert merged.mass.shape == (F, L, N, CAPACITY, CAPACITY)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_a_gain_is_that_of_tables_made_anew(block):
    seen, partition, price = look(), three_blocks(), 0.2
    cells = np.flatnonzero(partition.block_of_cell == block)
    parts = np.array([np.isin(np.arange(CELLS + 1), cells[:k]) for k in range(1, len(cells))])
    gains = gains_of(block, parts, seen, partition, price, G)
    before = value(seen, partition, price)
    anew = [value(seen, partition.moved(part, 4), price) - before for part in parts]
    np.testing.assert_allclose(gains, anew, rtol=1e-4, atol=1e-3)
    assert np.ptp(gains) > 0.1


def test_divisions_are_the_trees_and_come_in_order():
    seen, partition = look(), three_blocks()
    subtrees = tree(seen.centres)
    assert subtrees.shape == (2 * CELLS - 2, CELLS + 1)
    assert not subtrees[:, 0].any()
    found = divisions(seen, partition, subtrees, 0.2, G, np.random.default_rng(0))
    beyond = [d.gain - d.chance for d in found]
    assert beyond == sorted(beyond, reverse=True)
    for d in found:
        assert d.cells.any()
        assert not (d.cells & (partition.block_of_cell != d.parent)).any()
        assert (d.cells != (partition.block_of_cell == d.parent)).any()
        assert any(((s & (partition.block_of_cell == d.parent)) == d.cells).all() for s in subtrees)
    few = different(found, 4)
    for i, one in enumerate(few):
        assert all((one.cells & d.cells).sum() <= 0.7 * (one.cells | d.cells).sum() for d in few[:i])


def test_planted_cells_that_attend_to_each_other_are_found():
    seen = look()
    planted = np.isin(np.arange(CELLS + 1), [3, 4, 5])
    mass = np.full_like(seen.mass, 0.01)
    mass[..., planted[:, None] & planted[None, :]] = 30.0
    mass[..., 0] = 0
    pairs = np.full_like(seen.pairs, 40.0)
    centres = np.eye(CELLS)[:, :8] + 0.01
    centres[2:5] = centres[2]  # cells 3, 4 and 5
    seen = Look({}, seen.blocks, mass, pairs, 0.0, 8e3, 500, seen.positions, centres + 1e-6 * np.arange(8))
    best = divisions(
        seen, Partition.single(CELLS + 1, CAPACITY), tree(seen.centres), 0.3, G, np.random.default_rng(0)
    )[0]
    assert (best.cells == planted).all() or (best.cells == ~planted & (np.arange(CELLS + 1) > 0)).all()
    assert best.gain > 2 * best.chance


def test_the_price_is_the_last_pairs_mass():
    seen, partition = look(), three_blocks()
    merged = partition.merged(seen)
    tight, loose = (choose(SHAPE, merged, share) for share in (0.3, 0.7))
    prices = [price_of(merged, found.gates, found.filing) for found in (tight, loose)]
    assert prices[0] > prices[1] > 0
    assert price_of(merged, np.zeros_like(tight.gates), tight.filing) == 0.0


def test_places_are_taken_and_given_back():
    partition = Partition.single(CELLS + 1, 3)
    assert partition.blocks == [1]
    assert partition.free_place() == 2
    full = partition.moved(np.arange(CELLS + 1) == 5, 2)
    assert full.blocks == [1, 2]
    assert full.free_place() is None
    assert full.moved(full.block_of_cell == 2, 1).blocks == [1]

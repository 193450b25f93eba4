"""Gates chosen by mass per pair within a budget, and the filings of heads."""

import itertools

import numpy as np
import pytest

from localist_jax.locality import budget


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_of_gates_with_as_few_pairs_lets_more_mass_through(seed):
    """Check against all subsets; with this many pairs, one more changes no order."""
    rng = np.random.default_rng(seed)
    mass, pairs = rng.random(9) * 1e6, rng.integers(1, 9, 9) * 1e6
    order = budget.by_density(mass, pairs)
    exact = float(np.cumsum(pairs[order])[rng.integers(9)])
    opened = budget.open_by_mass(mass, pairs, exact)
    assert pairs[opened].sum() == exact
    best = max(
        mass[list(chosen)].sum()
        for size in range(10)
        for chosen in itertools.combinations(range(9), size)
        if pairs[list(chosen)].sum() <= exact
    )
    assert mass[opened].sum() == pytest.approx(best)
    assert budget.captured(mass, pairs, exact) == pytest.approx(best)


def test_the_densest_are_opened_as_long_as_they_fit():
    mass, pairs = np.array([[8.0, 6.0], [3.0, 0.1]]), np.array([[100.0, 20.0], [10.0, 50.0]])
    for limit, opened in (
        (19, []),
        (20, [1]),
        (29, [1]),
        (30, [1, 2]),
        (130, [1, 2, 0]),
        (180, [1, 2, 0, 3]),
    ):
        found = budget.open_by_mass(mass, pairs, limit)
        assert found.shape == mass.shape
        assert set(np.flatnonzero(found)) == set(opened), limit
        assert budget.captured(mass, pairs, limit) == pytest.approx(mass.ravel()[opened].sum())


def test_the_order_stops_at_the_first_that_does_not_fit():
    mass, pairs = np.array([5.0, 9.0, 1.0]), np.array([5.0, 10.0, 2.0])
    assert budget.open_by_mass(mass, pairs, 7.0, prior_pairs=0.0).tolist() == [True, False, False]


def test_a_group_without_pairs_is_never_opened():
    assert budget.open_by_mass(np.array([0.0, 1.0]), np.array([0.0, 4.0]), 9.0).tolist() == [False, True]


def test_what_was_seen_once_is_counted_with_a_pair_more():
    mass, pairs = np.array([6.0, 1.0]), np.array([10.0, 1.0])
    assert budget.by_density(mass, pairs).tolist() == [0, 1]
    assert budget.by_density(mass, pairs, prior_pairs=0.0).tolist() == [1, 0]


def test_a_negative_budget_is_refused():
    with pytest.raises(ValueError, match="expected at least 0 pairs, got -1"):
        budget.open_by_mass(np.ones(2), np.ones(2), -1.0)


def test_each_key_value_head_files_where_its_heads_capture_most():
    """Check tables in which head group 0 attends by own blocks, and group 1 by the blocks before."""
    rng = np.random.default_rng(0)
    F, L, N, G, K = 2, 3, 4, 2, 5
    pairs = np.full((F, K, K), 100.0)
    mass = rng.random((F, L, N, K, K))
    sharp = np.zeros((K, K))
    sharp[1, 2] = 80.0
    mass[0, :, :2] += sharp
    mass[1, :, 2:] += sharp
    filing = budget.choose_filing(mass, pairs, 0.05, G)
    np.testing.assert_array_equal(filing, [[0, 1]] * L)
    chosen, counted = budget.chosen_tables(mass, pairs, filing)
    np.testing.assert_array_equal(chosen[:, :2], mass[0, :, :2])
    np.testing.assert_array_equal(chosen[:, 2:], mass[1, :, 2:])
    assert counted.shape == (L, N, K, K)

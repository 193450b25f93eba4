"""Gates by mass per pair: within the budget, the densest first; groups seen once are not believed at their word."""

import numpy as np
import pytest

from localist_jax.locality import budget


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

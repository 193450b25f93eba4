"""The streams of orders and shifts, and what is counted on them."""

import itertools

import numpy as np
import pytest

from experiments.order_and_shift import runs
from experiments.order_and_shift.page import agreement
from experiments.order_and_shift.texts import DOMAINS, SESSION


def result(domains, owners, births=()):
    """A run with one LLM for each session, and births at these batches."""
    curve = [
        [i, d, 1.0, 1.0, 0.0, 10, o]
        for i, (d, o) in enumerate(zip(domains, owners, strict=True))
        for _ in range(4)
    ]
    decisions = [{"kind": "recruited", "step": step} for step in births]
    return {"sessions": domains, "curve": curve, "decisions": decisions}


def test_every_order_brings_all_domains_and_gives_each_new_one_time():
    orders = [runs.sessions("order", seed) for seed in range(3)]
    assert len({tuple(dict.fromkeys(order)) for order in orders}) == 3
    for order in orders:
        assert set(order) == set(DOMAINS)
        first = {domain: order.index(domain) for domain in DOMAINS}
        assert sorted(first.values()) == [0, *range(runs.FIRST, runs.FIRST + 6 * runs.EACH, runs.EACH)]
    assert list(dict.fromkeys(runs.sessions("health", 0))) == [
        "population_health",
        "nutrition",
        "pharmacology",
    ]


def test_shifts_do_what_they_are_called():
    abrupt, gradual, recurring = (runs.sessions(name, 0) for name in ("abrupt", "gradual", "recurring"))
    edge = abrupt.index(runs.OTHER)
    assert abrupt[edge : edge + runs.EACH] == [runs.OTHER] * runs.EACH
    half = len(gradual) // 2
    assert gradual[:half].count(runs.OTHER) < gradual[half:].count(runs.OTHER)
    assert sum(a != b for a, b in itertools.pairwise(recurring)) == 6
    assert set(runs.sessions("one book", 0)) == {runs.ONE}


@pytest.mark.parametrize(("last", "same"), [("b", 1), ("a", 0)])
def test_a_return_counts_when_it_finds_the_llm_that_the_domain_had_last(last, same):
    domains = ["x", "x", "y", "y", "x", "y"]
    found = result(domains, ["a", "a", "b", "b", "a", last], births=[2 * SESSION - 1])
    assert runs.returns(found) == (1, same), "x had no second LLM to choose from at its first coming"
    assert runs.returns(result(domains, ["a"] * 6)) == (0, 0), "nothing to choose from"


def test_domains_and_llms_agree_fully_or_not_at_all():
    assert agreement({"x": [5, 0], "y": [0, 5]}) == pytest.approx(1)
    assert agreement({"x": [5, 5], "y": [5, 5]}) == pytest.approx(0, abs=1e-6)
    assert agreement({"x": [5, 0], "y": [5, 0]}) == 0


def test_a_random_division_knows_nothing_of_domains_and_stays_the_same():
    rng = np.random.default_rng(0)
    documents = rng.poisson(1, (4000, 50)).astype(float)
    documents[:2000, :25] = 0  # another domain
    division = runs.AtRandom("hard", rng.random(50), 0.0, 0.3, excess_bits=1.0, explained=0.0, ways=1)
    taken = division.takes(documents)
    assert (division.takes(documents) == taken).all()
    assert abs(taken[:2000].mean() - 0.3) < 0.05
    assert abs(taken[2000:].mean() - 0.3) < 0.05

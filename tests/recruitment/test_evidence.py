"""Costs satisfy Kraft; evidence adds up; a verdict needs bits and better than every placebo."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from localist_jax.recruitment import evidence as ev
from localist_jax.recruitment.cost import parameter_bits, structure_bits
from localist_jax.recruitment.evidence import Decision, Evidence

# --- cost ------------------------------------------------------------------------------------------


def test_codewords_of_all_candidates_satisfy_kraft():
    """Any number of trials, each one of 5 parents and one of 3 ways to split it."""
    spent = sum(15 * 2 ** -structure_bits(trial, 5, 3) for trial in range(1, 200_000))
    assert 0.8 < spent < 1


@pytest.mark.parametrize(("trial", "choices"), [(0, ()), (1, (0,)), (3, (2, -1))])
def test_impossible_structures_are_refused(trial, choices):
    with pytest.raises(ValueError, match=r"at least 1|must be ≥ 1"):
        structure_bits(trial, *choices)


def test_parameters_cost_what_the_model_says():
    assert parameter_bits("prequential", 10**6) == 0
    assert parameter_bits("bic", 10, tokens=2**20) == pytest.approx(100)
    assert parameter_bits("fixed", 10, bits_per_parameter=8) == 80


@pytest.mark.parametrize(
    ("wrong", "words"),
    [(("bic", 1), "number of tokens"), (("fixed", 1), "bits_per_parameter"), (("aic", 1), "unknown")],
)
def test_a_cost_model_without_its_number_is_refused(wrong, words):
    with pytest.raises(ValueError, match=words):
        parameter_bits(*wrong)


# --- evidence --------------------------------------------------------------------------------------


def opened(costs, horizon=10, placebos=2):
    trials = Evidence.create(len(costs), placebos)
    for at, cost in enumerate(costs):
        trials = trials.opened(at, cost, step=0, horizon=horizon)
    return trials


def test_evidence_is_the_sum_of_what_was_saved():
    trials = opened([3.0, 3.0]).closed(1)
    for incumbent, candidate in ((100.0, 90.0), (80.0, 85.0)):
        trials = trials.observed(
            jnp.float32(incumbent), jnp.full(2, candidate), jnp.full((2, 2), incumbent - 1)
        )
    assert trials.llr_bits.tolist() == [5.0, 0.0]
    assert trials.placebo_bits.tolist() == [[2.0, 2.0], [0.0, 0.0]]


def test_a_trial_that_opens_again_starts_from_nothing():
    trials = opened([3.0]).observed(jnp.float32(10.0), jnp.zeros(1), jnp.zeros((1, 2))).closed(0)
    again = trials.opened(0, 4.0, step=7, horizon=5)
    assert again.llr_bits.tolist() == [0.0]
    assert (again.placebo_bits == 0).all()
    assert (int(again.opened_at[0]), int(again.horizon[0]), float(again.cost_bits[0])) == (7, 12, 4.0)


@pytest.mark.parametrize(
    ("llr", "placebos", "step", "wanted"),
    [
        (9.0, (0.0, 0.1), 10, Decision.RECRUIT),  # 4 + log2(1/0.05) = 8.32
        (9.0, (0.0, 2.0), 10, Decision.REJECT),  # the spread of the placebos could have done that
        (9.0, (0.0, 1.0), 9, Decision.WAIT),
        (8.0, (0.0, 1.0), 10, Decision.REJECT),  # too few bits
        (900.0, (0.0, 901.0), 10, Decision.REJECT),  # a placebo did better
        (900.0, (891.8, 891.9), 10, Decision.REJECT),  # what a placebo did not save does not pay for it
        (9.0, (-9.0, -9.1), 10, Decision.RECRUIT),  # placebos that lose are no help
    ],
)
def test_a_verdict_needs_its_bits_and_to_beat_every_placebo_at_the_horizon(llr, placebos, step, wanted):
    trials = opened([4.0]).observed(jnp.float32(0.0), jnp.array([-llr]), -jnp.array([placebos]))
    assert ev.verdicts(trials, step, 0.05).tolist() == [wanted]
    assert ev.verdicts(trials.closed(0), step, 0.05).tolist() == [Decision.WAIT]


def test_the_surprise_is_the_chance_that_a_placebo_does_as_well():
    """Against scipy's t, and by simulation: among exchangeable ones, b bits of surprise come with probability 2^-b."""
    llr, placebos = np.array([9.0, -3.0, 1e6]), np.array([[0.0, 1.0, 2.5, -1.0]] * 3)
    spread = placebos.std(-1, ddof=1) * np.sqrt(1 + 1 / 4)
    wanted = -stats.t(3).logsf((llr - placebos.mean(-1)) / spread) / np.log(2)
    np.testing.assert_allclose(ev.surprise_bits(jnp.asarray(llr), jnp.asarray(placebos)), wanted, rtol=2e-4)
    drawn = 40 + 7 * np.random.default_rng(0).normal(size=(40_000, 6))
    bits = np.asarray(ev.surprise_bits(jnp.asarray(drawn[:, 0]), jnp.asarray(drawn[:, 1:])))
    for b in (1, 4, 7):
        assert (bits >= b).mean() == pytest.approx(2.0**-b, rel=0.25)


def test_alike_placebos_surprise_nobody_and_the_trials_number_is_paid_for():
    assert ev.surprise_bits(jnp.array([5.0]), jnp.ones((1, 4))).tolist() == [0.0]
    trials = opened([4.0], placebos=4).observed(
        jnp.float32(0.0), jnp.array([-90.0]), -jnp.array([[8.0, 12.0, 9.0, 11.0]])
    )
    wanted = [ev.verdicts(trials, 10, 0.05, bits).tolist() for bits in (0.0, 30.0)]
    assert wanted == [[Decision.RECRUIT], [Decision.REJECT]]


def test_an_estimate_on_fresh_data_adds_to_the_standing_and_none_adds_nothing():
    trials = opened([4.0], placebos=3).observed(
        jnp.float32(0.0), jnp.array([-14.0]), -jnp.array([[8.0, 12.0, 10.0]])
    )
    alone = np.asarray(ev.surprise_bits(*ev.standing(trials, jnp.zeros((1, 4)))))
    np.testing.assert_allclose(alone, ev.surprise_bits(trials.llr_bits, trials.placebo_bits), rtol=1e-5)
    one, others = ev.standing(trials, jnp.array([[64.0, 16.0, 4.0, 9.0]]))
    assert one.tolist() == pytest.approx([(14 - 10) / 2 + (8 - 3) / 1])
    assert others[0].tolist() == pytest.approx([-1 + 1, 1 - 1, 0.0])
    low = ev.standing(trials, jnp.array([[4.0, 16.0, 4.0, 9.0]]))
    assert ev.surprise_bits(*low)[0] < alone[0]


def test_without_placebos_the_threshold_decides():
    trials = opened([4.0], placebos=0).observed(jnp.float32(9.0), jnp.zeros(1), jnp.zeros((1, 0)))
    assert ev.verdicts(trials, 10, 0.05).tolist() == [Decision.RECRUIT]


def test_the_rule_of_the_sum_recruits_whenever_the_rule_of_one_does():
    rng = np.random.default_rng(0)
    llr, cost = rng.normal(0, 6, (500, 4)), rng.uniform(0, 6, (500, 4))
    for alpha in (0.5, 0.05):
        one = ev.sufficient(jnp.asarray(llr), jnp.asarray(cost), alpha).any(-1)
        together = ev.sufficient_together(jnp.asarray(llr), jnp.asarray(cost), alpha)
        assert not (one & ~together).any()
        assert (together & ~one).any()
        by_hand = (2 ** (llr - cost)).sum(-1) >= 1 / alpha
        np.testing.assert_array_equal(together, by_hand)


def test_two_bold_gamblers_share_one_alpha():
    """Exhaustively: on four fair coins, no betting on the way makes the rule recruit with more than α."""
    alpha, cost = 0.25, [structure_bits(1), structure_bits(2)]
    hits = 0
    for coins in itertools.product((0, 1), repeat=4):
        llr = [sum(1 if c else -math.inf for c in coins[start:]) for start in (0, 1)]  # all on heads
        hits += any(
            bool(ev.sufficient(jnp.float32(x), jnp.float32(c), alpha)) for x, c in zip(llr, cost, strict=True)
        )
    assert hits / 16 <= alpha

import numpy as np
import pytest

from localist_jax import bits
from localist_jax.locality.anchors import least_redundant, telling


def fidelity(r, n, margin):
    return r / (r + (n - r) * np.exp(-margin))


@pytest.mark.parametrize("margin", [-3.0, 0.0, 0.5, 4.0, 30.0])
@pytest.mark.parametrize("wanted", [1e-6, 0.3, 0.9, 1 - 1e-9])
def test_fewest_anchors_by_trying_all(margin, wanted):
    for n in (1, 2, 7, 300):
        enough = [r for r in range(1, n + 1) if fidelity(r, n, margin) >= wanted]
        assert least_redundant(n, margin, wanted) == enough[0]


@pytest.mark.parametrize("n", [8, 1000, 12345])
def test_the_fidelity_of_r_anchors_asks_for_r_anchors(n):
    r = np.arange(1, n)
    assert np.array_equal(least_redundant(n, 2.5, fidelity(r, n, 2.5)), r)


def test_all_the_mass_needs_all_the_keys_and_a_huge_margin_one_anchor():
    assert least_redundant(40, 5.0, 1.0) == 40
    assert least_redundant(40, 800.0, 0.999) == 1
    assert least_redundant(40, -800.0, 0.001) == 40


@pytest.mark.parametrize(
    ("keys", "margin", "wanted"), [(0, 1.0, 0.5), (4, np.inf, 0.5), (4, 1.0, 0.0), (4, 1.0, 1.1)]
)
def test_what_makes_no_sense_is_refused(keys, margin, wanted):
    with pytest.raises(ValueError, match="anchors"):
        least_redundant(keys, margin, wanted)


def information(counts, block, tokens):
    """Return I(position in block; which of these tokens, if any), from the joint table."""
    mine, others = counts[block], counts.sum(0) - counts[block]
    cells = [(mine[t], others[t]) for t in tokens]
    rest = np.array([mine.sum(), others.sum()]) - np.sum(cells, 0, initial=0)
    return float(bits.mutual_information(np.array([*cells, rest], float)))


@pytest.fixture
def counts():
    return np.random.default_rng(1).gamma(0.3, 40.0, (5, 30)).round()


@pytest.mark.parametrize("block", range(5))
def test_gains_add_up_to_the_information_of_the_anchors_less_its_bias(counts, block):
    told = telling(counts, block, 6)
    n = counts.sum()
    assert 0 < len(told.tokens) <= 6
    wanted = information(counts, block, told.tokens) - bits.from_nats(len(told.tokens) / (2 * n))
    assert told.information_bits == pytest.approx(wanted, rel=1e-4)
    share = counts[block].sum() / n
    assert told.entropy_bits == pytest.approx(float(bits.binary_entropy(np.float32(share))), rel=1e-5)
    assert told.left_bits == told.entropy_bits - told.information_bits


def test_the_first_anchor_is_the_best_of_those_that_speak_for_the_block(counts):
    told = telling(counts, 2)
    share = counts[2].sum() / counts.sum()
    speaking = [t for t in range(30) if counts[2, t] > share * counts[:, t].sum()]
    assert told.tokens[0] == max(speaking, key=lambda t: information(counts, 2, [t]))
    assert set(told.tokens) <= set(speaking)
    others = counts.sum(0) - counts[2]
    wanted = [np.log((counts[2, t] + 0.5) / (others[t] + 0.5)) for t in told.tokens]
    np.testing.assert_allclose(told.log_odds, wanted)


def test_a_token_that_is_frequent_everywhere_is_no_anchor_and_noise_has_none():
    even = np.array([[900.0, 60.0, 5.0], [900.0, 0.0, 40.0]])
    assert telling(even, 0).tokens == (1,)
    rng = np.random.default_rng(0)
    chance = np.stack([rng.multinomial(2000, np.full(200, 1 / 200)) for _ in range(4)]).astype(float)
    assert [telling(chance, block).tokens for block in range(4)] == [()] * 4


def test_blocks_without_positions_and_a_block_that_has_all_have_no_anchors():
    counts = np.array([[0.0, 0.0], [70.0, 30.0]])
    for block in (0, 1):
        told = telling(counts, block)
        assert (told.tokens, told.entropy_bits, told.information_bits) == ((), 0.0, 0.0)
    assert telling(np.zeros((2, 3)), 0).tokens == ()

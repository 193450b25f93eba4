import numpy as np
import pytest

from localist_jax.locality.anchors import least_redundant


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

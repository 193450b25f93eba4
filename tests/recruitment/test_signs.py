"""Signs that something is wrong with blocks: each is there when it should be, and not otherwise."""

import dataclasses

import numpy as np
import pytest

from localist_jax.recruitment.signs import BlockSigns, claims, lost_bits, signs

SOUND = BlockSigns(blocks_in_use=8, doubt_bits=0.4, entropy_bits=2.0, open_bits=4.0, moved_bits=0.1)


def recruited(block, step, bits):
    return {
        "kind": "recruited",
        "step": step,
        "block": block,
        "parent": 1,
        "llr_bits": bits,
        "placebo_bits": [1.0, -2.0],
    }


def retired(block, step):
    return {"kind": "retired", "step": step, "block": block, "parent": 1, "llr_bits": -2.0}


SETTLED = [recruited(2, 10, 31.0), recruited(3, 20, 21.0), retired(3, 30), recruited(3, 40, 11.0)]
UNSETTLED = [*SETTLED, retired(2, 50), retired(3, 60)]


def test_a_sound_run_shows_none():
    assert signs(SOUND, SETTLED) == {}
    assert signs(BlockSigns(1, 0.0, 2.0, 4.0)) == {}, "with one block there is nothing to doubt"


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("ambiguous_routing", {"doubt_bits": 2.6}),
        ("ambiguous_attention", {"entropy_bits": 3.95}),
        ("unstable_assignment", {"moved_bits": 0.6}),
    ],
)
def test_each_figure_beyond_its_limit_is_named(name, change):
    (found,) = signs(dataclasses.replace(SOUND, **change), SETTLED).items()
    assert found[0] == name
    assert f"{next(iter(change.values())):.2f}" in found[1]


def test_recruitment_that_takes_back_what_it_claimed_is_named():
    assert claims(SETTLED) == (20.0, 60.0, 1)
    assert claims(UNSETTLED) == (60.0, 60.0, 3)
    assert list(signs(SOUND, UNSETTLED)) == ["unstable_recruitment"]
    assert "60.0 of the 60.0 bits" in signs(SOUND, UNSETTLED)["unstable_recruitment"]


def test_attention_to_a_single_key_is_not_ambiguous():
    assert signs(dataclasses.replace(SOUND, entropy_bits=0.0, open_bits=0.2)) == {}


def test_a_division_loses_nothing_and_a_shuffle_everything():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 4, 4000)
    assert lost_bits(before, before * 2 + rng.integers(0, 2, 4000)) == pytest.approx(0, abs=1e-9)
    assert lost_bits(before, before // 2) == pytest.approx(1, abs=0.01)
    assert lost_bits(before, rng.integers(0, 4, 4000)) == pytest.approx(2, abs=0.02)

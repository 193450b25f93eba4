"""The stress study: its streams are what they are called, and its page says what was measured."""

import json

import numpy as np
import pytest

from experiments.recruitment_stress import page, runs, streams
from localist_jax.data.fields import Fields
from localist_jax.recruitment import record

STEPS, BATCH, CONTEXT = 40, 8, 16
NAME = "recruitment_stress"


@pytest.fixture(scope="module")
def world():
    return Fields.create(0, 2)


def words_of(name, world):
    return streams.words_of(name, world, 1, STEPS, BATCH, CONTEXT).reshape(STEPS, BATCH, CONTEXT)


def test_hostile_stretches_differ_from_calm_ones_and_nothing_else_does(world):
    calm, hostile = words_of("calm", world), streams.hostile(STEPS)
    assert hostile.sum() == streams.STRETCH
    for name in ("bursts", "repeated"):
        words = words_of(name, world)
        np.testing.assert_array_equal(words[~hostile], calm[~hostile])
        assert (words[hostile] != calm[hostile]).mean() > 0.8
    assert (np.diff(words_of("repeated", world)[hostile]) == 0).all()
    noise = np.bincount(words_of("bursts", world)[hostile].ravel(), minlength=len(world.words))
    assert noise.min() > 0


def test_alternating_rows_keep_to_one_field_in_turn(world):
    words = words_of("alternating", world).reshape(-1, CONTEXT)
    own = words - world.shared
    fields = [set((row[row >= 0] // world.own).tolist()) for row in own]
    wanted = np.arange(len(words)) // streams.TURN % 2
    assert fields == [{int(x)} for x in wanted]
    np.testing.assert_array_equal(words_of("poisoned", world), words_of("calm", world))


def test_a_perturbation_touches_the_share_that_it_says():
    words = np.zeros((200, 50), int)
    noisy, changed = streams.perturbed(words, 0.2, 40, 0)
    assert changed.mean() == pytest.approx(0.2, abs=0.02)
    assert (noisy[~changed] == 0).all()


def trial(kind="rejected", bits=20.0, surprise=9.0, reason=record.REACHED_HORIZON):
    return {
        "step": 30, "kind": kind, "reason": reason, "name": "", "parent": 1, "share": 0.5, "trial": 1,
        "llr_bits": bits, "cost_bits": 3.0, "threshold_bits": 8.0, "placebo_bits": [2.0, 1.0], "tokens": 9,
        "surprise_bits": surprise, "surprise_threshold_bits": 6.0, "curve_bits": [1.0, bits],
        "best_placebo_curve_bits": [0.0, 2.0],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("record", "is_so"),
    [
        (trial("recruited"), True),
        (trial("recruited", bits=9.0), False),
        (trial("recruited", surprise=1.0), False),
        (trial(bits=9.0), True),
        (trial(), False),
        (trial(surprise=1.0, reason=record.UNPROMISING), True),
        (trial(surprise=6.0, reason=record.UNPROMISING), False),
        (trial(bits=-1.0, surprise=5.0, reason=record.UNPROMISING), True),
        (trial(bits=-1.0, surprise=5.0, reason=record.GATHERED_NOTHING), True),
        (trial(surprise=1.0, reason=record.GATHERED_NOTHING), False),
    ],
)
def test_a_decision_is_explained_if_its_figures_say_the_same(record, is_so):
    assert runs.explained(record) == is_so


def test_the_page_says_what_was_measured(tmp_path):
    result = {
        "most_blocks": 3, "blocks": 2, "capacity": 6, "pilots": 7, "trials": 4, "recruited": 1, "retired": 1,
        "poison_tried": 2, "poison_recruited": 0, "decisions": 5, "explained": 5,
        "signs": [[40, []], [80, ["ambiguous_routing"]]],
        "bits_per_token": 3.25, "stability": {str(s): {"kept": 0.9, "lost_bits": 0.125} for s in runs.SHARES},
        "records": [trial()],
    }  # fmt: skip
    path = page.page_of({"calm": [result], "bursts": [{**result, "capacity": 8}]}, [0]).write(
        tmp_path, NAME, "x"
    )
    text = path.read_text(encoding="utf-8")
    figures = json.loads(path.with_suffix(".json").read_text())["figures"]
    assert (figures["capacity_exceeded"], figures["decisions"], figures["decisions_explained"]) == (1, 10, 10)
    assert "exceeded in 1 of 2 runs" in text
    assert "tried 4 times and recruited\n  0 times" in text
    assert "| calm | 0.900 | 0.125 | 0.900 | 0.125 | ambiguous_routing |" in text
    assert (tmp_path / "recruitment_stress_trials.svg").is_file()


def test_blocks_in_use_are_counted_from_the_records():
    records = [
        {"kind": kind} for kind in ("recruited", "recruited", "retired", "quiet", "recruited", "retired")
    ]
    assert runs.most_blocks(records) == runs.BLOCKS - 1 + 2

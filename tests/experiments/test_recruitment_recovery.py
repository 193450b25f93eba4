"""Recruitment where the truth is known: the world codes as it says, and the delay is held to T11."""

import jax
import numpy as np
import pytest

from experiments.recruitment_recovery import page, runs
from experiments.recruitment_recovery.__main__ import STUDY, worlds
from experiments.told import told
from localist_jax.data.fields import Fields, lasting_shares, shares_by_phase
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer


def test_what_may_come_next_sums_to_one():
    world = Fields.create(0, 3, shared=6, own=2)
    shares = lasting_shares(3)
    for words in ([], [6, 0], [6, 1, 10, 2]):
        every = [np.array([*words, w]) for w in range(len(world.words))]
        assert sum(2.0 ** -world.code_length(w, shares)[-1] for w in every) == pytest.approx(1.0)


def test_the_sampled_text_costs_what_the_ideal_code_says():
    """A wrong world is noticed: other successors make the code length infinite, or longer."""
    world, other = Fields.create(0, 2), Fields.create(1, 2)
    shares = lasting_shares(2)
    words, fields = world.sample(0, 40, 64, shares)
    code = np.mean([world.code_length(w, shares) for w in words])
    assert 2.0 < code < 4.0
    assert np.isinf(np.mean([other.code_length(w, shares) for w in words]))
    owned = words >= world.shared
    np.testing.assert_array_equal((words[owned] - world.shared) // world.own, fields[owned])
    assert 0.45 < owned.mean() < 0.55


def test_a_new_field_fills_half_of_its_phase():
    phases = shares_by_phase(4)
    assert [shares[nth] for nth, shares in enumerate(phases)] == pytest.approx([1.0, 0.5, 0.5, 0.5])
    assert all((shares[nth + 1 :] == 0).all() for nth, shares in enumerate(phases))


def test_a_router_that_is_told_puts_every_position_into_its_field():
    settings = runs.settings_of("told", 3, 0, 2)
    _, prepared, labels = runs.stream(settings, 3)
    model, batch = (
        Transformer(settings.model, prepared.tokenizer.vocab_size),
        prepared.valid.take(np.arange(8)),
    )
    blocks = Blocks.create(4, 4, settings.model.anchor_capacity)
    read = jax.jit(model.init_with_output)
    free, _ = read(jax.random.key(0), batch.tokens, Dial(1.0), blocks)
    with told(runs.field_said(settings, 3)):
        out, _ = read(jax.random.key(0), batch.tokens, Dial(1.0), blocks)
    again, _ = read(jax.random.key(0), batch.tokens, Dial(1.0), blocks)
    np.testing.assert_array_equal(out.blocks[:, 1:], 1 + labels[:8, :-1])
    np.testing.assert_array_equal(free.blocks, again.blocks)
    assert (free.blocks != out.blocks).any()


def test_no_delay_exceeds_the_bound_of_its_own_path():
    rng = np.random.default_rng(0)
    seen = []
    for _ in range(300):
        path = np.cumsum(rng.normal(3.0, 6.0, 40))
        if (path >= 9.0).any() and path[-1] > 0:
            seen.append(page.delay_over_bound({"curve_bits": path.tolist(), "threshold_bits": 9.0}))
    assert 0 < min(seen) < max(seen) <= 1.0
    steady = page.delay_over_bound({"curve_bits": [5.0, 10.0, 15.0, 20.0], "threshold_bits": 10.0})
    assert steady == pytest.approx(2 * 5 / (10 + 5))


def test_a_world_may_be_asked_for_with_fewer_seeds():
    options = STUDY.parsed(["--fields", "8", "16:1"])
    assert worlds(options) == {8: [2, 3], 16: [2]}
    assert options.command == "python -m experiments.recruitment_recovery --fields 8 16:1"
    names = [case.name for case in STUDY.cases(options)]
    assert len(set(names)) == len(names) == 4 * 3 + 2

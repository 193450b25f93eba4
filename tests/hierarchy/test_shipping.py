"""Ensembles on disk, specialists that travel, and answers: who answered, with what weight, by which evidence."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from localist_jax.__main__ import main
from localist_jax.data import Tokenizer
from localist_jax.hierarchy.answer import answer, route
from localist_jax.hierarchy.coding import mixed
from localist_jax.hierarchy.command import member_for
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.locality import Dial
from localist_jax.model.generate import read_tokens
from localist_jax.training.run import Run
from tests.hierarchy.conftest import T, batch_of, same

TEXT = "the liver and the heart; the dose of the drug"


@pytest.fixture(scope="module")
def house(house_settings, tmp_path_factory):
    """An ensemble of two, with a tokenizer of its own."""
    from localist_jax.parallel.mesh import make_mesh
    from localist_jax.training.run import fresh_state

    tokenizer = Tokenizer.train([TEXT] * 3, 260)
    folder = tmp_path_factory.mktemp("house")
    made = EnsembleRun.of(folder, None, house_settings, tokenizer)  # type: ignore[arg-type]
    mesh = make_mesh(house_settings.mesh)
    one, other = (
        fresh_state(made.engine.model, house_settings.replace(train={"seed": seed}), mesh) for seed in (0, 1)
    )
    ensemble = Ensemble.create(one, 2, tokenizer.vocab_size)
    signature, plain = (
        np.bincount(tokenizer.encode(text * 9), minlength=tokenizer.vocab_size).astype(float)
        for text in ("heart ", "the liver, the dose; ")
    )
    ensemble = ensemble.served(0, plain)
    record = dataclasses.replace(ensemble.record(0), name="heart", parent="base", born=7, cost_bits=9.5)
    made.ensemble, _ = ensemble.joined(other, record, Dial(0.9), signature)
    made.save(step=7, command="pytest")
    return made


def test_an_ensemble_comes_back_as_it_was(house):
    found = EnsembleRun.open(house.workdir)
    assert found.ensemble.records == house.ensemble.records
    assert same(found.ensemble.states, house.ensemble.states)
    np.testing.assert_array_equal(found.ensemble.signatures, house.ensemble.signatures)
    np.testing.assert_allclose(found.ensemble.beta, house.ensemble.beta)
    with pytest.raises(ValueError, match="no ensemble here"):
        EnsembleRun.open(house.workdir / "checkpoints")


def test_a_specialist_is_shipped_and_taken_in_bit_identically(house, tmp_path):
    folder = house.ship("heart", tmp_path / "heart")
    assert same(Run.open(folder).state, house.ensemble.state(1))
    other = EnsembleRun.open(house.workdir)
    at = other.take_in(folder, name="heart again")
    assert (at, other.ensemble.capacity) == (2, 4)
    assert same(other.ensemble.state(at), house.ensemble.state(1))
    assert other.ensemble.record(at).cost_bits == 9.5
    np.testing.assert_allclose(other.ensemble.dial(at).locality, house.ensemble.dial(1).locality, rtol=1e-6)
    np.testing.assert_array_equal(other.ensemble.signatures[at], house.ensemble.signatures[1])
    for place in (0, 1):
        assert same(other.ensemble.state(place), house.ensemble.state(place))


def test_what_cannot_be_taken_in_is_refused(house, tmp_path):
    with pytest.raises(ValueError, match="no member 'liver'; there are base, heart"):
        house.ship("liver", tmp_path / "liver")
    with pytest.raises(ValueError, match="no shipped specialist here"):
        house.take_in(tmp_path)
    stranger = EnsembleRun.of(
        tmp_path, house.ensemble, house.settings, Tokenizer.train(["other words " * 9], 261)
    )
    with pytest.raises(ValueError, match="its tokenizer is not that of the ensemble"):
        stranger.take_in(house.ship("heart", tmp_path / "heart"))


def test_requests_are_grouped_and_every_answer_says_from_whom(house):
    e, engine, tokenizer = house.ensemble, house.engine, house.tokenizer
    prompts = ["the liver", "heart heart", "the dose", "heart"]
    options = {"batch": 4, "max_new": 2, "temperature": 0.0, "stats": "none"}
    found = answer(e, engine, tokenizer, prompts, shortlist=1, **options)
    assert [a.name for a in found] == ["base", "heart", "base", "heart"]
    compiled = engine.compile_count, read_tokens._cache_size()
    alone = [answer(e, engine, tokenizer, [p], shortlist=1, **options)[0] for p in prompts]
    assert [a.generation.tokens for a in alone] == [a.generation.tokens for a in found]
    more, _ = e.copied(1, dataclasses.replace(e.record(1), name="third"))
    answer(more, engine, tokenizer, prompts, **options)
    assert (engine.compile_count, read_tokens._cache_size()) == compiled
    with pytest.raises(ValueError, match="no prompts"):
        answer(e, engine, tokenizer, [])


def test_a_mixture_writes_what_its_members_code_together(house):
    """Bits of what was written are those of Bayes' mixture over the whole text, less those of the prompt."""
    e, engine, tokenizer = house.ensemble, house.engine, house.tokenizer
    prompts = ["heart", "the liver and", "the dose"]
    answers = answer(
        e, engine, tokenizer, prompts, mix=True, batch=4, max_new=4, temperature=1.0, top_p=1.0, stats="none"
    )
    for prompt, one in zip(prompts, answers, strict=True):
        before = tokenizer.encode(prompt).tolist()
        batch = rows([before + one.generation.tokens], T, tokenizer.BOS, 4)
        losses = np.stack([np.asarray(engine.losses(e.state(at), batch, e.dial(at))) for at in (0, 1)], -1)
        length, after = mixed(losses, (0, 1))
        np.testing.assert_allclose(
            one.generation.bits, length[0, len(before) : len(before) + 4], rtol=1e-3, atol=1e-3
        )
        by_place = dict(zip(one.route.listed, one.weights, strict=True))
        after_all_but_one = np.exp(
            after[0, len(before) + 2]
        )  # the last token is written, and not read any more
        np.testing.assert_allclose([by_place[0], by_place[1]], after_all_but_one, rtol=1e-2, atol=1e-3)
        assert by_place != dict(zip(one.route.listed, one.route.weights, strict=True)), (
            "what was written counts"
        )


def test_a_route_shows_its_evidence(pair, engine):
    batch = batch_of("first", "second", "first")
    routes = route(pair, engine, batch, shortlist=2)
    assert len(routes) == 3
    for row, one in enumerate(routes):
        expected = [
            float(np.asarray(engine.losses(pair.state(at), batch, pair.dial(at)))[row].sum())
            for at in one.listed
        ]
        np.testing.assert_allclose(one.bits, expected, rtol=1e-5)
        assert one.member == one.listed[int(np.argmin(one.bits))]
        np.testing.assert_allclose(sum(one.weights), 1, rtol=1e-5)
        gap = one.bits[1] - one.bits[0]
        np.testing.assert_allclose(np.log2(one.weights[0] / one.weights[1]), gap, atol=1e-2)
        assert -1e-3 <= one.coordination_bits <= one.bound_bits + 1e-3
    assert batch.tokens.shape[1] == T
    with pytest.raises(ValueError, match="at least 1 member, got 0"):
        route(pair, engine, batch, shortlist=0)


def test_commands_work_on_an_ensemble(house, capsys):
    run, found = member_for(house, "heart heart")
    assert same(run.state, house.ensemble.state(found.member))
    _, err = capsys.readouterr()
    assert re.search(r"\[→ (base|heart): [0-9.]+ bits, weight 0\.[5-9]", err)
    assert re.search(r"coordination \S+ bits of at most 1\.00", err)
    main(["report", str(house.workdir)])
    out, err = capsys.readouterr()
    assert Path(out.strip()) == house.workdir / "ensemble.html"
    assert err.splitlines()[0].startswith("base: ")
    assert err.splitlines()[1].startswith("  heart: 45 tokens, 3 blocks, λ=0.9")
    page = (house.workdir / "ensemble.html").read_text(encoding="utf-8")
    assert "recruited at batch 7 from base" in page
    assert page.count("<li>block") == 6

"""Recruiting whole LLMs: a new domain gets one, a random division gets none, and nobody else is touched."""

import dataclasses

import numpy as np
import pytest

from localist_jax.hierarchy import signature
from localist_jax.hierarchy.account import Account, accepts
from localist_jax.hierarchy.coding import code, mixed
from localist_jax.hierarchy.engine import Queue
from localist_jax.hierarchy.ensemble import Record
from localist_jax.hierarchy.recruiter import FILE, MemberRecruiter
from localist_jax.hierarchy.signature import Division
from localist_jax.hierarchy.trial import MemberTrial
from localist_jax.recruitment.proposals import Concept
from localist_jax.training.journal import Records, read
from tests.hierarchy.conftest import DOMAINS, VOCABULARY, batch_of, same


def streamed(bags, folder, sessions, session=2, ensemble=None, start=8):
    """A stream of batches of one domain each, in sessions."""
    engine, single = bags
    settings = dataclasses.replace(engine.settings.hierarchy, start=start)
    recruiter = MemberRecruiter(ensemble or single, engine, settings, folder)
    coded = [
        recruiter.observe(batch_of(*[domain] * 4, seed=100 * i + 10 * j))
        for i, domain in enumerate(sessions)
        for j in range(session)
    ]
    recruiter.close()
    return recruiter, coded


@pytest.fixture(scope="module")
def found(bags, tmp_path_factory):
    """A stream in which a second domain comes up, returns, and the first one too."""
    folder = tmp_path_factory.mktemp("stream")
    recruiter, coded = streamed(bags, folder, ["first"] * 8 + ["second", "first"] * 16)
    return recruiter, coded, read(folder / FILE)


def owners(recruiter):
    """The members to which two batches, one of each domain, are given."""
    coded = [
        code(recruiter.ensemble, recruiter.engine, batch_of(*[d] * 4, seed=7))[0] for d in ("first", "second")
    ]
    return [set(c.member.tolist()) for c in coded]


def test_a_new_domain_gets_an_llm_of_its_own(found):
    recruiter, _, records = found
    born = [r for r in records if r["kind"] == "recruited"]
    assert [r["name"] for r in born] == list(recruiter.ensemble.names[1:])
    assert len(born) == 1
    assert owners(recruiter) in ([{0}, {1}], [{1}, {0}])
    assert born[0]["llr_bits"] > max(*born[0]["placebo_bits"], born[0]["threshold_bits"])
    assert born[0]["surprise_bits"] >= born[0]["surprise_threshold_bits"]


def test_a_domain_that_returns_finds_its_llm(found):
    recruiter, _, _ = found
    engine = recruiter.engine
    before = owners(recruiter)
    for seed in range(30):  # long absent, and not forgotten: nobody else's documents train it
        batch = batch_of(*["first"] * 4, seed=seed)
        assert set(code(recruiter.ensemble, engine, batch)[0].member.tolist()) == before[0]
    assert owners(recruiter) == before


def test_a_domain_that_comes_alone_is_decided_when_the_others_return(bags, tmp_path):
    """Until then incumbent and candidate learn the same, and nothing can be said."""
    recruiter, _ = streamed(bags, tmp_path, ["first"] * 8 + ["second"] * 12, start=18)
    assert recruiter.ensemble.names == ("base",)
    assert recruiter.trial is not None
    assert recruiter.trial.sides[1] > 2 * recruiter.settings.horizon > recruiter.trial.clock
    (tmp_path / "back").mkdir()
    sessions = ["first"] * 8 + ["second"] * 12 + ["first"] * 10
    recruiter, _ = streamed(bags, tmp_path / "back", sessions, start=18)
    assert len(recruiter.ensemble.names) == 2
    assert owners(recruiter) == [{0}, {1}]


def test_no_move_raises_j_and_all_bits_are_accounted_for(found):
    recruiter, coded, records = found
    born = [r for r in records if r["kind"] == "recruited"]
    for record in born:
        assert record["j_after_bits"] < record["j_before_bits"]
    total = sum(c.bits.sum() for c in coded) - sum(r["llr_bits"] - r["cost_bits"] for r in born)
    assert recruiter.account.total_bits == pytest.approx(total, rel=1e-4)


def test_coordination_stays_within_the_bound(found):
    _, coded, _ = found
    for one in coded:
        assert (one.bits <= one.best_bits + one.bound_bits + 1e-3).all()
    assert max(one.bound_bits.max() for one in coded) == 1.0


@pytest.mark.parametrize("seed", range(3))
def test_one_domain_divided_at_random_gets_nothing(bags, tmp_path, seed):
    engine, ensemble = bags
    recruiter = MemberRecruiter(ensemble, engine, engine.settings.hierarchy, tmp_path, seed)
    for i in range(80):
        recruiter.observe(batch_of(*["first"] * 4, seed=1000 * seed + 4 * i))
    recruiter.close()
    kinds = [r["kind"] for r in read(tmp_path / FILE)]
    assert recruiter.ensemble.names == ("base",)
    assert "opened" in kinds, "nothing was tried, so nothing was shown"


def test_recruiting_leaves_everyone_but_parent_and_newcomer_bit_identical(bags, tmp_path):
    engine, single = bags
    bystander = single.state(0)
    for seed in range(60):
        bystander = engine.train(bystander, batch_of(*["third"] * 4, seed=seed))
    ensemble, at = single.joined(bystander, Record("third", "base"), single.dial(0), np.zeros(VOCABULARY))
    recruiter, _ = streamed(bags, tmp_path, ["first"] * 8 + ["second", "first"] * 16, ensemble=ensemble)
    assert len(recruiter.ensemble.names) == 3
    assert same(recruiter.ensemble.state(at), bystander)


def test_a_recruit_that_costs_more_than_it_ever_saved_is_retired(bags, tmp_path):
    """Here one that was recruited a moment ago, and whose domain never comes again."""
    sessions = ["first"] * 8 + ["second", "first"] * 16
    recruiter, _ = streamed(bags, tmp_path, sessions)
    (at,) = recruiter._worth
    assert recruiter._worth[at] > 1000, "it is worth its keep while its domain comes"
    before = recruiter.account.total_bits
    recruiter._worth[at] = 0.0
    recruiter._records = Records(tmp_path / "later.jsonl")
    for seed in range(10):
        before += recruiter.observe(batch_of(*["first"] * 4, seed=seed)).bits.sum()
    recruiter.close()
    (record,) = [r for r in read(tmp_path / "later.jsonl") if r["kind"] == "retired"]
    assert recruiter.ensemble.names == ("base",)
    assert record["saved_bits"] >= np.log2(20)
    assert recruiter.account.total_bits < before - np.log2(20)


def test_a_member_that_gets_nothing_or_is_frozen_stays_bit_identical(engine, pair, tmp_path):
    ensemble = pair.with_record(1, frozen=True)
    recruiter = MemberRecruiter(ensemble, engine, engine.settings.hierarchy, tmp_path)
    given = set()
    for seed in range(3):
        given |= set(recruiter.observe(batch_of(*["first", "second"] * 2, seed=seed)).member.tolist())
    recruiter.close()
    assert same(recruiter.ensemble.state(1), pair.state(1))
    assert same(recruiter.ensemble.state(0), pair.state(0)) == (0 not in given)


def test_moves_that_raise_j_are_refused():
    account = Account()
    account.coded(100.0)
    assert account.move(30.0, 10.0) == {"j_before_bits": 100.0, "j_after_bits": 80.0}
    assert (account.coded_bits, account.description_bits) == (70.0, 10.0)
    with pytest.raises(ValueError, match="would raise J"):
        account.move(5.0, 10.0)
    assert accepts(np.array([3.0, 3.0]), np.array([2.0, 2.5]), 1.0).tolist() == [True, False]


def test_a_concept_outside_every_domain_proposes_a_specialist_that_its_anchors_pin(bags, tmp_path):
    """Not one inside a domain, nor one that never occurs, nor (here) one whose documents cost as much as others."""
    engine, ensemble = bags
    outside = Concept("outside", {token: 2.0 for token in range(22, 27)})
    concepts = [
        Concept("absent", {200: 2.0}),
        Concept("inside", {token: 2.0 for token in range(2, 6)}),
        outside,
    ]
    recruiter = MemberRecruiter(ensemble, engine, engine.settings.hierarchy, tmp_path, concepts=concepts)
    for i in range(90):
        recruiter.observe(batch_of("first", "first", "first", "second", seed=4 * i))
    recruiter.close()
    records = read(tmp_path / FILE)
    opened = [r["concept"] for r in records if r["kind"] == "opened"]
    assert opened[0] == "outside"
    assert set(opened) <= {"outside", ""}
    (born,) = [r for r in records if r["kind"] == "recruited"]
    assert born["llr_bits"] > max(*born["placebo_bits"], born["threshold_bits"])
    at = recruiter.ensemble.place(born["name"])
    assert recruiter.ensemble.record(at).concept == "outside"
    assert recruiter.ensemble.signatures[at, 22:42].sum() > 0.9 * recruiter.ensemble.signatures[at].sum()
    assert owners(recruiter) == [{0}, {at}]


def test_the_documents_of_a_concept_are_those_with_its_anchors():
    concept = Concept("it", {3: 1.0, 5: 0.5})
    documents = np.zeros((40, VOCABULARY))
    documents[:, 7] = 10
    documents[:10, 3], documents[10:20, 5] = 1, 2
    costly = 10.0 * (1 + (np.arange(40) < 20))
    division = signature.of_concept(documents, costly, concept, smallest=5)
    assert division.takes(documents).tolist() == [True] * 20 + [False] * 20
    assert division.name == "it"
    assert signature.of_concept(documents, 30 - costly, concept, smallest=5) is None  # inside the domain
    assert signature.of_concept(documents, costly, concept, smallest=21) is None
    assert signature.of_concept(documents, costly, Concept("absent", {9: 1.0}), smallest=1) is None


def test_divisions_find_a_domain_and_shortlists_its_member():
    rng = np.random.default_rng(0)
    rare, common = rng.poisson(2, (20, VOCABULARY)), rng.poisson(2, (60, VOCABULARY))
    rare[:, :30], common[:, 30:] = 0, 0
    documents = np.concatenate([rare, common]).astype(float)
    code_bits = documents.sum(1) * np.where(np.arange(80) < 20, 6.0, 2.0)
    hard, topic = signature.divide(documents, code_bits, rng, smallest=5)
    for division in (hard, topic):
        assert division.takes(documents).tolist() == [True] * 20 + [False] * 60
        assert division.excess_bits == pytest.approx(4 * rare.sum())
        assert division.explained > 0.99
    signatures = np.stack([common.sum(0), np.zeros(VOCABULARY), rare.sum(0)])
    listed = signature.shortlist(documents, signatures, [0, 2], 1)[:, 0]
    assert listed.tolist() == [2] * 20 + [0] * 60
    assert not signature.divide(documents[:8], code_bits[:8], rng, smallest=5)


def test_a_newcomer_does_not_learn_from_documents_that_another_member_codes_better(bags, tmp_path):
    """However the division would have them: they would stay that member's if the newcomer were recruited."""
    engine, single = bags
    known = [single.state(0)] * 2
    for seed in range(60):
        known = [
            engine.train(x, batch_of(*[d] * 4, seed=seed))
            for x, d in zip(known, ("first", "third"), strict=True)
        ]
    ensemble, _ = single.with_state(0, known[0]).joined(
        known[1], Record("third", "base"), single.dial(0), np.zeros(VOCABULARY)
    )
    everything = Division("hard", np.zeros(VOCABULARY), 1.0, 0.5, excess_bits=1.0, explained=0.0, ways=1)
    trial = MemberTrial(
        engine, 0, ensemble.state(0), ensemble.dial(0), Queue(), everything, placebos=2, horizon=8, cost_bits=5.0,
        opened=0, number=1, rng=np.random.default_rng(0),
    )  # fmt: skip
    batch = batch_of("first", "third", "second", "third")
    coded, losses = code(ensemble, engine, batch)
    documents = signature.counts(batch, VOCABULARY)
    trial.observe(
        batch, documents, losses, ensemble.active, float(coded.bits.sum()), lambda x, m: mixed(x, m)[0],
        coded.member == 0,
    )  # fmt: skip
    assert trial.sides == [0, 2], "first and second: the words of second are news to everybody"
    assert trial.signature[slice(*DOMAINS["third"])].sum() == 0

"""A corpus as a stream: what a run of an ensemble leaves behind, and that it goes on where it was stopped."""

import functools
import json
import re

import numpy as np
import pytest

from localist_jax.data import corpora
from localist_jax.hierarchy import job, shipping
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.recruiter import FILE
from localist_jax.parallel.preemption import Preemption
from localist_jax.report.job import run_job
from localist_jax.training.journal import read
from localist_jax.training.loop import Preempted, train
from tests.hierarchy.conftest import same

WORDS = {
    "ward": "the nurse gave a dose of the drug to the patient on the ward",
    "court": "no person shall hold an office under this act unless sworn",
}
DOCUMENTS, LENGTH = 60, 30  # words
EVERY = {"every": 2, "start": 4, "survey": 4, "smallest": 3, "horizon": 400, "placebos": 2, "capacity": 2}


@pytest.fixture(scope="module", autouse=True)
def _one_engine():
    """The same engine wherever the settings are the same: it compiles once."""

    @functools.cache
    def made(model, settings, lengths):
        return EnsembleEngine(model, settings, np.frombuffer(lengths, np.int64))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            shipping,
            "EnsembleEngine",
            lambda m, s, lengths: made(m, s, np.asarray(lengths, np.int64).tobytes()),
        )
        yield


@pytest.fixture(scope="module")
def settings(house_settings, tmp_path_factory):
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("corpus") / "notes.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for i in range(DOCUMENTS):
            words = WORDS["court" if i % 3 == 2 and i > 20 else "ward"].split()
            lines.write(json.dumps({"text": " ".join(rng.choice(words, LENGTH))}) + "\n")
    return house_settings.replace(
        data={"corpus": str(file), "vocab_size": 300, "valid_fraction": 0.1},
        hierarchy=EVERY | {"batches": 20},
        train={"steps": 20, "log_every": 5, "save_every": 10},
    )


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """A run without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, job.run(settings, folder, command="test")


def test_every_document_is_coded_once_and_the_record_says_at_what_cost(whole, settings):
    folder, house = whole
    written = [r for r in read(folder / "metrics.jsonl") if r["kind"] == "stream"]
    assert [r["step"] for r in written] == [5, 10, 15, 20]
    assert all(0 < r["bits_per_token"] < 10 and r["members"] == 1 for r in written)
    assert written[-1]["bits_per_token"] < written[0]["bits_per_token"], "it learns"
    documents = job._pieces(corpora.load(settings.data).train, house)[: 20 * settings.data.batch]
    assert house.ensemble.signatures.sum() == sum(map(len, documents))
    assert (folder / FILE).is_file()
    assert shipping.EnsembleRun.open(folder).ensemble.record(0).name == "base"


def test_a_stopped_run_goes_on_as_if_it_had_not_been(whole, settings, tmp_path, monkeypatch):
    _, house = whole
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "due", lambda self, step: step == 7)
        with pytest.raises(Preempted, match="after batch 7, which is saved"):
            job.run(settings, tmp_path)
    again = job.run(settings, tmp_path)
    assert same(again.ensemble.states, house.ensemble.states)
    steps = [r["step"] for r in read(tmp_path / "metrics.jsonl") if r["kind"] == "stream"]
    assert steps == [5, 7, 10, 15, 20]


def test_pieces_of_a_document_stay_together_however_documents_are_mixed(settings, whole):
    _, house = whole
    texts = ["a b " * 40, "c d " * 40, "e f " * 40]
    for shuffle in (False, True):
        mixed = shipping.EnsembleRun(
            house.workdir,
            house.ensemble,
            settings.replace(data={"shuffle": shuffle}),
            house.tokenizer,
            house.engine,
        )
        rows = [house.tokenizer.decode(ids).replace(" ", "")[:1] for ids in job._pieces(texts, mixed)]
        runs = re.sub(r"(.)\1*", r"\1", "".join(rows))
        assert sorted(runs) == ["a", "c", "e"], "each document is one run"
        assert shuffle or runs == "ace"


def test_a_corpus_of_less_than_a_batch_is_refused(settings, tmp_path):
    (tmp_path / "short.txt").write_text("the nurse gave a dose.\n" * 3, encoding="utf-8")
    with pytest.raises(ValueError, match=r"fewer than a batch of 4"):
        job.run(settings.replace(data={"corpus": str(tmp_path / "short.txt")}), tmp_path / "run")


def test_another_shape_is_refused_and_nothing_is_lost(whole, settings):
    folder, house = whole
    with pytest.raises(ValueError, match=r"another config\.model \(feed_forward\)"):
        job.run(settings.replace(model={"feed_forward": 48}), folder)
    assert same(shipping.EnsembleRun.open(folder).ensemble.states, house.ensemble.states)


def test_it_begins_with_the_llm_of_a_run(settings, house_settings, tmp_path):
    """A base brings model, tokenizer and parameters; its optimizer begins anew."""
    longer = settings.replace(
        model={"feed_forward": 40}, hierarchy={"every": 0}, train={"steps": 3, "eval_every": 0}
    )
    base = train(longer, tmp_path / "base")
    begun = settings.replace(hierarchy={"base": str(tmp_path / "base")}, train={"steps": 2, "save_every": 2})
    house = job._begun(begun, tmp_path / "ensemble", corpora.load(settings.data), None)
    first = house.ensemble.state(0)
    assert same(first.params, base.state.params)
    assert int(first.step) == 3
    assert house.settings.model.feed_forward == 40
    assert house.tokenizer.fingerprint == base.tokenizer.fingerprint


def test_the_job_ends_with_a_page_and_says_so_if_the_corpus_is_short(whole, settings, capsys):
    folder, _ = whole
    page = run_job(settings.replace(hierarchy={"batches": 500}), folder)
    assert page == folder / "ensemble.html"
    told = capsys.readouterr().err
    assert re.search(r"the corpus ends after \d+ of 500 batches", told)
    assert "held out: bits per token" in told
    found = [r for r in read(folder / "metrics.jsonl") if r["kind"] == "held_out"]
    assert found[0]["bits_per_token"] == pytest.approx(found[0]["first_member_bits_per_token"], rel=1e-5)

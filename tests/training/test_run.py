"""A run keeps its tokenizer, even if the corpus, the folder or the settings change."""

import dataclasses
import shutil

import pytest
from command_line import command

from localist_jax.adopt import localise
from localist_jax.data import Tokenizer
from localist_jax.data.pipeline import prepare
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.report import collect
from localist_jax.training import journal
from localist_jax.training.checkpoint import CheckpointError
from localist_jax.training.loop import train
from localist_jax.training.run import Run

TOLD = "has changed since this run was trained on it; it is used as new data, with the run's own tokenizer"


@pytest.fixture(scope="module")
def settings(tiny_settings, tmp_path_factory):
    """Return the settings of a run on a folder of prose."""
    corpus = tmp_path_factory.mktemp("texts") / "one"
    corpus.mkdir()
    for i in range(6):
        (corpus / f"{i}.txt").write_text(f"the cat sat on mat {i} and looked at the dog\n" * 40)
    return tiny_settings.replace(
        data={"corpus": str(corpus), "vocab_size": 320}, train={"steps": 4, "eval_every": 0, "save_every": 2}
    )


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """Return that run, and the code length that the loop measured at λ=0."""
    workdir = tmp_path_factory.mktemp("runs") / "run"
    run = train(settings, workdir)
    return workdir, run.watch((0.0,))["bits_per_token@0"]


@pytest.fixture
def other(settings, trained, tmp_path):
    """Return a copy of the run, whose corpus has grown since."""
    corpus = tmp_path / "one"
    shutil.copytree(settings.data.corpus, corpus)
    workdir = tmp_path / "run"
    train(settings.replace(data={"corpus": str(corpus)}), workdir)
    for i in range(6):
        (corpus / f"new{i}.txt").write_text(f"quite other words zip wholly past {i} vowels\n" * 60)
    return workdir, settings.replace(data={"corpus": str(corpus)})


def test_an_opened_run_measures_what_the_loop_measured(trained, capsys):
    workdir, measured = trained
    (row,) = collect.sweep(Run.open(workdir), [0.0])["settings"]
    assert row["bits_per_token"] == pytest.approx(measured, rel=1e-5)
    assert TOLD not in capsys.readouterr().err


def test_text_that_changed_is_new_data_in_the_old_tokens_and_that_is_said(other, capsys):
    workdir, settings = other
    before = (workdir / "tokenizer.json").read_bytes()
    run = Run.open(workdir)
    assert run.data.tokenizer.fingerprint == run.tokenizer.fingerprint
    assert capsys.readouterr().err.count(TOLD) == 1
    last = journal.read(workdir / "metrics.jsonl")[-1]["bits_per_token"]
    longer = train(settings.replace(train={"steps": 6}), workdir)
    err = capsys.readouterr().err
    assert err.count(TOLD) == 1
    assert longer.tokenizer.fingerprint == run.tokenizer.fingerprint
    assert (workdir / "tokenizer.json").read_bytes() == before
    # With a new tokenizer it was + 3.8.
    assert journal.read(workdir / "metrics.jsonl")[-1]["bits_per_token"] < last + 1.0
    train(settings.replace(train={"steps": 7}), workdir)
    assert TOLD not in capsys.readouterr().err, "by now it is the text that the run was trained on"


def test_eval_and_report_use_it_too(other):
    workdir, _ = other
    kept = Run.open(workdir).tokenizer.fingerprint
    status, _, err = command("eval", workdir, "--dials", "0")
    assert (status, err.count(TOLD)) == (0, 1)
    status, _, err = command("report", workdir)
    assert (status, err.count(TOLD)) == (0, 1), err
    assert Run.open(workdir).tokenizer.fingerprint == kept


def test_a_localised_run_reads_in_the_tokens_of_the_run_it_was_made_of(other, tmp_path):
    workdir, _ = other
    run = Run.open(workdir)
    two = tmp_path / "two"
    two.mkdir()
    (two / "a.txt").write_text("altogether different sentences about rivers\n" * 200)
    wanted = localise.settings_of(run, corpus=str(two), blocks=4, open_share=0.9)
    wanted = wanted.replace(model={"window": 2, "perception_window": 3, "sink": 1})
    made = localise.localise(run, wanted, tmp_path / "localised", tokens=200)
    measured = made.watch((0.0,))["bits_per_token@0"]
    (row,) = collect.sweep(Run.open(tmp_path / "localised"), [0.0])["settings"]
    assert row["bits_per_token"] == pytest.approx(measured, rel=1e-5)
    assert Run.open(tmp_path / "localised").tokenizer.fingerprint == run.tokenizer.fingerprint


def test_another_tokenizer_in_the_folder_is_refused(trained, settings, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    Tokenizer.train(["other words altogether " * 30], 300).save(workdir / "tokenizer.json")
    for use in (Run.open, lambda folder: train(settings.replace(train={"steps": 6}), folder)):
        with pytest.raises(
            CheckpointError, match=r"tokenizer\.json: expected the tokenizer .* copy"
        ) as error:
            use(workdir)
        assert "\n" not in str(error.value)


def test_settings_that_ask_for_another_are_refused(trained, settings, tmp_path):
    workdir = shutil.copytree(trained[0], tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"config\.data\.vocab_size: the run in .* has 320, got 400"):
        train(settings.replace(data={"vocab_size": 400}), workdir)
    own = Tokenizer.load(workdir / "tokenizer.json")
    odd = Tokenizer.train(["other words altogether " * 30], 300)
    odd.save(tmp_path / "odd.json")
    with pytest.raises(ValueError, match=r"config\.data\.tokenizer: .*odd\.json is not the tokenizer"):
        train(settings.replace(data={"tokenizer": str(tmp_path / "odd.json")}), workdir)
    with pytest.raises(ValueError, match="the data: expected the tokenizer that the run was made with"):
        train(settings, workdir, prepared=prepare(settings.data, tmp_path / "cache", odd))
    spaced = own.to_json().replace(",", ", ", 1)  # the same tokenizer, formatted differently
    (tmp_path / "same.json").write_text(spaced, encoding="utf-8")
    again = train(settings.replace(data={"tokenizer": str(tmp_path / "same.json")}), workdir)
    assert again.tokenizer.fingerprint == own.fingerprint


def test_a_run_cannot_hold_data_in_the_tokens_of_another(trained, settings, tmp_path):
    run = Run.open(trained[0])
    other = Tokenizer.train(["other words altogether " * 30], 300)
    with pytest.raises(CheckpointError, match="the data: expected the tokenizer"):
        dataclasses.replace(run, prepared=prepare(settings.data, tmp_path / "cache", other))


def test_an_ensemble_owns_its_tokenizer(settings, tmp_path):
    tokenizer = Tokenizer.train(["the cat sat on the mat " * 30], 300)
    house = EnsembleRun.begin(tmp_path / "house", settings, tokenizer)
    house.save(1)
    assert EnsembleRun.open(tmp_path / "house").tokenizer.fingerprint == tokenizer.fingerprint
    Tokenizer.train(["other words altogether " * 30], 300).save(tmp_path / "house" / "tokenizer.json")
    with pytest.raises(CheckpointError, match="expected the tokenizer that the run was made with"):
        EnsembleRun.open(tmp_path / "house")

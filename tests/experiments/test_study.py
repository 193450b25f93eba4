"""The contract of a study: a case is measured once for what it depends on, and the page is made of what is there."""

import json

import pytest
import smallest_study

from experiments.cases import Case, Store, fingerprint
from experiments.study import Page, Study
from localist_jax.data import CorpusError


def measure(bench, case):
    """Count the calls, and fail where the settings say so."""
    bench["measured"].append(case.name)
    if error := bench.get(case.name):
        raise error
    return {"x": case.settings["x"]}


@pytest.fixture
def bench():
    return {"measured": []}


@pytest.fixture
def study(tmp_path, bench):
    """A function that runs a study of three cases, the second one after the first."""

    def run(*words, version="1", x=1, data="d", partial=False):
        first = Case("first", {"x": x}, measure)
        cases = [first, Case("second", {"x": 2}, measure, after=(first,)), Case("third/0", {"x": 3}, measure)]
        made = Study(
            "made_up", "A study.", lambda options: cases,
            lambda options, results: Page("T", "B", [], {name: row["x"] for name, row in results.items()}),
            version=version, bench=lambda options: bench, data=lambda bench, case: data, partial=partial,
        )  # fmt: skip
        made.main(["--workdir", str(tmp_path), "--out", str(tmp_path / "out"), *words])
        return json.loads((tmp_path / "out" / "made_up.json").read_text())["figures"]

    return run


def test_a_case_is_measured_once(study, bench, capsys):
    assert study() == study() == {"first": 1, "second": 2, "third/0": 3}
    assert bench["measured"] == ["first", "second", "third/0"]
    assert "made_up: 3/3  third/0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ({"x": 5}, ["first", "second"]),  # the second one depends on the first
        ({"version": "2"}, ["first", "second", "third/0"]),
        ({"data": "e"}, ["first", "second", "third/0"]),
    ],
)
def test_other_settings_code_or_data_are_measured_again(study, bench, changed, again):
    study()
    bench["measured"].clear()
    study(**changed)
    assert bench["measured"] == again


def test_a_study_that_was_killed_goes_on_where_it_stopped(study, bench):
    bench["second"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        study()
    del bench["second"]
    study()
    assert bench["measured"] == ["first", "second", "second", "third/0"]


def test_a_failure_is_said_at_once_and_the_others_finish(study, bench, capsys):
    bench["first"] = ZeroDivisionError("by nothing")
    with pytest.raises(ZeroDivisionError):
        study()
    assert bench["measured"] == ["first", "third/0"]
    said = capsys.readouterr().err
    assert said.index("first failed: ZeroDivisionError: by nothing") < said.index("third/0")
    assert "second is left out: it needs first" in said


def test_a_case_without_its_corpus_is_left_out(study, bench, capsys):
    bench["third/0"] = CorpusError("put it there")
    assert study(partial=True) == {"first": 1, "second": 2}
    assert "third/0 is left out: put it there" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--page"], ["--page", "--cases", "third/*"], ["--cases", "none*"]])
def test_a_page_without_results_and_a_pattern_without_cases_are_told_in_one_line(study, capsys, words):
    with pytest.raises(SystemExit):
        study(*words)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        "they begin with first, second, third" if "none*" in words else "leave out --page to run them"
    )


def test_cases_are_chosen_with_what_they_need(study, bench, capsys):
    with pytest.raises(SystemExit):
        study("--cases", "second")
    assert bench["measured"] == ["first", "second"]
    assert "no page yet: 1 of 3 cases, such as third/0, were not run" in capsys.readouterr().err
    assert study("--page", partial=True) == {"first": 1, "second": 2}


def test_the_time_may_be_limited(study, bench, capsys, monkeypatch):
    monkeypatch.setattr("experiments.workers.time.monotonic", iter(range(0, 1000, 20)).__next__)
    study("--minutes", "1", partial=True)
    assert bench["measured"] == ["first"]
    assert "1 minutes are over, 2 cases are left" in capsys.readouterr().err


def test_a_case_has_a_folder_for_each_of_its_keys(tmp_path):
    one, other = (Case("a/b", {"x": x}, measure) for x in (1, 2))
    store = Store(tmp_path)
    assert store.own(one).parent == store.own(other).parent == tmp_path / "runs" / "a" / "b"
    assert store.own(one) != store.own(other)


def test_a_fingerprint_knows_names_and_contents(tmp_path):
    def at(name, text):
        (tmp_path / name).write_text(text)
        return fingerprint([tmp_path / name])

    assert at("a", "x") == at("a", "x")
    assert len({at("a", "x"), at("b", "x"), at("a", "y")}) == 3


def test_the_command_on_record_measures_the_same(tmp_path):
    words = [
        "--draws",
        "10",
        "20",
        "--seeds",
        "3",
        "--quick",
        "--page",
        "--workers=2",
        f"--workdir={tmp_path}",
    ]
    options = smallest_study.STUDY.parsed(words)
    assert options.command == "python -m experiments.smallest_study --quick --draws 10 20 --seeds 3"
    assert options.out == tmp_path
    assert smallest_study.STUDY.parsed(["--quick"]).draws == [10]


def test_the_smallest_study_runs_in_workers(tmp_path, capsys):
    smallest_study.STUDY.main([f"--workdir={tmp_path}", f"--out={tmp_path}", "--workers=1"])
    text = (tmp_path / "smallest_study.md").read_text()
    assert "| 1000 | 0.0" in text
    assert "\npython -m experiments.smallest_study\n" in text
    assert capsys.readouterr().out == f"{tmp_path}/smallest_study.md\n"

"""Results that are kept: found again for the same thing, and never taken for another."""

import pytest

from experiments import pool
from experiments.clinic import measure
from experiments.order_and_shift import runs


def test_a_result_is_measured_once_for_everything_it_depends_on(tmp_path):
    made = []

    def find(about):
        return pool.measured_once(
            tmp_path / "run", about, lambda: made.append(about) or {"x": (len(made), 2)}
        )

    assert find({"rate": 1.0}) == find({"rate": 1.0}) == {"x": [1, 2]}
    (tmp_path / "run" / "checkpoint").touch()
    assert find({"rate": 2.0}) == {"x": [2, 2]}
    assert not (tmp_path / "run" / "checkpoint").exists(), "an old checkpoint would be gone on from"
    assert find({"rate": 1.0}) == {"x": [3, 2]}


def test_what_no_call_has_made_is_not_deleted(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="move it away, or delete it"):
        pool.measured_once(tmp_path, {"rate": 1.0}, dict)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_run_that_was_interrupted_is_gone_on_with_if_it_is_about_the_same(tmp_path):
    def stopped():
        (tmp_path / "run" / "checkpoint").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pool.measured_once(tmp_path / "run", {"rate": 1.0}, stopped)
    there = pool.measured_once(
        tmp_path / "run", {"rate": 1.0}, lambda: {"there": (tmp_path / "run" / "checkpoint").exists()}
    )
    assert there == {"there": True}


def test_studies_measure_anew_when_their_settings_have_changed(tmp_path, monkeypatch):
    measured = []
    monkeypatch.setattr(measure, "_run", lambda *about: measured.append(about) or {})
    monkeypatch.setattr(runs, "_job", lambda *about: measured.append(about) or {})
    for phases in ([[4, ["a"]]], [[4, ["a"]]], [[5, ["a"]]]):
        measure.run("one", 0, 32, tmp_path, phases)
    assert len(measured) == 2
    for chosen in (runs.settings, runs.settings, lambda seed, width: measure.settings(seed, width, steps=7)):
        monkeypatch.setattr(runs, "settings", chosen)
        runs.job(tmp_path, "abrupt", "one", 0)
    assert len(measured) == 4

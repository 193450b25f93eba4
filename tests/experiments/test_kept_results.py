"""A model of the rules' study is trained on the text that is given, not on one of an earlier call."""

import dataclasses
from pathlib import Path

import pytest

from experiments.rule_compliance import measure


@pytest.mark.parametrize("text", ["a b c", "a b d"])
def test_a_model_is_trained_on_the_text_that_is_given(tmp_path, monkeypatch, text):
    seen = []
    monkeypatch.setattr(measure, "train", lambda settings, folder, **_: seen.append((settings, folder)))
    for each in ("a b c", text):
        measure.trained(each, tmp_path, seed=0, steps=1)
    corpora = [Path(settings.data.corpus).read_text(encoding="utf-8") for settings, _ in seen]
    assert corpora == ["a b c", text]
    assert (seen[0][1] == seen[1][1]) == (text == "a b c")
    assert dataclasses.asdict(seen[0][0])["train"]["steps"] == 1

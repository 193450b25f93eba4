"""Results of studies are kept by what they depend on: other settings, texts or tokenizers have results of their own."""

import dataclasses
import types
from pathlib import Path

import pytest

from experiments.order_and_shift import base
from experiments.rule_compliance import measure


def test_a_base_of_other_settings_or_tokenizer_has_another_folder(tmp_path, monkeypatch):
    def library(fingerprint):
        return types.SimpleNamespace(tokenizer=types.SimpleNamespace(fingerprint=fingerprint))

    one = base.folder_of(library("a"), 64, tmp_path)
    assert base.folder_of(library("a"), 64, tmp_path) == one
    others = {base.folder_of(library("b"), 64, tmp_path), base.folder_of(library("a"), 32, tmp_path)}
    monkeypatch.setattr(base, "STEPS", 5)
    others.add(base.folder_of(library("a"), 64, tmp_path))
    assert len({one, *others}) == 4


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

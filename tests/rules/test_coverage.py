"""Coverage of concepts by blocks, in bits."""

import shutil

import numpy as np
import pytest

from localist_jax.report import job
from localist_jax.rules import coverage, parse, versions


def test_a_block_of_its_own_covers_and_a_random_one_does_not(tokenizer):
    rules = parse("concepts: {dog: {anchors: [dog]}, cat: {anchors: [cat]}, absent: {anchors: [zebra]}}")
    rng, rows = np.random.default_rng(0), []
    for _ in range(60):
        words = rng.choice([" dog", " cat", " sat", " mat", " the"], 30)
        pieces = [tokenizer.encode(word) for word in words]
        dog = np.repeat(words == " dog", [len(ids) for ids in pieces])
        rows.append((np.concatenate(pieces), np.where(dog, 3, rng.integers(1, 3, len(dog)))))
    dog, cat, absent = coverage.coverage(rules, tokenizer, rows, 5)
    assert dog.block == 3
    assert dog.bits > 0.95 * dog.ceiling_bits > 0.3
    assert cat.bits < 0.2 * cat.ceiling_bits
    assert (absent.positions, absent.bits) == (0, 0.0)
    assert coverage.uncovered([dog, cat, absent]) == ["cat"]
    (found,) = coverage.candidates(rules, tokenizer, rows, 5, most=3)
    assert found.name == "cat"
    assert found.anchors.keys() <= set(tokenizer.encode(" cat").tolist())


def test_uncovered_concepts_become_candidates_once(tiny_run, tiny_settings, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run.workdir, workdir)
    assert coverage.wanted(workdir) == []  # no rules
    words = tiny_run.tokenizer.decode(np.concatenate([row for row, _ in coverage.routed(tiny_run)])).split()
    word = max((w for w in set(words) if w.isalpha() and len(w) > 3), key=words.count)
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"concepts: {{it: {{anchors: [{word}]}}, no: {{anchors: [zzzyx]}}}}\nrules: []\n")
    versions.store(workdir, rules)
    (found,) = coverage.wanted(workdir)
    assert found.name == "it"  # what never occurs wants no block
    assert all(log_odds > 0 for log_odds in found.anchors.values())
    assert word in "".join(tiny_run.tokenizer.token_text(token) for token in found.anchors)

    given = {}
    monkeypatch.setattr(job, "train", lambda *_, hooks, **__: given.update(hooks=hooks))
    monkeypatch.setattr(job, "measure", lambda run: workdir)
    monkeypatch.setattr(coverage.Run, "open", pytest.fail)  # they were kept: nothing is measured again
    job.run_job(tiny_settings.replace(recruitment={"every": 5}, model={"generations": 2}), workdir)
    assert given["hooks"][0]._concepts == [found]

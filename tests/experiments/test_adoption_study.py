"""The adoption study's page: what it shows where the ends are apart, and what it says where they are not."""

import json

import pytest

from experiments.localise import page
from experiments.localise.study import MADE, Study

BUDGETS = (4, 8)


def invented(span):
    """A seed's figures, dense and always so many bits apart, everything localised halfway."""
    ends = {"original": 4.0, "always": 4.0 + span, "tuned_dense": 3.9, "tuned_always": 3.9 + span}
    figures = {**ends, "shuffled gates": 4.1, "wider window": 4.2, "window": 10}
    for name in MADE:
        for steps in BUDGETS:
            low = ends["original" if name == "frozen" else "tuned_dense"]
            for dial in (0, 1):
                figures[f"{name}/{steps}@{dial}"] = {
                    "bits_per_token": low + dial * span / 2,
                    "open_share": 0.45,
                }
    return {**figures, "dial0_bit_equal": True, "roundtrip_exact": True}


@pytest.mark.parametrize(("span", "resolved"), [(0.5, True), (0.001, False)])
def test_kept_benefit_is_shown_only_where_there_is_a_benefit(tmp_path, monkeypatch, span, resolved):
    used = {"model_bytes": 200e6, "peak_bytes": 230e6, "largest_tensor_bytes": 65e6}
    monkeypatch.setattr(page, "memory", lambda folder: used)
    monkeypatch.setattr(page, "large_checkpoint", lambda folder: folder)
    monkeypatch.setattr(page, "logit_error", lambda study, seeds: 1e-6)
    study = Study(tmp_path, 10, BUDGETS)
    results = {seed: invented(span) for seed in (0, 1)}
    assert page.kept(results[0], "tuned", 8) == pytest.approx(0.5)
    path = page.write(study, results, tmp_path, "the command")
    text, figures = path.read_text(), json.loads((tmp_path / "adopt.json").read_text())["figures"]
    assert figures["resolved"] is resolved
    assert ("kept\nbenefit means nothing here" in text) is not resolved
    assert (tmp_path / "adopt_kept.svg").exists() is resolved
    assert "{kept}" not in text
    assert "takes 30 MB" in text

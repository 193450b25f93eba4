"""The study of a localised LLM: cases that are run once, a page of those that were, and README's table."""

import json
from pathlib import Path

import pytest

from experiments import cases
from experiments.cases import Store
from experiments.localise import headline
from experiments.localise.__main__ import STUDY
from experiments.localise.cases import Extent, plan
from experiments.localise.results import Results
from experiments.localise.targets import MET, MISSED, OPEN, targets

ROOT = Path(__file__).parents[2]
CORPORA = ("wikitext-2", "pharmacology", "economics")


def keep(folder, name, figures):
    """Write the result of a case."""
    (case,) = [case for case in plan(Extent()) if case.name == name]
    Store(folder, data="made up").keep(case, figures, 1.0)


@pytest.fixture
def folder(tmp_path):
    """A study of which the main cases were run: blocks 0.05 above the original, the window 0.6."""
    for corpus in CORPORA:
        for name, above, share in (
            ("original", 0.0, 1.0),
            ("blocks-0.17/seed0", 0.05, 0.168),
            ("window-0.17", 0.6, 0.17),
        ):
            bits = [4.0 + above, 3.0 + above]
            figures = {"rows": [0, 1], "bits": bits, "open_share": [share] * 2, "about": {"window": 178}}
            keep(tmp_path, f"text/2048/{name}/{corpus}", figures)
    for case, right in (("original", True), ("blocks-0.17", True), ("window-0.17", False)):
        keep(tmp_path, f"needle/{case}", {"right": [[right]] * 4, "share": float(right), "about": {}})
    return tmp_path


def test_the_page_says_what_was_measured_and_what_was_not(folder, tmp_path):
    STUDY.main(["--page", f"--workdir={folder}", f"--out={tmp_path / 'out'}"])
    text, stored = (
        (tmp_path / "out" / "localise.md").read_text(),
        json.loads((tmp_path / "out" / "localise.json").read_text()),
    )
    figures = stored["figures"]
    assert figures["excess_bits_017"] == pytest.approx(dict.fromkeys(CORPORA, 0.05))
    assert figures["window_minus_blocks"]["economics"]["0.17"] == pytest.approx(0.55)
    assert figures["needle_window"] == 0
    assert "nmi_supersenses" not in figures
    assert "cases were not run" in text
    assert "`control/heads`" in text
    assert (tmp_path / "out" / "localise_shares.svg").exists()
    verdicts = {target.asked.split(":")[0]: target.verdict for target in targets(figures, Extent())}
    assert verdicts["needle at λ=1"] == MET
    assert verdicts["calibrated on other text"] == OPEN
    free = [target.verdict for target in targets(figures, Extent())[:3]]
    assert free == [MET, MET, MISSED]


def test_results_of_other_texts_are_not_mixed(folder):
    (case,) = [case for case in plan(Extent()) if case.name == "text/2048/original/economics"]
    store = Store(folder, data="another")
    store.keep(case, {}, 1.0)
    with pytest.raises(ValueError, match="different models or texts"):
        Results(cases.Results(Store(folder), plan(Extent())), Extent())


def test_every_case_has_a_file_and_a_key_of_its_own(tmp_path):
    store, planned = Store(tmp_path), plan(Extent())
    assert len({store.path(case) for case in planned}) == len(planned)
    assert len({store.key(case) for case in planned}) == len(planned)


def test_results_of_earlier_versions_of_the_program_are_found(tmp_path):
    (case,) = [case for case in plan(Extent()) if case.name == "exact/dial0"]
    assert Store(tmp_path, data="cf180cb95273dee8").key(case) == "3e4b684fb4a9b2a6"


def test_readme_shows_the_table_of_the_figures_on_record():
    stored = json.loads((ROOT / "docs" / "measurements" / "localise.json").read_text(encoding="utf-8"))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert headline.shown(readme) == headline.table(stored).strip()

"""Recruitment on real text: the stream is what the page says it is, and its figures are what they are called."""

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.cases import Results, Store
from experiments.recruitment_text import __main__ as program
from experiments.recruitment_text import books, page, runs, senses
from localist_jax.data.corpora import CorpusError
from localist_jax.data.synthetic import WORDS

CONTEXT = 8


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """Two books of their own words each, two chapters in either."""
    rng = np.random.default_rng(0)
    (tmp_path / "openstax").mkdir()
    for nth, name in enumerate(("apples", "bees")):
        words = WORDS[nth * 40 : nth * 40 + 40]
        lines = [
            {"split": split, "chapter": [f"chapter {part}", "a section"],
             "text": " ".join(rng.choice(words, 400)) + "."}
            for split in ("train", "test") for part in range(2)
        ]  # fmt: skip
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / "openstax" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "wordnet").mkdir()
    table = "lemma\tlexfile\tsynset\n" + "".join(
        f"{word}\tnoun.{'food' if at < 40 else 'animal'}\t{at}-n\n" for at, word in enumerate(WORDS[:80])
    )
    (tmp_path / "wordnet" / "supersenses.tsv").write_text(table, encoding="utf-8")
    monkeypatch.setenv("LOCALIST_DATA", str(tmp_path))
    return books.Shelf("openstax", CONTEXT, 700)


def own(shelf, row):
    """The book whose words a row has."""
    text = shelf.tokenizer.decode(row).split()
    return [sum(w.strip(".") in WORDS[at : at + 40] for w in text) for at in (0, 40)]


def test_a_new_book_fills_half_of_its_phase(shelf):
    stream = shelf.stream([1, 0], rows=60, seed=3)
    books_of = [int(np.argmax(own(shelf, row))) for row in stream.prepared.train.targets]
    assert len(books_of) == 120
    assert set(books_of[:60]) == {1}, "the first phase has the first book alone"
    assert 0.3 < np.mean(np.array(books_of[60:]) == 0) < 0.7
    for rows, of in ((stream.prepared.train, books_of), (stream.prepared.valid, stream.book)):
        told = runs._own_book(rows.tokens, rows.segments)
        np.testing.assert_array_equal(told, np.broadcast_to(1 + np.array(of)[:, None], told.shape))
    again = shelf.stream([1, 0], rows=60, seed=3)
    np.testing.assert_array_equal(stream.prepared.train.tokens, again.prepared.train.tokens)


def test_books_and_chapters_of_what_is_held_out_are_known(shelf):
    stream = shelf.stream([1, 0], rows=4, seed=0)
    rows = stream.prepared.valid.targets
    assert len(rows) == len(stream.book) == len(stream.chapter)
    assert [int(np.argmax(own(shelf, row))) for row in rows] == stream.book.tolist()
    assert len(set(zip(stream.book.tolist(), stream.chapter.tolist(), strict=True))) == 4


def test_a_book_at_its_end_begins_again_and_that_is_told(shelf):
    assert shelf.stream([0], rows=10, seed=0).repeated == 0
    assert shelf.stream([0], rows=2000, seed=0).repeated > 0.5


def test_shuffled_sentences_fill_the_same_rows(shelf):
    stream = shelf.shuffled([0, 1], rows=16, seed=0)
    assert stream.prepared.train.tokens.shape == (32, CONTEXT)


def test_the_page_is_of_the_corpora_that_are_whole(monkeypatch):
    shown = []
    monkeypatch.setattr(program, "page_of", lambda results, seeds: shown.append(results))
    options = program.STUDY.parsed(["--seeds", "0"])
    found = Results(Store(Path("nowhere")), program.cases(options))
    found.missing = [name for name in found.missing if "dc_code" in name]
    found.update({case.name: {} for case in program.cases(options) if case.name not in found.missing})
    program.page(options, found)
    assert {corpus for corpus, _ in shown[0]} == {"openstax"}


def test_a_missing_corpus_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCALIST_DATA", str(tmp_path))
    with pytest.raises(CorpusError, match="LOCALIST_DATA"):
        books.Shelf("dc_code", CONTEXT, 300)


def test_blocks_that_are_the_supersenses_agree_with_them_and_permuted_ones_do_not(shelf):
    sense = senses.supersenses(shelf.tokenizer)
    assert sense is not None
    content = np.flatnonzero(sense != senses.NONE)
    assert {shelf.tokenizer.token_text(t).strip() for t in content} <= set(WORDS[:80])
    tokens = np.random.default_rng(0).choice(content, 2000)
    found = senses.agreement(tokens, sense[tokens] + 1, sense, np.eye(len(sense)), seed=0)
    assert found["blocks"] == pytest.approx(1.0)
    assert found["permuted"] < 0.05
    assert found["content_words"] == 2000


def test_what_was_forgotten_is_measured_from_the_best_that_a_book_was_known():
    exams = [{"a": 5.0, "b": 9.0}, {"a": 4.0, "b": 6.0}, {"a": 4.5, "b": 5.0}]
    assert page.forgotten({"order": ["a", "b"], "exams": exams}) == pytest.approx(0.5)


def test_the_dense_control_has_as_many_parameters():
    whole, dense = (runs.settings_of(name, 6, 0).model for name in ("from start", "dense"))
    units = [(m.blocks - 1) * (m.layers - m.router_layer) * 2 * m.block_units for m in (whole, dense)]
    trunk = [3 * m.layers * m.feed_forward for m in (whole, dense)]
    assert units[0] + trunk[0] == pytest.approx(units[1] + trunk[1], rel=0.01)


def test_the_page_tells_every_birth(tmp_path):
    move = {"kind": "recruited", "reason": "at its horizon", "trial": 1, "step": 150, "parent": 1, "share": 0.4,
            "llr_bits": 90.0,
            "placebo_bits": [3.0, 7.0], "threshold_bits": 8.0, "surprise_bits": 9.0,
            "surprise_threshold_bits": 6.0}  # fmt: skip
    run = {
        "order": ["a", "b"], "code_bits": 1e5, "bits_per_token": [6.0, 5.0], "exams": [{"a": 5.0, "b": 6.0}] * 2,
        "blocks": 2, "nmi_book": 0.5, "nmi_chapter": 0.4, "ari_book": 0.3, "table": {"a": [0, 9, 1], "b": [0, 2, 8]},
        "senses": None, "parameters": 10, "repeated": 0.1, "moves": [move],
    }  # fmt: skip
    results = {("openstax", name): [run] for name in (*runs.CONDITIONS, *runs.NULLS)}
    written = page.page_of(results, [0]).write(tmp_path, "recruitment_text", "x")
    text = written.read_text(encoding="utf-8")
    assert "| openstax 0 | 150 | 1 | 0.40 | 90 | 7 | 8.0 | 9.0 | 6.0 |" in text
    figures = json.loads((tmp_path / "recruitment_text.json").read_text(encoding="utf-8"))
    assert "null_one_book_recruits" in json.dumps(figures)

import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest

from localist_jax.config import Data
from localist_jax.data import corpora
from localist_jax.data.corpora import Corpus, CorpusError, load
from localist_jax.data.fields import stream
from tests.data.corpus_files import corpus_of, no_local_data, one_line_error, write  # noqa: F401 (a fixture)

WIKI = " \n = First = \n \n Words . \n \n = = Section = = \n \n More words . \n \n = Second = \n \n End . \n"


@pytest.fixture
def real_data(request) -> Path:
    """Name of a real corpus, or a skip that says what is missing; one that is there and does not load is a failure."""
    try:
        load(Data(corpus=request.param))
    except CorpusError as error:
        if corpora._locate(Data(corpus=request.param)) is not None:
            raise
        pytest.skip(str(error))
    return request.param


# --- embedded ---


@pytest.fixture(scope="module")
def python_docs() -> Corpus:
    return load(Data())


def test_python_docs_are_a_few_megabytes_of_distinct_documents(python_docs):
    total = sum(python_docs.byte_counts.values())
    assert 1e6 < total < 8e6
    documents = python_docs.train + python_docs.valid
    assert len(set(documents)) == len(documents) > 300


def test_python_docs_hold_topics_and_docstrings(python_docs):
    from pydoc_data.topics import topics

    text = "\n".join(python_docs.train + python_docs.valid)
    assert topics["while"] in text
    assert (
        "textwrap.dedent(text)\n    Remove any common leading whitespace from every line in `text`." in text
    )


def test_python_docs_are_parsed_without_importing(python_docs):
    text = "\n".join(python_docs.train + python_docs.valid)
    assert "turtle.Turtle" in text
    assert "turtle" not in sys.modules
    assert not any(name in text for name in ("test.support", "idlelib."))


def test_docstrings_are_read_from_sources_in_order_without_copies(tmp_path, monkeypatch):
    sources = {
        "b.py": '"""Module b."""\nclass A(int, x.Y):\n    """A."""\n    def f(self, n=1): "Shared."\n',
        "a/__init__.py": 'raise RuntimeError("imported")\nasync def g(*args): "Shared."\n'
        'def h():\n    """First\n\n      rest."""\n',
        "a/test/t.py": '"""A test."""',
        "site-packages/p.py": '"""A package."""',
        "broken.py": "def (",
        "silent.py": "x = 1",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.setattr(corpora.python_docs.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    *_, b, a = corpora.python_docs.documents.__wrapped__()
    assert b == "b\nModule b.\n\nb.A(int, x.Y)\n    A.\n\nb.A.f(self, n=1)\n    Shared."
    assert a == "a.h()\n    First\n\n    rest."


def test_python_docs_hold_out_the_asked_share_of_bytes(python_docs):
    sizes = python_docs.byte_counts
    assert sizes["valid"] / sum(sizes.values()) == pytest.approx(0.05, abs=0.005)
    assert not set(python_docs.train) & set(python_docs.valid)


def test_generated_corpora_refuse_a_path(tmp_path):
    assert "config.data.path" in one_line_error(corpus="python-docs", path=str(tmp_path))


def test_synthetic_has_three_splits_of_words():
    corpus = load(Data(corpus="synthetic"))
    assert [len(s) for s in (corpus.train, corpus.valid, corpus.test)] == [600, 30, 30]
    assert all(len(document.split()) == 500 for document in corpus.valid)
    assert load(Data(corpus="synthetic")) == corpus


def test_fields_begins_with_one_field_and_half_way_a_second_one_comes():
    world, words = stream(0, fields=2, documents=2400, length=64)
    corpus = load(Data(corpus="fields"))
    assert list(corpus.train) == world.texts(words)
    second = {f" {w}" for w in world.words[world.shared + world.own :]}
    said = [any(w in text for w in second) for text in corpus.train]
    assert not any(said[:2400])
    assert np.mean(said[2400:]) > 0.5


# --- where it is looked for ---


def test_named_corpus_is_found_below_the_root_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(corpora.ROOT_VARIABLE, str(tmp_path))
    for name in ("tinyshakespeare", "mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "input.txt").write_text("To be, or not to be.\n" * 50, encoding="utf-8")
        (tmp_path / name / "README.md").write_text("About this. \n" * 9, encoding="utf-8")
    assert not any("About" in d for d in load(Data(corpus="tinyshakespeare")).train)
    assert any("About" in d for d in load(Data(corpus="mine", valid_fraction=0.3)).train)


def test_path_wins_over_the_root_variable(tmp_path, monkeypatch):
    monkeypatch.setenv(corpora.ROOT_VARIABLE, str(tmp_path))
    write(tmp_path / "openstax" / "a.jsonl", {"text": "root " * 50})
    chosen = write(tmp_path / "other.jsonl", {"text": "path " * 50})
    assert load(Data(corpus="openstax", path=str(chosen))).train[0].startswith("path")


@pytest.mark.parametrize("name", sorted(corpora.KNOWN))
def test_a_missing_known_corpus_says_where_to_put_it(name):
    message = one_line_error(corpus=name)
    assert "config.data.path" in message
    assert f"$LOCALIST_DATA/{name}" in message
    assert ("pip install datasets" in message) == (name == "wikitext-2")


@pytest.mark.parametrize(
    ("config", "hint"),
    [
        ({"corpus": "wikitext2"}, "did you mean 'wikitext-2'?"),
        ({"corpus": "zzz"}, "known: python-docs"),
        ({"corpus": "openstax", "path": "/nowhere/at/all"}, "config.data.path: no file or folder"),
    ],
)
def test_a_wrong_name_or_path_says_so(config, hint):
    assert hint in one_line_error(**config)


def test_the_hub_is_the_last_resort(monkeypatch):
    rows = {"text": WIKI.splitlines(keepends=True)}
    asked = []

    def load_dataset(*name):
        asked.append(name)
        return {"train": rows, "validation": rows, "test": rows}

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    corpus = load(Data(corpus="wikitext-2"))
    assert asked == [("Salesforce/wikitext", "wikitext-2-v1")]
    assert [len(s) for s in (corpus.train, corpus.valid, corpus.test)] == [2, 2, 2]


def test_a_failed_download_is_one_line(monkeypatch):
    def load_dataset(*name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    assert "ConnectionError: no route to host" in one_line_error(corpus="wikitext-2")


# --- holding out ---


def test_held_out_documents_depend_on_content_not_on_order(tmp_path):
    documents = [f"document {i} " * 5 for i in range(50)]
    forward = corpus_of(tmp_path, documents)
    backward = corpus_of(tmp_path, documents[::-1])
    assert set(forward.valid) == set(backward.valid)
    assert forward.train == backward.train[::-1]
    assert 5 <= len(forward.valid) <= 10


def test_copies_of_a_document_stay_on_one_side(tmp_path):
    corpus = corpus_of(tmp_path, [f"document {i % 10}" for i in range(100)])
    assert not set(corpus.train) & set(corpus.valid)
    assert len(corpus.valid) == 20
    assert len(corpus.train) == 80


def test_few_large_documents_give_their_tails(tmp_path):
    documents = ["a " * 5000, "b " * 5000, "c"]
    corpus = corpus_of(tmp_path, documents, fraction=0.1)
    assert [d[0] for d in corpus.valid][:2] == ["a", "b"]
    assert sum(map(len, corpus.valid)) == pytest.approx(2000, rel=0.02)


# --- real data, where it is at hand ---

needs_data = pytest.mark.skipif(
    corpora.ROOT_VARIABLE not in os.environ, reason="set LOCALIST_DATA to a folder with real corpora"
)


@needs_data
@pytest.mark.parametrize("real_data", ["wikitext-2"], indirect=True)
def test_real_wikitext(real_data):
    corpus = load(Data(corpus=real_data))
    assert len(corpus.valid) == pytest.approx(60, abs=6)
    assert len(corpus.train) == pytest.approx(600, abs=60)
    assert corpus.byte_counts["valid"] == 1_121_681
    assert corpus.byte_counts["test"] == 1_256_449


@needs_data
@pytest.mark.parametrize("real_data", ["tinyshakespeare"], indirect=True)
def test_real_tinyshakespeare(real_data):
    corpus = load(Data(corpus=real_data))
    assert sum(corpus.byte_counts.values()) == 1_115_394
    assert corpus.train[0].startswith("First Citizen:")


@needs_data
@pytest.mark.parametrize("real_data", ["openstax"], indirect=True)
def test_real_openstax(real_data):
    corpus = load(Data(corpus=real_data))
    assert len(corpus.train) > 5 * len(corpus.valid) > 0
    assert len(corpus.test) > 0

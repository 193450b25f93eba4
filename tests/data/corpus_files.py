"""Files for tests of corpora, and a fixture that keeps these tests away from the machine's own corpora."""

import json
import sys
from pathlib import Path

import pytest

from localist_jax.config import Data
from localist_jax.data import corpora
from localist_jax.data.corpora import Corpus, CorpusError, load


@pytest.fixture(autouse=True)
def no_local_data(monkeypatch, request):
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv(corpora.ROOT_VARIABLE, raising=False)
        monkeypatch.setitem(sys.modules, "datasets", None)  # as if not installed: tests stay offline


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def one_line_error(**config) -> str:
    with pytest.raises(CorpusError) as caught:
        load(Data(**config))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def corpus_of(tmp_path, documents, fraction=0.2) -> Corpus:
    path = write(tmp_path / "c.jsonl", *({"text": d} for d in documents))
    return load(Data(corpus=str(path), valid_fraction=fraction))

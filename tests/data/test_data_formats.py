"""Formats of corpora: text, JSONL, packed and split files; whatever does not read is refused by name."""

import bz2
import gzip
import json
import lzma
import sys
import types

import pytest
import zstandard

from localist_jax.config import Data
from localist_jax.data.corpora import Corpus, load
from tests.data.corpus_files import corpus_of, no_local_data, one_line_error, write  # noqa: F401 (a fixture)

WIKI = " \n = First = \n \n Words . \n \n = = Section = = \n \n More words . \n \n = Second = \n \n End . \n"


def test_text_folder_reads_each_file_as_a_document(tmp_path):
    for name in ("b.txt", "a.md", "sub/c.rst"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"text of {name}\n" * 20, encoding="utf-8")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    corpus = load(Data(corpus=str(tmp_path), valid_fraction=0.4))
    assert corpus.name == tmp_path.name
    assert sorted(d.split("\n")[0] for d in corpus.train + corpus.valid) == [
        "text of a.md",
        "text of b.txt",
        "text of sub/c.rst",
    ]


def test_a_single_file_gives_its_tail_at_a_line_end(tmp_path):
    path = tmp_path / "book.txt"
    text = "".join(f"line {i}\n" for i in range(1000))
    path.write_text(text, encoding="utf-8")
    corpus = load(Data(corpus=str(path), valid_fraction=0.1))
    (train,), (valid,) = corpus.train, corpus.valid
    assert train + valid == text
    assert valid.startswith("line ")
    assert len(valid) / len(text) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("train", "valid", "test"),
    [
        ("train-00000-of-00001.jsonl", "validation-00000-of-00001.jsonl", "test-00000-of-00001.jsonl"),
        (
            "data/train-00000-of-00002.jsonl",
            "data/dev-00000-of-00001.jsonl",
            "data/eval-00000-of-00001.jsonl",
        ),
        ("train/a.jsonl", "valid/a.jsonl", "test/a.jsonl"),
        ("Training/x/a.txt", "VAL/a.txt", "Evaluation/a.txt"),
        ("my_train_file.txt", "my-dev.txt", "my test.txt"),
        ("Train.TXT", "Valid.Txt", "TEST.md"),
        ("guide.md", "valid.md", "testing.md"),  # no name says train: the others are
        ("train/test-ride.txt", "val/train.txt", "test/train.txt"),  # the folder goes before the file
    ],
)
def test_splits_are_told_by_the_names_of_folders_shards_and_files(tmp_path, train, valid, test):
    for split, name in (("train", train), ("valid", valid), ("test", test)):
        if name.endswith("jsonl"):
            write(tmp_path / name, {"text": split})
        else:
            (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / name).write_text(split)
    corpus = load(Data(corpus=str(tmp_path)))
    assert (corpus.train, corpus.valid, corpus.test) == (("train",), ("valid",), ("test",))


def test_what_each_split_got_and_what_was_left_out_is_said(tmp_path):
    for name in (
        "train-1.txt",
        "train-2.txt",
        "dev.txt",
        "test.txt",
        "contest.txt",
        "chapter.txt",
        "picture.png",
    ):
        (tmp_path / name).write_text(f"the text of {name} " * 20)
    (tmp_path / "train-3.txt").write_text("the text of test.txt " * 20)
    said = load(Data(corpus=str(tmp_path))).describe()
    wanted = "train 3, valid 1, test 1 (1 of them in train too); left out: chapter.txt and 2 more"
    assert said == f"{tmp_path.name}: documents: {wanted}"
    assert "valid 1 (held out of train)" in corpus_of(tmp_path, ["one " * 9, "two " * 9], 0.5).describe()


def test_only_text_for_tests_is_no_training_text(tmp_path):
    write(tmp_path / "test.jsonl", {"text": "a"})
    assert "no training text found (documents: test: 1, by the names" in one_line_error(corpus=str(tmp_path))


def test_hidden_files_and_folders_are_not_read(tmp_path):
    for name in (".git/x.txt", ".ipynb_checkpoints/a.txt", "__pycache__/b.txt", ".c.txt", "sub/.d/e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("hidden text\n" * 20)
    (tmp_path / "open.txt").write_text("open text\n" * 20)
    corpus = load(Data(corpus=str(tmp_path)))
    assert "hidden" not in "".join(corpus.train + corpus.valid)
    assert len(corpus.left_out) == 5


# --- records by every name ---


def record_lines(*texts) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


PACKERS = {
    "": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}  # fmt: skip


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "A.JSONL", "a.json", "a.jsonlines"])
def test_records_are_read_by_every_name_and_packing(tmp_path, name, packing):
    path = tmp_path / f"{name}{packing.upper() if name.isupper() else packing}"
    path.write_bytes(PACKERS[packing](record_lines("one one", "two two", "three three")))
    (tmp_path / "README.md").write_text("About these records. " * 20)
    for place in (path, tmp_path):
        corpus = load(Data(corpus=str(place), valid_fraction=0.4))
        assert sorted(corpus.train + corpus.valid) == ["one one", "three three", "two two"]


def test_json_may_be_one_array(tmp_path):
    records = [{"text": "a"}, {"text": "v", "split": "VALIDATION"}, {"text": "b", "split": None}]
    (tmp_path / "x.json").write_text(json.dumps(records, indent=1))
    corpus = load(Data(corpus=str(tmp_path)))
    assert (corpus.train, corpus.valid) == (("a", "b"), ("v",))


def test_packed_text_is_text(tmp_path):
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"a line\n" * 100))
    corpus = load(Data(corpus=str(tmp_path)))
    assert "".join(corpus.train + corpus.valid) == "a line\n" * 100


def test_settings_in_json_beside_text_are_left_out(tmp_path):
    (tmp_path / "dataset_infos.json").write_text('{"features": {"text": {"dtype": "string"}}}')
    (tmp_path / "a.txt").write_text("a line\n" * 100)
    corpus = load(Data(corpus=str(tmp_path)))
    assert "".join(corpus.train + corpus.valid) == "a line\n" * 100
    assert corpus.left_out == ("dataset_infos.json",)


def test_parquet_is_read_with_pyarrow_and_else_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1")
    (tmp_path / "README.md").write_text("About these records. " * 20)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "reading parquet needs pyarrow; pip install" in one_line_error(corpus=str(tmp_path))
    batch = types.SimpleNamespace(to_pylist=lambda: [{"text": "a"}, {"text": "v", "split": "valid"}])
    opened = types.SimpleNamespace(iter_batches=lambda: [batch])
    parquet = types.SimpleNamespace(ParquetFile=lambda path: opened)
    monkeypatch.setitem(sys.modules, "pyarrow", types.SimpleNamespace(parquet=parquet))
    corpus = load(Data(corpus=str(tmp_path)))
    assert (corpus.train, corpus.valid) == (("a",), ("v",))


def test_zstd_without_its_library_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b"")
    assert "reading zstd needs zstandard; pip install" in one_line_error(corpus=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", record_lines("one", "two"), "holds a JSON object a line, not prose; call it a.jsonl"),
        ("a", record_lines("one"), "holds a JSON object a line, not prose"),
        ("a.csv", b"text\none\n", "csv is not read; convert it to JSONL"),
        ("a.json", b'{"tex', "a.json:1: not JSON"),
        ("a.json", b"[" * 100_000, "a.json:1: nested too deeply"),
        ("a.jsonl", b'{"a":' * 100_000, "a.jsonl:1: nested too deeply"),
        ("a.json", b'["prose"]', "record 1: expected an object with fields"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "a.jsonl:1: not JSON"),
        ("a.jsonl.gz", gzip.compress(record_lines("one"), mtime=0)[:-9], "damaged or cut short"),
        ("a.jsonl.gz", b"PK", "damaged or cut short"),
        ("a.jsonl.xz", b"PK", "damaged or cut short"),
        ("a.jsonl.bz2", b"PK", "cannot be read"),
        ("a.jsonl.zst", b"PK\x03\x04" * 9, "damaged or cut short"),
    ],
)
def test_what_does_not_read_is_refused_by_name(tmp_path, name, content, expected):
    (tmp_path / name).write_bytes(content)
    assert expected in one_line_error(corpus=str(tmp_path / name))


@pytest.mark.parametrize("name", ["data.csv", "data.ARROW", "all.zip", "x.tar.gz"])
def test_data_in_another_form_is_refused_and_the_readme_not_trained_on(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "README.md").write_text("About these records. " * 20)
    assert "is not read; convert it to JSONL" in one_line_error(corpus=str(tmp_path))


@pytest.mark.parametrize("pattern", ["{}.txt", "wiki.{}.tokens", "wiki.{}.raw"])
def test_wikitext_keeps_its_splits_and_splits_at_titles_only(tmp_path, pattern):
    for split in ("train", "valid", "test"):
        (tmp_path / pattern.format(split)).write_text(WIKI.replace("End", split), encoding="utf-8")
    (tmp_path / "README.md").write_text("not a part", encoding="utf-8")
    corpus = load(Data(corpus="wikitext-2", path=str(tmp_path)))
    assert corpus.name == "wikitext-2"
    for split in ("train", "valid", "test"):
        documents = getattr(corpus, split)
        assert len(documents) == 2
        assert "".join(documents) == WIKI.replace("End", split)
        assert documents[1].startswith(" \n = Second = \n")


def test_jsonl_reads_the_field_and_honours_split(tmp_path):
    path = write(
        tmp_path / "book.jsonl",
        {"body": "one", "split": "train"},
        {"body": "two", "split": "validation"},
        {"body": "three", "split": "test"},
        {"body": "four"},
    )
    corpus = load(Data(corpus=str(path), field="body"))
    assert corpus == Corpus("book.jsonl", ("one", "four"), ("two",), ("three",))


def test_jsonl_folder_reads_files_in_order_and_ignores_other_kinds(tmp_path):
    write(tmp_path / "b.jsonl", {"text": "second", "split": "train"})
    write(tmp_path / "a.jsonl", {"text": "first", "split": "train"}, {"text": "v", "split": "valid"})
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    assert load(Data(corpus="openstax", path=str(tmp_path))).train == ("first", "second")


def test_jsonl_files_may_be_named_after_splits(tmp_path):
    write(tmp_path / "train.jsonl", {"text": "a"})
    write(tmp_path / "valid.jsonl", {"text": "b"})
    corpus = load(Data(corpus=str(tmp_path)))
    assert (corpus.train, corpus.valid) == (("a",), ("b",))


def test_line_separators_inside_json_strings_do_not_end_the_record(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a\u2028b"}\n{"text": "c", "split": "valid"}\n', encoding="utf-8")
    assert load(Data(corpus=str(path))).train == ("a\u2028b",)


def test_lone_surrogates_become_encodable(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a\\ud800b"}\n{"text": "c", "split": "valid"}\n', encoding="utf-8")
    assert load(Data(corpus=str(path))).train == ("a?b",)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ('{"text": "a"}\n{"body": "b", "id": 1}\n', ["x.jsonl:2", "'text' is missing", "body, id", "field"]),
        ('{"text": 3}\n', ["x.jsonl:1", "is 3, not text"]),
        ('{"text": "a"}\n\n{"text": \n', ["x.jsonl:3", "not JSON"]),
        ('["a"]\n', ["x.jsonl:1", "object"]),
        ('{"text": "a", "split": "hold"}\n', ["x.jsonl:1", "unknown split 'hold'"]),
        ('{"text": "a", "split": ["x"]}\n', ["x.jsonl:1", "unknown split"]),
        ('{"text": "a", "split": "valid"}\n', ["no training text"]),
        ('{"text": " \\n"}\n', ["no training text"]),
        ('{"text": "a"}\n', ["too small", "valid_fraction"]),
    ],
)
def test_malformed_jsonl_is_refused_by_file_and_line(tmp_path, lines, expected):
    (tmp_path / "x.jsonl").write_text(lines, encoding="utf-8")
    message = one_line_error(corpus=str(tmp_path))
    assert all(part in message for part in expected), message


def test_non_utf8_names_the_file(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    message = one_line_error(corpus=str(tmp_path))
    assert "latin.txt" in message
    assert "UTF-8 (byte 3)" in message


def test_a_folder_without_known_kinds_is_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    assert "no file of a known kind" in one_line_error(corpus=str(tmp_path))

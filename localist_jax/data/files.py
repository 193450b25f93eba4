"""Files of a corpus: which of a folder's files are read, as which split, and the documents in them.

Splits are told by name, as Hugging Face `datasets` does it: folders (`train/`, `test/`), files (`train.txt`,
`wiki.valid.tokens`) and shards (`validation-00000-of-00002.parquet`), in any case. Files that hold records (JSONL,
parquet) go before plain text. What is not read is listed, and a file that holds data in a form that is not read is
refused rather than replaced by the README beside it.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TEXT = frozenset({".txt", ".text", ".md", ".rst", ".tokens", ".raw"})
LINES = frozenset({".jsonl", ".ndjson", ".jsonlines"})  # one JSON object a line
JSON, PARQUET = ".json", ".parquet"
PACKED: dict[str, Callable[..., Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
}  # and .zst, see `_unpacked`
UNREAD = frozenset({".csv", ".tsv", ".arrow", ".feather", ".avro", ".orc", ".zip", ".tar", ".tgz"})
EXTRA = "pip install 'localist_jax[files]'"
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
BETWEEN_WORDS = re.compile(r"[-._ 0-9]+")
# A title of WikiText: ` = Title = ` between blank lines; sections (` = = Section = = `) don't match.
ARTICLE = re.compile(r"^ ?\n = [^\n]*(?<! =) = ?\n(?= ?\n)", re.MULTILINE)

Splits = dict[str, list[str]]


class CorpusError(ValueError):
    """A corpus that is missing, empty or malformed; the message is one line that says what to do."""


@dataclass
class Contents:
    """The documents of a file or folder.

    Attributes:
      splits: documents by split.
      left_out: names of the files of the folder that were not read.
    """

    splits: Splits
    left_out: list[str] = field(default_factory=list)


def read(path: Path, text_field: str) -> Contents:
    """Reads a file, or a folder with all that is in it but hidden files.

    Args:
      path: the file or folder.
      text_field: of a record, holds its text.

    Raises:
      CorpusError: nothing that can be read, or a file that does not read as what it should be.
    """
    if path.is_dir():
        return _read_folder(path, text_field)
    form = form_of(path)
    if form in UNREAD:
        raise CorpusError(f"{path}: {_unread(form)}")
    return Contents(_collect(_documents(path, form, text_field, "train")))


def split_of(name: str) -> str | None:
    """The split that one part of a path names.

    >>> [split_of(name) for name in ("Train.txt", "wiki.valid.tokens", "dev-00000-of-00001.parquet", "chapter.txt")]
    ['train', 'valid', 'valid', None]
    """
    words = BETWEEN_WORDS.split(name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)


def form_of(path: Path) -> str:
    """The suffix that tells how a file is read, in small letters; that of its packing does not count.

    >>> form_of(Path("a/Train.JSONL.gz"))
    '.jsonl'
    """
    name = path.name.lower()
    packed = Path(name).suffix
    return Path(name.removesuffix(packed) if packed in {*PACKED, ".zst"} else name).suffix


def _read_folder(folder: Path, text_field: str) -> Contents:
    inside = {path: path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()}
    # Hidden files and folders (.git, .ipynb_checkpoints), and those of programs (__pycache__), are never a corpus.
    seen = {p: at for p, at in inside.items() if not any(part.startswith((".", "__")) for part in at.parts)}
    forms = {path: form_of(path) for path in seen}
    chosen = [path for path, form in forms.items() if form in LINES or form == PARQUET]
    chosen = chosen or [p for p, form in forms.items() if form == JSON and _holds_records(p, text_field)]
    if not chosen:
        unread = next((path for path, form in forms.items() if form in UNREAD), None)
        if unread is not None:
            raise CorpusError(f"{unread}: {_unread(forms[unread])}")
        chosen = [path for path, form in forms.items() if form in TEXT]
    if not chosen:
        kinds = ", ".join(sorted(form[1:] for form in {*TEXT, *LINES, JSON, PARQUET}))
        raise CorpusError(
            f"{folder}: no file of a known kind ({kinds}); set config.data.path to a folder with some"
        )
    splits = {path: _split_at(seen[path]) for path in chosen}
    if "train" in splits.values():
        chosen = [path for path in chosen if splits[path]]
    pairs = (
        pair for path in chosen for pair in _documents(path, forms[path], text_field, splits[path] or "train")
    )
    return Contents(_collect(pairs), [str(at) for path, at in inside.items() if path not in set(chosen)])


def _split_at(path: Path) -> str | None:
    """By the innermost folder that names a split, else by the file's own name."""
    return next((split for part in [*path.parts[-2::-1], path.name] if (split := split_of(part))), None)


def _collect(pairs: Iterable[tuple[str, str]]) -> Splits:
    splits: Splits = {}
    for split, document in pairs:
        splits.setdefault(split, []).append(document)
    return splits


def _unread(form: str) -> str:
    return f"{form[1:]} is not read; convert it to JSONL or text, or take it out of the folder"


def _documents(path: Path, form: str, text_field: str, split: str) -> Iterator[tuple[str, str]]:
    """(split, text) of each document; a record's own `split` field goes before the file's."""
    if form not in LINES | {JSON, PARQUET}:
        text = text_of(path)
        _check_prose(path, text)
        yield from ((split, article) for article in articles(text))
        return
    records = _parquet(path) if form == PARQUET else _lines(path) if form in LINES else _json(path)
    for place, record in records:
        yield _own_split(record, split, place), _text_in(record, text_field, place)


def _own_split(record: dict[str, Any], split: str, place: str) -> str:
    own = record.get("split")
    if own is None:
        return split
    if not isinstance(own, str) or own.lower() not in SPLIT_NAMES:
        raise CorpusError(f"{place}: unknown split {own!r}; expected one of: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[own.lower()]


def _text_in(record: dict[str, Any], text_field: str, place: str) -> str:
    text = record.get(text_field)
    if not isinstance(text, str):
        got = f"is {repr(text)[:40]}, not text" if text_field in record else "is missing"
        raise CorpusError(
            f"{place}: field {text_field!r} {got}; set config.data.field to one of: {', '.join(record)}"
        )
    return text


# --- records -------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of each line that is not blank."""
    for number, line in enumerate(text_of(path).split("\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, _object(_parsed(line, place), place, line)


def _json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) of a file that is one array, one object, or one object a line."""
    text = text_of(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError):
        yield from _lines(path)
        return
    for number, record in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        place = f"{path}, record {number}"
        yield place, _object(record, place, str(record))


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise CorpusError(
            f"{place}: nested too deeply to be read as JSON; expected one flat object"
        ) from None
    except ValueError as error:
        why = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        raise CorpusError(f"{place}: not JSON ({why}); expected one object a line") from error


def _object(record: Any, place: str, shown: str) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise CorpusError(f"{place}: expected an object with fields, got {shown[:40]!r}")
    return record


def _holds_records(path: Path, text_field: str) -> bool:
    """Whether a .json file is a corpus, and not the settings of something."""
    try:
        return isinstance(next(_json(path))[1].get(text_field), str)
    except (CorpusError, StopIteration):
        return False


def _parquet(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        from pyarrow import parquet  # optional, and large: only here
    except ImportError as error:
        raise CorpusError(
            f"{path}: reading parquet needs pyarrow; {EXTRA}, or convert it to JSONL"
        ) from error
    try:
        rows = itertools.chain.from_iterable(
            batch.to_pylist() for batch in parquet.ParquetFile(path).iter_batches()
        )
        for number, record in enumerate(rows, start=1):
            yield f"{path}, row {number}", record
    except (OSError, ValueError) as error:
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{path}: damaged, or not parquet ({_short(error)}); copy it again") from error


# --- text ----------------------------------------------------------------------------------------


def articles(text: str) -> list[str]:
    """WikiText cut before each title; any other text whole. Nothing is lost: the parts join to `text`."""
    starts = [match.start() for match in ARTICLE.finditer(text)]
    edges = [0, *starts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _check_prose(path: Path, text: str) -> None:
    """Refuses records that are called text: nobody wants a model of their brackets."""
    first = list(itertools.islice((line for line in text.splitlines() if line.strip()), 2))
    if first and all(line.startswith("{") and _is_object(line) for line in first):
        raise CorpusError(f"{path}: holds a JSON object a line, not prose; call it {path.stem}.jsonl")


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def text_of(path: Path) -> str:
    """The text of a file, unpacked.

    Raises:
      CorpusError: it cannot be read, is damaged, or is not UTF-8.
    """
    try:
        with _unpacked(path) as file:
            data = file.read()
        return data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 (byte {error.start}); convert it, or remove it from the folder"
        ) from error
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path}: damaged or cut short ({_short(error)}); copy it again") from error
    except OSError as error:
        why = error.strerror or _short(error)
        raise CorpusError(f"{path}: cannot be read ({why}); check the file and its permissions") from error


def _unpacked(path: Path) -> contextlib.AbstractContextManager[Any]:
    packed = path.suffix.lower()
    if packed != ".zst":
        return PACKED[packed](path, "rb") if packed in PACKED else open(path, "rb")
    try:
        import zstandard  # optional: only here
    except ImportError as error:
        raise CorpusError(f"{path}: reading zstd needs zstandard; {EXTRA}, or unpack the file") from error
    return _zstd(path, zstandard)


@contextlib.contextmanager
def _zstd(path: Path, library: Any) -> Iterator[Any]:
    try:
        with (
            open(path, "rb") as file,
            library.ZstdDecompressor().stream_reader(file, read_across_frames=True) as reader,
        ):
            yield reader
    except library.ZstdError as error:
        raise CorpusError(f"{path}: damaged or cut short ({_short(error)}); copy it again") from error


def _short(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]

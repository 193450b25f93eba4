"""Corpora: a name, a file or a folder → documents in fixed splits.

Three kinds of names are known: corpora that need no files (`python-docs`, `synthetic`, `fields`), corpora
that are looked for on disk (`wikitext-2`, `tinyshakespeare`, `openstax`), and whatever lies at a
path: a text file, a folder of them, JSONL, or files named after their splits.
"""

from __future__ import annotations

import difflib
import hashlib
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from localist_jax.config import Data
from localist_jax.data import python_docs
from localist_jax.data.fields import lasting_shares, stream
from localist_jax.data.synthetic import World

ROOT_VARIABLE = "LOCALIST_DATA"
TEXT_SUFFIXES = frozenset({".txt", ".md", ".rst", ".tokens", ".raw"})
SPLIT_NAMES = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
# A title of WikiText: ` = Title = ` between blank lines; sections (` = = Section = = `) don't match.
ARTICLE = re.compile(r"^ ?\n = [^\n]*(?<! =) = ?\n(?= ?\n)", re.MULTILINE)

Splits = dict[str, list[str]]


class CorpusError(ValueError):
    """A corpus that is missing, empty or malformed; the message is one line that says what to do."""


@dataclass(frozen=True)
class Corpus:
    """Documents of a corpus, by split; `test` is empty where the corpus has none."""

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...] = ()

    @property
    def byte_counts(self) -> dict[str, int]:
        """UTF-8 bytes of each split.

        >>> Corpus("tiny", train=("añb",), valid=("c",)).byte_counts
        {'train': 4, 'valid': 1, 'test': 0}
        """
        return {split: sum(map(_size, getattr(self, split))) for split in ("train", "valid", "test")}

    @property
    def digest(self) -> str:
        """16 hex digits that identify the text that is trained and evaluated on; `test` does not count."""
        found = hashlib.sha256()
        for split in (self.train, self.valid):
            for document in split:
                found.update(hashlib.sha256(document.encode()).digest())
            found.update(b"|")
        return found.hexdigest()[:16]


@dataclass(frozen=True)
class _Known:
    """A named corpus that lives in files."""

    what: str  # what has to be put there
    file: str = ""  # the one file of the folder that counts; empty: see `_read_folder`
    hub: tuple[str, str] | None = None  # Hugging Face data set and its configuration


KNOWN = {
    "wikitext-2": _Known(
        "train.txt, valid.txt and test.txt of WikiText-2", hub=("Salesforce/wikitext", "wikitext-2-v1")
    ),
    "tinyshakespeare": _Known("input.txt of karpathy/char-rnn", file="input.txt"),
    "openstax": _Known("OpenStax textbooks as JSONL with the fields text and split"),
}


def load(config: Data) -> Corpus:
    """Reads the corpus that `config.corpus` names.

    A name that needs files is looked for at `config.path`, then at `$LOCALIST_DATA/<name>`, then,
    where it is known on the Hugging Face hub and `datasets` is installed, there. A corpus without a
    validation split holds out `config.valid_fraction` of its bytes, always the same ones.

    Raises:
      CorpusError: nothing there, nothing in it, or a file that does not read as what it should be.
    """
    splits = _generate(config) if config.corpus in GENERATED else _read_or_download(config)
    documents = {split: [_encodable(d) for d in texts if d.strip()] for split, texts in splits.items()}
    train, valid, test = (documents.get(split, []) for split in ("train", "valid", "test"))
    name = Path(config.corpus).name
    if not train:
        raise CorpusError(f"corpus {name!r}: no training text found; give files that are not blank")
    if not valid:
        train, valid = _hold_out(train, config.valid_fraction, name)
    return Corpus(name, tuple(train), tuple(valid), tuple(test))


# --- corpora that need no files ---------------------------------------------------------------


def _python_docs() -> Splits:
    try:
        return {"train": list(python_docs.documents())}
    except ImportError as error:
        raise CorpusError(
            f"corpus 'python-docs': this Python lacks its help topics ({error}); "
            "install the full standard library or set config.data.corpus to a file"
        ) from error


def _synthetic() -> Splits:
    world = World.create(seed=0)
    sizes = {"train": 600, "valid": 30, "test": 30}
    return {
        split: world.texts(world.sample(seed, documents, length=500)[0])
        for seed, (split, documents) in enumerate(sizes.items())
    }


def _fields() -> Splits:
    """A stream about one field of knowledge; half way a second one comes."""
    world, words = stream(0, fields=2, documents=2400, length=64)
    held_out, _ = world.sample(0, 256, 64, lasting_shares(2))
    return {"train": world.texts(words), "valid": world.texts(held_out)}


GENERATED: dict[str, Callable[[], Splits]] = {
    "python-docs": _python_docs,
    "synthetic": _synthetic,
    "fields": _fields,
}


def _generate(config: Data) -> Splits:
    if config.path:
        raise CorpusError(
            f"config.data.path: {config.corpus!r} needs no files, got {config.path!r}; "
            "leave it empty, or set config.data.corpus to another name"
        )
    return GENERATED[config.corpus]()


# --- where a corpus lies -------------------------------------------------------------------------


def _read_or_download(config: Data) -> Splits:
    known = KNOWN.get(config.corpus)
    path = _locate(config)
    if path is not None:
        inner = path / known.file if known and known.file else path
        return _read(inner if inner.is_file() else path, config.field)
    if known is None:
        names = [*GENERATED, *KNOWN]
        near = difflib.get_close_matches(config.corpus, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise CorpusError(f"config.data.corpus: no corpus, file or folder {config.corpus!r}; {hint}")
    why = ""
    if known.hub is not None:
        try:
            return _download(*known.hub)
        except ImportError:
            why = "; or pip install datasets"
        except Exception as error:  # network, hub and cache each have errors of their own
            why = f"; the download of {known.hub[0]} failed: {_one_line(error)}"
    raise CorpusError(
        f"corpus {config.corpus!r} is not here: put {known.what} into a folder and set config.data.path "
        f"to it, or put it at ${ROOT_VARIABLE}/{config.corpus}{why}"
    )


def find(name: str, what: str) -> Path:
    """Where a corpus that is no plain text lies: `$LOCALIST_DATA/<name>`.

    Args:
      name: of its folder.
      what: has to be there, for the message.

    Raises:
      CorpusError: it is not there.
    """
    root = os.environ.get(ROOT_VARIABLE)
    if root and (path := Path(root).expanduser() / name).exists():
        return path
    raise CorpusError(f"corpus {name!r} is not here: put {what} at ${ROOT_VARIABLE}/{name}")


def _locate(config: Data) -> Path | None:
    if config.path:
        path = Path(config.path).expanduser()
        if not path.exists():
            raise CorpusError(
                f"config.data.path: no file or folder at {str(path)!r}; correct it, or leave it empty"
            )
        return path
    if config.corpus not in KNOWN and (path := Path(config.corpus).expanduser()).exists():
        return path
    root = os.environ.get(ROOT_VARIABLE)
    if root and (path := Path(root).expanduser() / config.corpus).exists():
        return path
    return None


def _download(dataset: str, configuration: str) -> Splits:
    from datasets import load_dataset  # optional, and heavy: only here

    parts = load_dataset(dataset, configuration)
    return {SPLIT_NAMES[split]: _articles("".join(rows["text"])) for split, rows in parts.items()}


# --- what lies there -----------------------------------------------------------------------------


def _read(path: Path, field: str) -> Splits:
    if path.is_dir():
        return _read_folder(path, field)
    if path.suffix == ".jsonl":
        return _collect(_records(path, field, "train"))
    return {"train": _articles(_text(path))}


def _read_folder(folder: Path, field: str) -> Splits:
    """JSONL files if there are any, else text files; those named after a split if one is `train`."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    chosen = [p for p in files if p.suffix == ".jsonl"] or [p for p in files if p.suffix in TEXT_SUFFIXES]
    if not chosen:
        kinds = ", ".join(["jsonl", *sorted(s[1:] for s in TEXT_SUFFIXES)])
        raise CorpusError(
            f"{folder}: no file of a known kind ({kinds}); set config.data.path to a folder with some"
        )
    named = {path: split for path in chosen if (split := _split_in_name(path))}
    if "train" not in named.values():
        named = dict.fromkeys(chosen, "train")
    pairs = (
        pair
        for path, split in named.items()
        for pair in (
            _records(path, field, split)
            if path.suffix == ".jsonl"
            else ((split, article) for article in _articles(_text(path)))
        )
    )
    return _collect(pairs)


def _split_in_name(path: Path) -> str | None:
    """`train.txt` → train, `wiki.valid.tokens` → valid, `chapter.txt` → None."""
    return next((SPLIT_NAMES[part] for part in path.name.split(".") if part in SPLIT_NAMES), None)


def _collect(pairs: Iterable[tuple[str, str]]) -> Splits:
    splits: Splits = {}
    for split, document in pairs:
        splits.setdefault(split, []).append(document)
    return splits


def _records(path: Path, field: str, split: str) -> Iterator[tuple[str, str]]:
    """(split, text) of each line; a record's own `split` field goes before the file's."""
    for number, line in enumerate(_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CorpusError(
                f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); expected one object a line"
            ) from error
        if not isinstance(record, dict):
            raise CorpusError(
                f"{path}:{number}: expected an object with a field {field!r}, got {line[:40]!r}"
            )
        text, own = record.get(field), record.get("split", split)
        if not isinstance(text, str):
            got = f"is {text!r}, not text" if field in record else "is missing"
            raise CorpusError(
                f"{path}:{number}: field {field!r} {got}; "
                f"set config.data.field to one of: {', '.join(record)}"
            )
        if not isinstance(own, str) or own not in SPLIT_NAMES:
            raise CorpusError(
                f"{path}:{number}: unknown split {own!r}; expected one of: {', '.join(SPLIT_NAMES)}"
            )
        yield SPLIT_NAMES[own], text


def _articles(text: str) -> list[str]:
    """WikiText cut before each title; any other text whole. Nothing is lost: the parts join to `text`."""
    starts = [match.start() for match in ARTICLE.finditer(text)]
    edges = [0, *starts, len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path}: not UTF-8 (byte {error.start}); convert it, or remove it from the folder"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error


# --- documents -----------------------------------------------------------------------------------


def _hold_out(documents: list[str], fraction: float, name: str) -> tuple[list[str], list[str]]:
    """Splits off about `fraction` of the bytes, chosen by content: other documents don't change the order.

    Whole documents go, copies together, so that no validation text is also trained on. Where too
    few are small enough to make up half of the share, each document gives its tail instead.
    """
    copies = Counter(documents)
    budget = fraction * sum(map(_size, documents))
    held, size = set[str](), 0
    for text in sorted(copies, key=lambda text: hashlib.sha256(text.encode()).digest()):
        if (larger := size + _size(text) * copies[text]) <= budget:
            held.add(text)
            size = larger
    if size >= budget / 2:
        return [d for d in documents if d not in held], [d for d in documents if d in held]
    pairs = [_cut_tail(text, fraction) for text in copies]
    train, valid = ([part for part in parts if part.strip()] for parts in zip(*pairs, strict=True))
    if not train or not valid:
        raise CorpusError(
            f"corpus {name!r}: too small to hold out config.data.valid_fraction = {fraction}; "
            "give more text or another share"
        )
    return train, valid


def _cut_tail(text: str, fraction: float) -> tuple[str, str]:
    """Cuts at the last line end, else the last space, before the tail of `fraction`."""
    cut = round(len(text) * (1 - fraction))
    for separator in "\n ":
        if (near := text.rfind(separator, cut // 2, cut)) >= 0:
            return text[: near + 1], text[near + 1 :]
    return text[:cut], text[cut:]


def _size(text: str) -> int:
    return len(text.encode())


def _encodable(text: str) -> str:
    """Lone surrogates, which JSON escapes can smuggle in, become `?`: they have no UTF-8 bytes."""
    return text.encode("utf-8", "replace").decode()


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]

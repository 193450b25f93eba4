"""Corpora: a name, a file or a folder → documents in fixed splits.

Three kinds of names are known: corpora that need no files (`python-docs`, `synthetic`, `fields`), corpora
that are looked for on disk (`wikitext-2`, `tinyshakespeare`, `openstax`), and whatever lies at a
path (see `data.files`): a file, or a folder of them, of text or records, by the names of their splits.
"""

from __future__ import annotations

import difflib
import hashlib
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localist_jax.config import Data
from localist_jax.data import files, python_docs
from localist_jax.data.fields import lasting_shares, stream
from localist_jax.data.files import Contents, CorpusError, Splits
from localist_jax.data.synthetic import World

ROOT_VARIABLE = "LOCALIST_DATA"


@dataclass(frozen=True)
class Corpus:
    """Documents of a corpus, by split; `test` is empty where the corpus has none.

    Attributes:
      left_out: names of the files beside it that were not read.
      held_out: `valid` was taken out of what came as training text.
    """

    name: str
    train: tuple[str, ...]
    valid: tuple[str, ...]
    test: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    held_out: bool = False

    def describe(self) -> str:
        """One line: how many documents each split has, how many of them are trained on all the same, what was left out.

        >>> Corpus("tiny", train=("a", "b"), valid=("b",), left_out=("x.png",)).describe()
        'tiny: documents: train 2, valid 1 (1 of them in train too), test 0; left out: x.png'
        """
        learned, shown = set(self.train), []
        for split in ("valid", "test"):
            documents = getattr(self, split)
            copies = sum(document in learned for document in documents)
            notes = ["held out of train"] * (split == "valid" and self.held_out)
            notes += [f"{copies} of them in train too"] * bool(copies)
            shown.append(f"{split} {len(documents)}" + (f" ({', '.join(notes)})" if notes else ""))
        line = f"{self.name}: documents: train {len(self.train)}, {', '.join(shown)}"
        if not self.left_out:
            return line
        first, *more = self.left_out
        return f"{line}; left out: {first}" + (f" and {len(more)} more" if more else "")

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
    file: str = ""  # the one file of the folder that counts; empty: see `data.files`
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
    contents = _generate(config) if config.corpus in GENERATED else _read_or_download(config)
    splits = contents.splits
    documents = {split: [_encodable(d) for d in texts if d.strip()] for split, texts in splits.items()}
    train, valid, test = (documents.get(split, []) for split in ("train", "valid", "test"))
    name = Path(config.corpus).name
    if not train:
        held = ", ".join(f"{split}: {len(texts)}" for split, texts in documents.items() if texts)
        why = f" (documents: {held}, by the names of folders and files, or their records)" if held else ""
        raise CorpusError(f"corpus {name!r}: no training text found{why}; give files that are not blank")
    held_out = not valid
    if held_out:
        train, valid = _hold_out(train, config.valid_fraction, name)
    return Corpus(name, tuple(train), tuple(valid), tuple(test), tuple(contents.left_out), held_out)


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


def _generate(config: Data) -> Contents:
    if config.path:
        raise CorpusError(
            f"config.data.path: {config.corpus!r} needs no files, got {config.path!r}; "
            "leave it empty, or set config.data.corpus to another name"
        )
    return Contents(GENERATED[config.corpus]())


# --- where a corpus lies -------------------------------------------------------------------------


def _read_or_download(config: Data) -> Contents:
    known = KNOWN.get(config.corpus)
    path = _locate(config)
    if path is not None:
        inner = path / known.file if known and known.file else path
        return files.read(inner if inner.is_file() else path, config.field)
    if known is None:
        names = [*GENERATED, *KNOWN]
        near = difflib.get_close_matches(config.corpus, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
        raise CorpusError(f"config.data.corpus: no corpus, file or folder {config.corpus!r}; {hint}")
    why = ""
    if known.hub is not None:
        try:
            return Contents(_download(*known.hub))
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
    return {files.SPLIT_NAMES[split]: files.articles("".join(rows["text"])) for split, rows in parts.items()}


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

"""Tokenizers: every text encodes, and every token knows how many bytes it stands for."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
from jaxtyping import Bool, Int32
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<pad>", "<bos>")
# Contractions; a word, up to three digits, or signs (with the line ends after them), each with at most
# the space before it; line ends; indentation. Merges never cross these borders, so that a word is the
# same token after a space whatever its sentence: anchors rely on that.
# No piece is longer than `LONGEST`: learning merges takes time that grows with the square of the longest one.
LONGEST = 128
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}{1,N}| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]{1,N}[\r\n]{0,N}|\s{0,N}[\r\n]{1,N}|\s{1,N}(?!\S)|\s{1,N}"
).replace(",N}", f",{LONGEST}}}")
BESIDE = "vocabulary.json"
NEEDED = {*range(32, 127), *b"\t\n", *range(0x80, 0xC0)}  # bytes that no byte-level tokenizer may lack
VISIBLE = {"\n": "⏎", "\t": "⇥"}


class Tokenizer:
    """Text ↔ token ids: a byte-level BPE of our own, or the `tokenizer.json` of an adopted model.

    Our own has `PAD` and `BOS` as ids 0 and 1. Text never encodes to a special token: a typed one is characters.

    Attributes:
      vocab_size: V, of the model; ids from `len(tokenizer)` on stand for nothing.
      bos: the token that opens every text, or None where the model knows none (Qwen3): its first token then
        stands at position 0, in block 0.
      stop: tokens that end a text.
      silent: bool [V]; tokens that stand for no text and may not be sampled: specials that are not in `stop`.
      byte_lengths: int32 [V]; bytes that each token stands for.
      lost: how often a text that was encoded had a byte for which there is no token, by byte; it is left out.
    """

    PAD: ClassVar[int] = 0
    BOS: ClassVar[int] = 1

    def __init__(self, inner: tokenizers.Tokenizer, *, vocab_size: int = 0, stop: Sequence[int] = ()):
        """Wraps a tokenizer; `train` and `load` are the usual ways here.

        Args:
          inner: a BPE over bytes (some rare ones may lack a token), or one with byte fallback and "▁" for spaces, as
            SentencePiece makes them.
          vocab_size: of the model, where it is larger than the tokenizer's.
          stop: tokens that end a text.

        Raises:
          ValueError: `inner` is neither, puts more than one token around a text, or does not fit `vocab_size`.
        """
        self._inner, self._text = inner, ""  # the second: the file that it was read from
        self._inner.encode_special_tokens = True  # a typed "<bos>" is five characters, not an id
        self._inner.no_truncation()  # a file may have been saved in the middle of training: all of a text is read
        self._inner.no_padding()
        count = 1 + max(inner.get_vocab(with_added_tokens=True).values(), default=-1)
        self.vocab_size = vocab_size or count
        added = inner.get_added_tokens_decoder()
        # Specials that were added behind the model's vocabulary (a <pad>, say) are never met: no text encodes to them.
        beyond = range(self.vocab_size, count)
        if (
            not all(i in added and added[i].special for i in beyond)
            or max(stop, default=0) >= self.vocab_size
        ):
            raise ValueError(
                f"tokenizer: has {count} tokens (stops: {tuple(stop)}), the model {vocab_size}; "
                "they are not of one checkpoint"
            )
        added = {i: token for i, token in added.items() if i not in beyond}
        self._count = count = min(count, self.vocab_size)
        self._specials = {i: token.content for i, token in added.items() if token.special}
        whole = {i: token.content for i, token in added.items()}
        names = [inner.id_to_token(i) or "" for i in range(count)]
        self.own = tuple(names[: len(SPECIALS)]) == SPECIALS
        self.stop = tuple(stop)
        self.bos = self.BOS if self.own else _opener(inner)
        if self.bos is not None and self.bos >= self.vocab_size:
            raise ValueError(f"tokenizer: opens texts with token {self.bos}, the model has {self.vocab_size}")
        read, without = _reader(names, set(self._specials), self.own)
        self._encodable = bytes(b for b in range(256) if b not in without)
        self.lost: Counter[int] = Counter()
        self._bytes = [
            b"" if i in self._specials else whole[i].encode() if i in whole else read(name)
            for i, name in enumerate(names)
        ]
        self._bytes += [b""] * (self.vocab_size - count)
        self.byte_lengths: Int32[np.ndarray, "V"] = np.array([len(b) for b in self._bytes], np.int32)
        self.silent: Bool[np.ndarray, "V"] = np.arange(self.vocab_size) >= count
        self.silent[[i for i in self._specials if i not in self.stop]] = True

    def __len__(self) -> int:
        return self._count

    def opened(self, ids: Iterable[int]) -> list[int]:
        """The ids with BOS in front, where there is one."""
        return [*ids] if self.bos is None else [self.bos, *ids]

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learns merges from `texts` until there are `vocab_size` tokens, or nothing occurs twice.

        Deterministic: the same texts give the same tokenizer.

        Raises:
          ValueError: `vocab_size` has no room for 256 bytes and the specials.

        >>> tokenizer = Tokenizer.train(["the cat, the dog"], vocab_size=262)
        >>> [tokenizer.token_text(i) for i in tokenizer.encode("the <bos>")][0]
        'the'
        """
        smallest = 256 + len(SPECIALS)
        if vocab_size < smallest:
            raise ValueError(
                f"vocab_size: expected at least {smallest} (256 bytes + specials), got {vocab_size}"
            )
        inner = tokenizers.Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(PIECES), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            min_frequency=2,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    def encode(self, text: str) -> Int32[np.ndarray, "T"]:
        """Token ids of `text`; no specials are added.

        Raises:
          ValueError: `text` has bytes that are not UTF-8 (as the command line hands them over), or half a character.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text: not UTF-8 at character {error.start}; give the text in UTF-8") from error
        self._count_lost([text])
        return np.array(self._inner.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in parallel threads."""
        self._count_lost(texts)
        encoded = self._inner.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(e.ids, np.int32) for e in encoded]

    def encode_written(self, pieces: Iterable[tuple[str, bool]]) -> Int32[np.ndarray, "T"]:
        """Token ids of a text whose pieces have two authors: a chat template, and who fills it in.

        Args:
          pieces: a text each, and whether the template wrote it. There the name of a special token is that token;
            in the other pieces it is characters, as always. Merges may cross the borders.

        Returns:
          The ids; no others are added.
        """
        inner, alias = self._aliased
        names = re.compile("|".join(map(re.escape, sorted(alias, key=len, reverse=True))) or r"(?!)")
        pieces = list(pieces)
        self._count_lost([text for text, _ in pieces])
        parts = (names.sub(lambda m: alias[m[0]], text) if own else text for text, own in pieces)
        return np.array(inner.encode("".join(parts), add_special_tokens=False).ids, np.int32)

    @functools.cached_property
    def _aliased(self) -> tuple[tokenizers.Tokenizer, dict[str, str]]:
        """The same tokenizer with special tokens under names that nobody can type, and those names."""
        drawn = secrets.token_hex(8)
        alias = {name: f"\ue000{drawn}{i}\ue001" for i, name in self._specials.items()}
        raw = json.loads(self.to_json())
        for token in raw["added_tokens"]:
            token["content"] = alias.get(token["content"], token["content"])
        model = raw["model"]
        model["vocab"] = {alias.get(name, name): i for name, i in model["vocab"].items()}
        model["unk_token"] = alias.get(model.get("unk_token"), model.get("unk_token"))
        raw["post_processor"] = None
        inner = tokenizers.Tokenizer.from_str(json.dumps(raw))
        assert all(inner.token_to_id(alias[name]) == i for i, name in self._specials.items())
        return inner, alias

    def _count_lost(self, texts: Sequence[str]) -> None:
        """Counts the bytes that have no token, and names them the first time."""
        if len(self._encodable) == 256:
            return
        lost = Counter(
            byte
            for text in texts
            for byte in text.encode("utf-8", "replace").translate(None, self._encodable)
        )
        if lost and not self.lost:
            named = ", ".join(f"0x{byte:02X} ({count})" for byte, count in sorted(lost.items()))
            print(
                f"tokenizer: {lost.total()} bytes of the text have no token and are left out: {named}",
                file=sys.stderr,
                flush=True,
            )
        self.lost += lost

    def decode(self, ids: Iterable[Any]) -> str:
        """Text of `ids` (integers, a NumPy or a JAX array).

        Specials are skipped; bytes that are not UTF-8 become U+FFFD.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        checked = [self._checked(i) for i in map(int, ids)]
        if not isinstance(self._inner.decoder, decoders.ByteLevel):  # it may take a space off the front
            return self._inner.decode([i for i in checked if self._bytes[i]], skip_special_tokens=True)
        return b"".join(self._bytes[i] for i in checked).decode("utf-8", "replace")

    def token_text(self, token: int | np.integer) -> str:
        r"""One token for the eye: `' the'`, `'⏎'` for a line end, `'\xe2'` for a part of a character."""
        token = self._checked(token)
        if token in self._specials:
            return self._specials[token]
        try:
            text = self._bytes[token].decode()
        except UnicodeDecodeError:
            return "".join(chr(b) if 32 <= b < 127 else f"\\x{b:02x}" for b in self._bytes[token])
        return "".join(VISIBLE.get(c, c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)

    @property
    def token_bytes(self) -> list[bytes]:
        """The bytes of every token; none of a special one."""
        return list(self._bytes)

    @property
    def ids(self) -> dict[str, int]:
        """The id of every token by its name in `tokenizer.json`, specials included."""
        return self._inner.get_vocab(with_added_tokens=True)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that identify the vocabulary and its merges."""
        return hashlib.sha256((self._text or self.to_json()).encode()).hexdigest()[:16]

    def same_as(self, other: Tokenizer) -> bool:
        """Whether both cut every text alike, however their files are written."""
        return self.vocab_size == other.vocab_size and self._inner.to_str() == other._inner.to_str()

    def to_json(self) -> str:
        """The tokenizer in the `tokenizer.json` format of Hugging Face."""
        return self._inner.to_str()

    @classmethod
    def from_json(cls, text: str, **options: Any) -> Tokenizer:
        """Inverse of `to_json`; `options` as of the constructor.

        Raises:
          ValueError: `text` is not a tokenizer, or not one of these kinds.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer.json ({' '.join(str(error).split())[:120]})") from error
        made = cls(inner, **options)
        made._text = text
        return made

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json` to `path`, and beside it `vocabulary.json`: what that format cannot say.

        What was read is written again to the letter, so that it has the same fingerprint under later libraries. A file
        that is there is replaced as a whole: a full disk leaves the old one.
        """
        about = json.dumps({"vocab_size": self.vocab_size, "stop": list(self.stop)}) + "\n"
        for target, text in (
            (Path(path), self._text or self.to_json()),
            (Path(path).with_name(BESIDE), about),
        ):
            temporary = target.with_name(f".{target.name}.tmp")
            temporary.write_text(text, encoding="utf-8", newline="")
            os.replace(temporary, target)

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Tokenizer:
        """Reads what `save` wrote, or a `tokenizer.json` from elsewhere; `options` as of the constructor.

        Raises:
          ValueError: the file is missing, damaged, or holds another kind of tokenizer.
        """
        beside = Path(path).with_name(BESIDE)
        try:
            about = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
            return cls.from_json(Path(path).read_text(encoding="utf-8"), **{**about, **options})
        except (OSError, ValueError, TypeError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(
                f"tokenizer {str(path)!r} cannot be loaded: {reason}; train or copy it again"
            ) from error

    def _checked(self, token: int | np.integer) -> int:
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"token id: expected 0 … {self.vocab_size - 1}, got {token}")
        return int(token)


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins for bytes: visible Latin-1 for itself, the rest from U+0100 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [b for b in range(256) if b not in visible]
    return {chr(b): b for b in visible} | {chr(256 + n): b for n, b in enumerate(hidden)}


def _opener(inner: tokenizers.Tokenizer) -> int | None:
    """The special token that the tokenizer puts before a text; None if it puts none."""
    plain, whole = (inner.encode("a", add_special_tokens=add).ids for add in (False, True))
    if len(whole) > len(plain) + 1 or whole[len(whole) - len(plain) :] != plain:
        raise ValueError("tokenizer: expected at most one token around a text, before it")
    return whole[0] if len(whole) > len(plain) else None


def _reader(
    names: Sequence[str], specials: set[int], own: bool
) -> tuple[Callable[[str], bytes], frozenset[int]]:
    """How the bytes of a token are read off its name (byte-level, or with "▁" and byte fallback); bytes without one."""
    alphabet = _byte_alphabet()
    texts = [name for i, name in enumerate(names) if name and i not in specials]
    missing = set(alphabet) - set(texts)
    if own and missing:
        raise ValueError(
            f"tokenizer: expected all 256 bytes as tokens, {len(missing)} are missing; "
            "train one with Tokenizer.train"
        )
    if not {alphabet[c] for c in missing} & NEEDED:
        known = set(alphabet)
        without = frozenset(alphabet[c] for c in missing)
        return (
            lambda name: bytes(alphabet[c] for c in name) if known.issuperset(name) else name.encode(),
            without,
        )
    fallback = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(256)}
    if not set(fallback) <= set(names):
        raise ValueError(
            f"tokenizer: expected all 256 bytes as tokens, {len(missing)} are missing, and no byte fallback either; "
            "only tokenizers that can encode every text are read"
        )
    return lambda name: fallback.get(name) or name.replace("▁", " ").encode(), frozenset()

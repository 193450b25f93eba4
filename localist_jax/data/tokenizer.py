"""Byte-level BPE: every text encodes, and every token knows how many bytes it stands for."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tokenizers
from jaxtyping import Int32
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

SPECIALS = ("<pad>", "<bos>")
# Contractions; a word, up to three digits, or signs (with the line ends after them), each with at most
# the space before it; line ends; indentation. Merges never cross these borders, so that a word is the
# same token after a space whatever its sentence: anchors rely on that.
PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)| ?\p{L}+| ?\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VISIBLE = {"\n": "⏎", "\t": "⇥"}


class Tokenizer:
    """Text ↔ token ids. Ids 0 and 1 are `PAD` and `BOS`; text never encodes to them."""

    PAD: ClassVar[int] = 0
    BOS: ClassVar[int] = 1

    def __init__(self, inner: tokenizers.Tokenizer):
        """Wraps a byte-level BPE; `train` and `load` are the usual ways here.

        Raises:
          ValueError: `inner` lacks the two specials at ids 0 and 1, or any of the 256 bytes.
        """
        self._inner = inner
        self._inner.encode_special_tokens = True  # a typed "<bos>" is five characters, not an id
        self.vocab_size: int = inner.get_vocab_size()
        names = [inner.id_to_token(i) or "" for i in range(self.vocab_size)]
        missing = set(_byte_alphabet()) - set(names)
        if tuple(names[:2]) != SPECIALS or missing:
            raise ValueError(
                f"tokenizer: expected {', '.join(SPECIALS)} as ids 0, 1 and all 256 bytes as tokens, "
                f"got {names[:2]} and {len(missing)} bytes missing; train one with Tokenizer.train"
            )
        alphabet = _byte_alphabet()
        self._bytes = [b"", b""] + [bytes(alphabet[c] for c in name) for name in names[2:]]
        self.byte_lengths: Int32[np.ndarray, "V"] = np.array([len(b) for b in self._bytes], np.int32)

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
        """Token ids of `text`; no specials are added."""
        return np.array(self._inner.encode(text).ids, np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """`encode` of each text, in parallel threads."""
        return [np.array(e.ids, np.int32) for e in self._inner.encode_batch_fast(list(texts))]

    def decode(self, ids: Iterable[Any]) -> str:
        """Text of `ids` (integers, a NumPy or a JAX array).

        Specials are skipped; bytes that are not UTF-8 become U+FFFD.

        Raises:
          ValueError: an id outside the vocabulary.
        """
        return b"".join(self._bytes[self._checked(i)] for i in map(int, ids)).decode("utf-8", "replace")

    def token_text(self, token: int | np.integer) -> str:
        r"""One token for the eye: `' the'`, `'⏎'` for a line end, `'\xe2'` for a part of a character."""
        token = self._checked(token)
        if token < len(SPECIALS):
            return SPECIALS[token]
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
    def fingerprint(self) -> str:
        """16 hex digits that identify the vocabulary and its merges."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The tokenizer in the `tokenizer.json` format of Hugging Face."""
        return self._inner.to_str()

    @classmethod
    def from_json(cls, text: str) -> Tokenizer:
        """Inverse of `to_json`.

        Raises:
          ValueError: `text` is not a tokenizer, or not one of this kind.
        """
        try:
            inner = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"not a tokenizer.json ({' '.join(str(error).split())[:120]})") from error
        return cls(inner)

    def save(self, path: str | Path) -> None:
        """Writes `tokenizer.json` to `path`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Reads what `save` wrote.

        Raises:
          ValueError: the file is missing, damaged, or holds another kind of tokenizer.
        """
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
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

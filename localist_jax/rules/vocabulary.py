"""The vocabulary as phrases see it: which tokens contain, begin with or complete a piece of folded text.

Made once per tokenizer. Every suffix of every folded token is kept in order, so that a piece is found by bisection and
a rule set needs no pass over the vocabulary.
"""

from __future__ import annotations

import bisect
import codecs
from typing import Any

import numpy as np

from localist_jax.rules.folding import Pattern, fold, is_word

LAST = "\U0010ffff"
Ids = np.ndarray


class Vocabulary:
    """Folded tokens of one tokenizer."""

    def __init__(self, tokenizer: Any):
        """From a `data.Tokenizer`."""
        self.tokenizer = tokenizer
        self.bytes: list[bytes] = tokenizer.token_bytes
        self.size = len(self.bytes)
        self.folded = [fold(decode_piece(piece)) for piece in self.bytes]
        entries = [
            (text[at:], token, at) for token, text in enumerate(self.folded) for at in range(len(text))
        ]
        entries.sort()
        self._suffixes = [suffix for suffix, _, _ in entries]
        self._token = np.array([token for _, token, _ in entries], np.int32)
        self._at = np.array([at for _, _, at in entries], np.int32)
        # A token that begins inside a character means something else after the beginning of that character.
        self.inside = np.array(
            [token for token, piece in enumerate(self.bytes) if piece and 0x80 <= piece[0] < 0xC0], np.int32
        )
        self.between_words = np.array([bool(text) and not is_word(text[0]) for text in self.folded])
        self._token_of = {piece: token for token, piece in enumerate(self.bytes) if piece}
        self._longest = max(map(len, self._token_of))
        self._completing: dict[tuple[str, bool], Ids] = {}
        self._containing: dict[Pattern, Ids] = {}

    def completing(self, rest: str, pattern: Pattern) -> Ids:
        """Tokens that begin with `rest` of a pattern, and end it there."""
        key = (rest, pattern.open_right)
        if key not in self._completing:
            low, high = self._range(rest)
            first = [i for i in range(low, high) if self._at[i] == 0]
            size = len(rest)
            ends = [i for i in first if pattern.ends(self._suffixes[i][size : size + 1])]
            self._completing[key] = self._token[ends]
        return self._completing[key]

    def containing(self, pattern: Pattern) -> Ids:
        """Tokens in which a pattern begins behind the first character, and ends."""
        if pattern not in self._containing:
            low, high = self._range(pattern.text)
            size, found = len(pattern.text), []
            for i in range(low, high):
                token, at = self._token[i], self._at[i]
                if (
                    at
                    and pattern.begins(self.folded[token][at - 1])
                    and pattern.ends(self._suffixes[i][size : size + 1])
                ):
                    found.append(token)
            self._containing[pattern] = np.array(found, np.int32)
        return self._containing[pattern]

    def spellings(self, phrase: str) -> list[tuple[int, ...]]:
        """How a phrase is written in tokens, after a space and without one."""
        bare = phrase.strip().strip("*").strip()
        both = (self.tokenizer.encode(text).tolist() for text in (" " + bare, bare))
        return list(dict.fromkeys(tuple(ids) for ids in both))

    def next_of(self, rest: bytes, allowed: np.ndarray | None = None) -> int | None:
        """The longest (allowed) token with which these bytes can go on; None if there is none."""
        for size in range(min(len(rest), self._longest), 0, -1):
            token = self._token_of.get(rest[:size])
            if token is not None and (allowed is None or allowed[token]):
                return token
        return None

    def count(self, text: bytes) -> int:
        """Tokens that it takes to write these bytes."""
        tokens = 0
        while text:
            token = self.next_of(text)
            assert token is not None  # every byte is a token
            text, tokens = text[len(self.bytes[token]) :], tokens + 1
        return tokens

    def _range(self, piece: str) -> tuple[int, int]:
        return (
            bisect.bisect_left(self._suffixes, piece),
            bisect.bisect_right(self._suffixes, piece + LAST),
        )


def decode_piece(piece: bytes) -> str:
    """Text of a token at the border of a character; a character that it only begins is left out."""
    return codecs.getincrementaldecoder("utf-8")("replace").decode(piece)

"""A text as it grows, token by token: folded, with the places of phrases in it.

A place is a span (start, end) of folded characters. A phrase at the very end is *tentative*: the next character
may turn it into another word.
"""

from __future__ import annotations

import bisect
import codecs
from collections.abc import Iterable, Sequence

from localist_jax.rules.folding import Pattern, fold, is_word

STOPS = ".!?"


class Text:
    """Prompt and output of one request."""

    def __init__(self, pieces: Sequence[bytes]):
        """`pieces` are the bytes of every token."""
        self.pieces = pieces
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.folded = ""
        self.tokens: list[int] = []
        self._token_of: list[int] = []  # of each folded character, the index of the token that showed it
        self._words: list[int] = []  # where words begin
        self._stops: list[int] = []  # where a sentence may end: behind . ! ?

    @property
    def pending(self) -> bytes:
        """Bytes of a character that is not complete yet."""
        return self._decoder.getstate()[0]

    def add(self, token: int) -> None:
        """Appends a token."""
        begun = bool(self.pending)
        more = fold(self._decoder.decode(self.pieces[token]), self.folded or "x")
        start, index = len(self.folded), len(self.tokens)
        self.tokens.append(token)
        self.folded += more
        first = index - 1 if begun and index else index
        self._token_of += [first if i == 0 else index for i in range(len(more))]
        for i, character in enumerate(more, start):
            if is_word(character) and not (i and is_word(self.folded[i - 1])):
                self._words.append(i)
            if character in STOPS:
                self._stops.append(i + 1)

    def peek(self, token: int) -> str:
        """Return the text that a token would append to the folded text."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        decoder.setstate(self._decoder.getstate())
        return fold(decoder.decode(self.pieces[token]), self.folded or "x")

    def words_between(self, start: int, end: int) -> int:
        """Words that begin at start … end−1."""
        return bisect.bisect_left(self._words, end) - bisect.bisect_left(self._words, start)

    def sentence_ends_between(self, start: int, end: int) -> bool:
        """Whether a . ! or ? before white space (or the place `end`) stands in start … end−1."""
        i = bisect.bisect_right(self._stops, start)
        while i < len(self._stops) and self._stops[i] <= end:
            stop = self._stops[i]
            if stop == end or self.folded[stop] == " ":
                return True
            i += 1
        return False

    def tokens_of(self, start: int, end: int) -> range:
        """Indices of the tokens that show the characters start … end−1."""
        return range(self._token_of[start], self._token_of[end - 1] + 1)


class Places:
    """Where given patterns stand in a text; follows it as it grows."""

    def __init__(self, patterns: Iterable[Pattern]):
        self.patterns = tuple(dict.fromkeys(patterns))
        self._by_text: dict[str, list[int]] = {}
        for i, pattern in enumerate(self.patterns):
            self._by_text.setdefault(pattern.text, []).append(i)
        self._lengths: dict[str, list[int]] = {}  # of the texts that end with a character
        for text in sorted(self._by_text, key=len):
            lengths = self._lengths.setdefault(text[-1], [])
            if len(text) not in lengths:
                lengths.append(len(text))
        self._some_open = any(pattern.open_right for pattern in self.patterns)

    def find(self, text: str, start: int) -> list[tuple[int, int, int]]:
        """(pattern, start, end) of all that end at `start` or later, in the order of their ends."""
        found = []
        for end in range(max(start, 1), len(text) + 1):
            behind = text[end : end + 1]
            if behind and not self._some_open and is_word(behind) and is_word(text[end - 1]):
                continue
            for length in self._lengths.get(text[end - 1], ()):
                if length > end:
                    break
                begin = end - length
                for i in self._by_text.get(text[begin:end], ()):
                    pattern = self.patterns[i]
                    if pattern.begins(text[begin - 1 : begin] if begin else "") and pattern.ends(behind):
                        found.append((i, begin, end))
        return found

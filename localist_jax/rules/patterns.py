"""Regular expressions and grammars over the output, by llguidance: no backtracking, time linear in the text.

A format is followed token by token. A forbidden expression P becomes the format "anything that does not contain P":
the complement of (anything)P(anything), so that exactly the tokens that would complete a match are masked. A format is
text; what only lacks a match need not be, so there broken characters count as what a reader sees in their place.
"""

from __future__ import annotations

import bisect
import codecs
import functools
from typing import Any

import llguidance
import numpy as np
import re2

END = 1  # BOS, which is never sampled, stands for the end of the output
BROKEN = "\ufffd".encode()
KEPT = 256  # grammars that are remembered


@functools.lru_cache(maxsize=1024)
def problem_with_regex(regex: str) -> str:
    """Return the error in a regular expression, or "" if enforcement and checker both accept it."""
    options = re2.Options()
    options.log_errors = False
    options.max_mem = 1 << 23
    try:
        if re2.compile(regex, options).fullmatch("") is not None:
            return "it matches the empty text"
    except (re2.error, UnicodeEncodeError) as error:
        return _short(error)
    return problem_with_grammar(_lark(regex)) or problem_with_grammar(_lark_without(regex))


@functools.lru_cache(maxsize=1024)
def problem_with_grammar(grammar: str) -> str:
    """Return the error in a grammar, or ""."""
    try:
        return _short(llguidance.LLMatcher.validate_grammar(llguidance.grammar_from("grammar", grammar)))
    except (ValueError, UnicodeEncodeError) as error:
        return _short(error)


def _short(error: object) -> str:
    parts = getattr(error, "args", ()) or (error,)
    text = parts[0].decode("utf-8", "replace") if isinstance(parts[0], bytes) else str(error)
    return " ".join(text.split())[:200]


def _slashed(regex: str) -> str:
    """Within the slashes of a Lark terminal."""
    out, escaped = [], False
    for character in regex:
        out.append("\\/" if character == "/" and not escaped else character)
        escaped = character == "\\" and not escaped
    return "".join(out).replace("\n", "\\n").replace("\r", "\\r")


def _lark(regex: str) -> str:
    return f"start: /{_slashed(regex)}/"


def _lark_without(regex: str) -> str:
    return f"start: TEXT\nTEXT: /(?s:.*)/ & ~/(?s:.*)({_slashed(regex)})(?s:.*)/"


class PatternEngine:
    """The engine for one vocabulary."""

    def __init__(self, tokenizer: Any):
        """From a `data.Tokenizer`."""
        self.vocabulary = _Vocabulary(tokenizer)
        self._written = self._inner(self.vocabulary.written)
        self._shown = self._inner(self.vocabulary.shown)
        self._fresh: dict[str, Any] = {}

    def format(self, regex: str = "", grammar: str = "") -> Matcher:
        """Follows an output that is to have this form."""
        return Matcher(self._matcher(self._written, grammar or _lark(regex)), self.vocabulary.size)

    def without(self, regex: str) -> Absence:
        """Follows a text that is not to contain a match."""
        return Absence(self._matcher(self._shown, _lark_without(regex)), self.vocabulary)

    def _inner(self, tokens: list[bytes]) -> Any:
        wrapped = llguidance.TokenizerWrapper(_Tokens(tokens, self.vocabulary.encode))
        return llguidance.LLTokenizer(wrapped, n_vocab=len(tokens))

    def _matcher(self, inner: Any, grammar: str) -> Any:
        """One at the beginning of its text; a grammar is read once."""
        if grammar not in self._fresh:
            if len(self._fresh) >= KEPT:
                self._fresh.clear()
            source = llguidance.grammar_from("grammar", grammar)
            self._fresh[grammar] = llguidance.LLMatcher(inner, source, log_level=0)
        return self._fresh[grammar].deep_copy()


class Matcher:
    """One output's place in one expression."""

    def __init__(self, inner: Any, size: int):
        self._inner, self._size = inner, size

    def allowed(self) -> np.ndarray:
        """bool [V]: the tokens that may follow; of `END`, whether the output may end here."""
        return _bits(self._inner)[: self._size]

    def take(self, token: int) -> bool:
        """Moves on by one token; False if it was not allowed, and then for good."""
        return not self._inner.is_stopped() and bool(self._inner.consume_token(token))

    @property
    def may_end(self) -> bool:
        """Whether the output is complete as it stands."""
        return bool(self._inner.is_accepting())

    @property
    def failed(self) -> str:
        """Return the error that stopped the engine, or ""."""
        return _failure(self._inner)


class Absence:
    """Follows a text that is not to contain a match, as a reader sees it: a broken character is U+FFFD.

    Where it contains one nevertheless, what is followed is its longest end that contains none.
    """

    def __init__(self, inner: Any, vocabulary: _Vocabulary):
        self._inner, self._vocabulary = inner, vocabulary
        self._text = ""  # what is followed
        self._pending = b""  # bytes of a character that is not complete yet

    def read(self, more: bytes) -> None:
        """Moves on by these bytes."""
        text, self._pending = _characters(self._pending + more)
        while text:
            data = text.encode()
            free = data[: self._inner.validate_tokens(self._ids(data))].decode("utf-8", "ignore")
            self._take(free)
            text = text[len(free) :]
            if text:  # with its first character a match is complete
                self._restart(self._text + text[0])
                text = text[1:]

    def allowed(self) -> np.ndarray:
        """bool [V]: the tokens behind which the text as it is shown contains no match, and need not come to one."""
        v = self._vocabulary
        if not self._pending:
            return v.whole(_bits(self._inner))
        broken = self._inner.deep_copy()  # any token that does not go on with the character leaves it broken
        held = broken.consume_tokens(self._ids(BROKEN))
        allowed = v.whole(_bits(broken)) if held else np.zeros(v.size, bool)
        going_on = self._inner.deep_copy()
        held = going_on.consume_tokens(self._ids(self._pending))
        raw = _bits(going_on) if held else np.zeros(len(v.shown), bool)
        for shown, tokens, sound in v.behind(self._pending):
            data = shown.encode()
            free = self._inner.validate_tokens(self._ids(data)) == len(data)
            allowed[tokens] = raw[v.raw[tokens]] & free if sound else free
        return allowed

    @property
    def failed(self) -> str:
        """Return the error that stopped the engine, or ""."""
        return _failure(self._inner)

    def _ids(self, data: bytes) -> list[int]:
        return [self._vocabulary.size + byte for byte in data]

    def _take(self, text: str) -> None:
        self._inner.consume_tokens(self._ids(text.encode()))
        self._text += text

    def _restart(self, text: str) -> None:
        """Goes back to the longest end of a text that contains no match."""
        self._inner.reset()
        self._text = ""

        def free(begin: int) -> bool:
            data = text[begin:].encode()
            return bool(self._inner.validate_tokens(self._ids(data)) == len(data))

        self._take(text[bisect.bisect_left(range(len(text)), True, key=free) :])


def _bits(inner: Any) -> np.ndarray:
    return np.unpackbits(np.frombuffer(inner.compute_bitmask(), np.uint8), bitorder="little").astype(bool)


def _failure(inner: Any) -> str:
    return _short(inner.get_error()) if inner.is_error() else ""


def _characters(data: bytes) -> tuple[str, bytes]:
    """Split bytes into text (broken characters as U+FFFD) and the bytes of a character that may still be completed."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    return decoder.decode(data), decoder.getstate()[0]


class _Vocabulary:
    """Tokens as bytes, and as they are shown.

    Attributes:
      written: the bytes of every token.
      shown: the same with broken characters as U+FFFD; behind them a token for every byte, and one with the bytes of
        every token that is no text by itself.
      raw: for every token the one of `shown` that has its bytes.
    """

    def __init__(self, tokenizer: Any):
        self.encode, self.size = tokenizer.encode, tokenizer.vocab_size
        self.written = [b"\xff<pad>", b"\xff<bos>", *tokenizer.token_bytes[2:]]
        self.shown = [*self.written, *(bytes([byte]) for byte in range(256))]
        self.raw = np.arange(self.size)
        begun = []
        for token, piece in enumerate(self.written[2:], 2):
            shown = piece.decode("utf-8", "replace").encode()
            if shown != piece:
                self.raw[token] = len(self.shown)
                self.shown[token] = shown
                self.shown.append(piece)
                text, pending = _characters(piece)
                if text.encode() + pending == piece:
                    begun.append(token)
        self._begun = np.array(
            begun, np.int64
        )  # tokens that end inside a character, and are text up to there
        self._going_on = [
            t for t, piece in enumerate(self.written) if t > END and b"\x80" <= piece[:1] < b"\xc0"
        ]
        self._behind: dict[bytes, list[tuple[str, np.ndarray, bool]]] = {}

    def whole(self, bits: np.ndarray) -> np.ndarray:
        """bool [V] from what may follow at the border of a character."""
        allowed = bits[: self.size].copy()
        allowed[self._begun] &= bits[self.raw[self._begun]]
        return allowed

    def behind(self, pending: bytes) -> list[tuple[str, np.ndarray, bool]]:
        """Tokens that may go on with a character: what is shown then, which ones, and whether all of it is sound."""
        if pending not in self._behind:
            found: dict[tuple[str, bool], list[int]] = {}
            for token in self._going_on:
                data = pending + self.written[token]
                text, rest = _characters(data)
                sound = text.encode() + rest == data
                found.setdefault((data.decode("utf-8", "replace"), sound), []).append(token)
            self._behind[pending] = [(shown, np.array(ts), sound) for (shown, sound), ts in found.items()]
        return self._behind[pending]


class _Tokens:
    """The tokenizer interface that llguidance expects."""

    def __init__(self, tokens: list[bytes], encode: Any):
        self.eos_token_id = self.bos_token_id = END
        self.special_token_ids = [0, END]
        self.tokens, self._encode = tokens, encode

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode(plain).tolist()

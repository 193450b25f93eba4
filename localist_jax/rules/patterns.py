"""Regular expressions and grammars over the output, by llguidance: no backtracking, time linear in the text.

A format is followed token by token. A forbidden expression P becomes the format "anything that does not contain P":
the complement of (anything)P(anything), so that exactly the tokens that would complete a match are masked.
"""

from __future__ import annotations

import functools
from typing import Any

import llguidance
import numpy as np
import re2

END = 1  # BOS, which is never sampled, stands for the end of the output


@functools.lru_cache(maxsize=1024)
def problem_with_regex(regex: str) -> str:
    """What is wrong with a regular expression; "" if nothing is: enforcement and checker both take it."""
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
    """What is wrong with a grammar; "" if nothing is."""
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


class Engine:
    """The engine for one vocabulary."""

    def __init__(self, tokenizer: Any):
        """From a `data.Tokenizer`."""
        self._size = tokenizer.vocab_size
        wrapped = llguidance.TokenizerWrapper(_Vocabulary(tokenizer))
        self._inner = llguidance.LLTokenizer(wrapped, n_vocab=tokenizer.vocab_size)

    def format(self, regex: str = "", grammar: str = "") -> Matcher:
        """Follows an output that is to have this form."""
        source = llguidance.grammar_from("grammar", grammar or _lark(regex))
        return Matcher(llguidance.LLMatcher(self._inner, source, log_level=0), self._size)

    def without(self, regex: str) -> Matcher:
        """Follows an output that is not to contain a match."""
        return self.format(grammar=_lark_without(regex))


class Matcher:
    """One output's place in one expression."""

    def __init__(self, inner: Any, size: int):
        self._inner, self._size = inner, size

    def allowed(self) -> np.ndarray:
        """bool [V]: the tokens that may follow; of `END`, whether the output may end here."""
        bits = np.frombuffer(self._inner.compute_bitmask(), np.uint8)
        return np.unpackbits(bits, bitorder="little")[: self._size].astype(bool)

    def take(self, token: int) -> bool:
        """Moves on by one token; False if it was not allowed, and then for good."""
        return not self._inner.is_stopped() and bool(self._inner.consume_token(token))

    @property
    def may_end(self) -> bool:
        """Whether the output is complete as it stands."""
        return bool(self._inner.is_accepting())

    @property
    def failed(self) -> str:
        """What the engine gave up on; "" if it did not."""
        return _short(self._inner.get_error()) if self._inner.is_error() else ""


class _Vocabulary:
    """What llguidance wants to know of a tokenizer."""

    def __init__(self, tokenizer: Any):
        self.eos_token_id = self.bos_token_id = END
        self.special_token_ids = [0, 1]
        self.tokens = [b"\xff<pad>", b"\xff<bos>", *tokenizer.token_bytes[2:]]
        self._encode = tokenizer.encode

    def __call__(self, text: str | bytes) -> list[int]:
        plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return self._encode(plain).tolist()

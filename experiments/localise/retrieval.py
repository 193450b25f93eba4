"""Questions whose answers stand far back in the text: one needle in unrelated text, and many pairs of keys and values.

Each try is a row of tokens with the answers in place: an answer counts if each of its tokens is the likeliest one after
what stands before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from experiments.localise.reading import Reader
from experiments.localise.subject import Condition
from experiments.localise.texts import CORPORA, Texts, rows_of
from localist_jax.data import Tokenizer

CITIES = (
    "Lisbon", "Oslo", "Cairo", "Lima", "Dublin", "Prague", "Vienna", "Nairobi", "Havana", "Toronto", "Jakarta",
    "Warsaw", "Athens", "Bogota", "Seoul", "Tunis", "Zagreb", "Manila", "Boston", "Riga", "Dakar", "Quito", "Geneva",
    "Sydney",
)  # fmt: skip
NEEDLE = "\nThe secret number of the {} office is {}.\n"
QUESTION = "\nThe secret number of the {} office is "
DEEPEST, SHALLOWEST = 0.05, 0.8  # where the needle stands, as a share of the text
DIGITS = 5
WORDS = (
    "apple", "river", "table", "horse", "cloud", "stone", "garden", "window", "candle", "bridge", "forest", "silver",
    "mirror", "basket", "engine", "ladder", "pocket", "hammer", "island", "winter", "bottle", "carpet", "pencil",
    "rabbit", "temple", "circle", "dragon", "feather", "kitchen", "lemon", "market", "needle",
)  # fmt: skip
PAIRS, ASKED = 32, 16


@dataclasses.dataclass(frozen=True)
class Try:
    """A text with answers: `spans` are (first token, one past the last) of each."""

    tokens: Int32[np.ndarray, " n"]
    spans: tuple[tuple[int, int], ...]


def needles(texts: Texts, count: int, length: int) -> list[Try]:
    """Return tries of one needle each, of about `length` tokens, the needle at evenly spaced depths."""
    encode = texts.tokenizer.encode
    rng = np.random.default_rng(24)
    tries = []
    for nth, hay in enumerate(_hay(texts, count, length - 64)):
        city, number = CITIES[nth % len(CITIES)], str(rng.integers(10 ** (DIGITS - 1), 10**DIGITS))
        depth = DEEPEST + (SHALLOWEST - DEEPEST) * nth / max(1, count - 1)
        at = int(depth * len(hay))
        before = [hay[:at], encode(NEEDLE.format(city, number)), hay[at:], encode(QUESTION.format(city))]
        tries.append(_ended(before, [_answer(texts.tokenizer, number)], [[]]))
    return tries


def pairs(texts: Texts, count: int, length: int) -> list[Try]:
    """Return tries of `ASKED` questions: pairs of a word and a number first, then unrelated text, then questions."""
    encode, rng = texts.tokenizer.encode, np.random.default_rng(25)
    tries = []
    for hay in _hay(texts, count, max(64, length - 512)):
        words = rng.permutation(WORDS)[:PAIRS]
        numbers = [str(x) for x in rng.choice(np.arange(100, 1000), PAIRS, replace=False)]
        listed = "".join(f"The {word} has number {n}.\n" for word, n in zip(words, numbers, strict=True))
        asked = rng.permutation(PAIRS)[:ASKED]
        leads = [encode(f"\nThe {words[i]} has number ") for i in asked]
        answers = [_answer(texts.tokenizer, numbers[i]) for i in asked]
        tries.append(_ended([encode(listed), hay, encode("\n"), leads[0]], answers, [[], *leads[1:]]))
    return tries


def _ended(before: Sequence, answers: Sequence, leads: Sequence) -> Try:
    """Return the text before, then each answer after what leads to it."""
    tokens = list(np.concatenate(before))
    spans = []
    for lead, answer in zip(leads, answers, strict=True):
        tokens += [*lead]
        spans.append((len(tokens), len(tokens) + len(answer)))
        tokens += [*answer]
    return Try(np.array(tokens, np.int32), tuple(spans))


def _answer(tokenizer: Tokenizer, number: str) -> list[int]:
    """Return the tokens of a number, without the blank before it."""
    return tokenizer.encode(f"is {number}").tolist()[len(tokenizer.encode("is ")) :]


def _hay(texts: Texts, count: int, length: int) -> list[Int32[np.ndarray, " n"]]:
    """Return unrelated text, from each corpus by turns."""
    each = -(-count // len(CORPORA))
    rows = [texts.rows(name, "test", length, each).tokens for name in CORPORA]
    return [rows[nth % len(CORPORA)][nth // len(CORPORA)] for nth in range(count)]


def right(reader: Reader, condition: Condition, tries: Sequence[Try]) -> list[list[bool]]:
    """Return for each try which of its answers are the greedy continuation; all rows padded to one length."""
    length = -(-max(len(t.tokens) for t in tries) // 64) * 64
    found = []
    for one in tries:
        row = np.zeros((1, length), np.int32)
        row[0, : len(one.tokens)] = one.tokens
        batch = rows_of(row, row).take(np.array([0]))
        batch = dataclasses.replace(
            batch, segments=(np.arange(length) < len(one.tokens))[None].astype(np.int32)
        )
        places = np.concatenate([np.arange(*span) for span in one.spans])
        said = reader.greedy(condition, batch, places[None] - 1)[0]
        hits = dict(zip(places.tolist(), (said == one.tokens[places]).tolist(), strict=True))
        found.append([all(hits[i] for i in range(*span)) for span in one.spans])
    return found

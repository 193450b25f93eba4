"""bAbI stories as token ids: which tokens are answers, and on which lines an answer rests.

The training files use four names and six places over and over, and small models learn the stories by heart instead of
learning to look. `renamed` makes new stories out of old ones: names, places, things and kinds change roles.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import cases
from localist_jax.data import Tokenizer, corpora

# Words of one kind, which may stand for one another throughout a story.
KINDS = (
    ("Mary", "John", "Daniel", "Sandra"),
    ("bathroom", "hallway", "garden", "office", "bedroom", "kitchen"),
    ("football", "apple", "milk"),
    ("Lily", "Bernhard", "Brian", "Julius", "Greg"),
    ("frog", "lion", "swan", "rhino"),
    ("green", "white", "gray", "yellow"),
)


class Line(NamedTuple):
    """One line of a story; a question has an answer and the numbers of its supporting lines."""

    number: int
    text: str
    answer: str = ""
    support: tuple[int, ...] = ()


@dataclasses.dataclass
class Story:
    """Token ids of one story, which of them are answers, and where each line stands.

    Attributes:
      ids: int [n].
      answers: bool [n].
      support: index of an answer → bool [context], tokens of its supporting lines.
      spans: number of a line → its tokens, answers left out.
      questions: index of an answer → number of its line.
    """

    ids: np.ndarray
    answers: np.ndarray
    support: dict[int, np.ndarray]
    spans: dict[int, slice]
    questions: dict[int, int]


def folder() -> Path:
    """Where bAbI lies."""
    return corpora.find("babi", "the folder en-10k of bAbI QA v1.2") / "en-10k"


@functools.cache
def fingerprint() -> str:
    """Return what tells these texts from others.

    Raises:
      CorpusError: bAbI is not there.
    """
    return cases.fingerprint(folder().glob("qa*.txt"))


def lines(task: int, split: str) -> Iterator[list[Line]]:
    """The stories of a task's "train" or "test" file.

    Raises:
      CorpusError: bAbI is not there.
    """
    found = sorted(folder().glob(f"qa{task}_*_{split}.txt"))
    if not found:
        raise corpora.CorpusError(f"corpus 'babi': no qa{task}_*_{split}.txt in {folder()}")
    story: list[Line] = []
    for line in found[0].read_text(encoding="utf-8").splitlines():
        number, _, rest = line.partition(" ")
        text, *more = rest.split("\t")
        if number == "1" and story:
            yield story
            story = []
        answer, support = (more[0], tuple(int(n) for n in more[1].split())) if more else ("", ())
        story.append(Line(int(number), text.strip(), answer, support))
    yield story


def plain(story: Sequence[Line]) -> str:
    """A story as text, answers included."""
    return " " + " ".join(f"{line.text} {line.answer}".strip() for line in story)


def renamed(story: Sequence[Line], rng: np.random.Generator) -> list[Line]:
    """The same story with the words of each kind in other roles; answers and support fit it."""
    roles = {old: str(new) for kind in KINDS for old, new in zip(kind, rng.permutation(kind), strict=True)}

    def said(text: str) -> str:
        return re.sub(r"\w+", lambda word: roles.get(word[0], word[0]), text)

    return [line._replace(text=said(line.text), answer=said(line.answer)) for line in story]


def encode(story: Sequence[Line], tokenizer: Tokenizer, context: int) -> Story:
    """A story's first lines, as many as fit the context; of an answer the first token."""
    parts: list[np.ndarray] = []
    spans: dict[int, slice] = {}
    support, questions, length = {}, {}, 0
    for number, text, answer, supporting in story:
        said = _encoded(tokenizer, text)
        reply = _encoded(tokenizer, answer)[:1] if answer else said[:0]
        if length + len(said) + len(reply) > context:
            break
        spans[number] = slice(length, length + len(said))
        parts += [said, reply]
        length += len(said) + len(reply)
        if answer:
            mask = np.zeros(context, bool)
            for n in supporting:
                mask[spans[n]] = True
            support[length - 1], questions[length - 1] = mask, number
    ids = np.concatenate(parts)
    return Story(ids, np.isin(np.arange(len(ids)), list(support)), support, spans, questions)


@functools.lru_cache(maxsize=1 << 16)  # bAbI says the same few sentences over and over
def _encoded(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return tokenizer.encode(" " + text)

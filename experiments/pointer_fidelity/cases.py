"""Questions of bAbI, each with the statements before it and nothing else, and what may be done to them.

Earlier questions and their answers are left out: they repeat facts, so that a fact that is taken away would still be
there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence

import numpy as np

from experiments import babi
from experiments.babi import Line
from localist_jax.data import Tokenizer


@dataclasses.dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
      ids: int [n], statements and the question; the answer is predicted from the last of them.
      answer: its token.
      statements: the lines before the question.
      question: its line; `support` names the statements that the answer rests on.
      spans: number of a statement → its tokens among the model's inputs, where 0 is BOS.
    """

    ids: np.ndarray
    answer: int
    statements: tuple[Line, ...]
    question: Line
    spans: dict[int, slice]

    @property
    def others(self) -> list[int]:
        """Numbers of the statements that the answer does not rest on."""
        return [line.number for line in self.statements if line.number not in self.question.support]

    def on(self, numbers: Sequence[int]) -> np.ndarray:
        """bool [n + 1]: the inputs that show these statements."""
        shown = np.zeros(len(self.ids) + 1, bool)
        for number in numbers:
            shown[self.spans[number]] = True
        return shown

    def rule(self, numbers: Sequence[int], fidelity: float) -> str:
        """A rule file that names these statements as what to attend to."""
        facts = [line.text for line in self.statements if line.number in numbers]
        return json.dumps(
            {
                "concepts": {"fact": {"anchors": facts}},
                "rules": [{"id": "look", "then": {"attend": {"to": ["fact"], "fidelity": fidelity}}}],
            }
        )


def made(statements: Sequence[Line], question: Line, tokenizer: Tokenizer) -> Case:
    """The case of these lines."""
    ids: list[np.ndarray] = []
    spans, length = {}, 1
    for line in (*statements, question):
        said = tokenizer.encode(" " + line.text)
        spans[line.number] = slice(length, length + len(said))
        ids.append(said)
        length += len(said)
    answer = int(tokenizer.encode(" " + question.answer)[0])
    return Case(np.concatenate(ids), answer, tuple(statements), question, spans)


def without(case: Case, numbers: Sequence[int], tokenizer: Tokenizer) -> Case:
    """The same question when these statements were never made."""
    left = [line for line in case.statements if line.number not in numbers]
    return made(left, case.question, tokenizer)


def drawn(task: int, tokenizer: Tokenizer, context: int, count: int, seed: int) -> list[Case]:
    """Questions of the test file, at most one of a story, drawn among those that fit and have other statements too.

    Raises:
      ValueError: there are fewer than `count`.
    """
    rng = np.random.default_rng(seed)
    stories = list(babi.lines(task, "test"))
    found = []
    for nth in rng.permutation(len(stories)):
        fitting = [
            case
            for case in _of(stories[nth], tokenizer)
            if len(case.ids) < context and len(case.others) >= len(case.question.support)
        ]
        if fitting:
            found.append(fitting[rng.integers(len(fitting))])
        if len(found) == count:
            return found
    raise ValueError(f"pointer_fidelity: task {task} has {len(found)} fitting stories, {count} wanted")


def _of(story: Sequence[Line], tokenizer: Tokenizer) -> Iterator[Case]:
    statements: list[Line] = []
    for line in story:
        if line.answer:
            yield made(statements, line, tokenizer)
        else:
            statements.append(line)

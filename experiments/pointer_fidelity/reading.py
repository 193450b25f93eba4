"""The answers of a model and where it looks, at any dial and under any rule: one compiled function for all of it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pointer_fidelity.cases import Case
from localist_jax.data import Tokenizer
from localist_jax.locality import Dial
from localist_jax.locality.steering import Steering
from localist_jax.model import Transformer
from localist_jax.rules import parse
from localist_jax.rules.attending import steer
from localist_jax.rules.enforcement import logit_bound
from localist_jax.rules.program import RuleProgram
from localist_jax.rules.request import Request
from localist_jax.rules.vocabulary import Vocabulary
from localist_jax.training.run import Run

BATCH = 20


@dataclasses.dataclass(frozen=True)
class Reading:
    """The answers given to some cases, and attention at the moment of the answer.

    Attributes:
      answers: int [C].
      attention: float32 [C, L, N, S] on the inputs; perception layers come first.
      promised: float64 [C, L, N]; what the rule guarantees on its anchors beyond the window (T3, T5), 0 without one.
      anchors: bool [C, S]; those anchors.
    """

    answers: np.ndarray
    attention: np.ndarray
    promised: np.ndarray
    anchors: np.ndarray


class Reader:
    """Reads cases with the weights of a run."""

    def __init__(self, run: Run):
        self._run, self._vocabulary = run, Vocabulary(run.tokenizer)
        self._bound = logit_bound(run.settings.model, run.state.params)
        self._look = jax.jit(functools.partial(_look, run.model))
        self._program = functools.cache(lambda rules: RuleProgram(parse(rules), self._vocabulary))

    def __call__(
        self, cases: Sequence[Case], locality: float, rules: Sequence[str] = (), *, params=None
    ) -> Reading:
        """Reads them all.

        Args:
          cases: C of them.
          locality: λ of every localist layer.
          rules: a rule file for each case, in force from the answer on; empty: none.
          params: others than the run's.
        """
        c, length = self._run.settings.model, self._run.settings.data.context
        weights = (self._run.state.params if params is None else params, self._run.state.blocks)
        dial = Dial(locality).broadcast(BATCH, c.layers, c.heads)
        answers, attention = [], []
        promised, anchors = np.zeros((len(cases), c.layers, c.heads)), np.zeros((len(cases), length), bool)
        for first in range(0, len(cases), BATCH):
            part = cases[first : first + BATCH]
            tokens = np.zeros((BATCH, length), np.int32)
            last = np.zeros(BATCH, np.int32)
            into = Steering.none(BATCH, c.layers, c.heads, length)
            for row, case in enumerate(part):
                tokens[row, : len(case.ids) + 1] = [Tokenizer.BOS, *case.ids]
                last[row] = len(case.ids)
                if rules:
                    at = first + row
                    promised[at], anchors[at] = self._steered(into, row, case, rules[at])
            said, seen = jax.device_get(self._look(*weights, tokens, last, dial, into))
            answers.append(said[: len(part)])
            attention.append(seen[: len(part)])
        return Reading(np.concatenate(answers), np.concatenate(attention), promised, anchors)

    def _steered(self, into: Steering, row: int, case: Case, rules: str) -> tuple[np.ndarray, np.ndarray]:
        """Writes a case's rule into a row; what it promises, and on which inputs."""
        request = Request(case.ids.tolist(), 1, self._vocabulary.bytes)
        request.adopt(self._program(rules), None)
        report = steer(into, row, request, self._run.settings.model, self._bound)
        far = np.zeros(into.group.shape[1], bool)
        far[: len(case.ids) + 1 - self._run.settings.model.window] = True
        return sum(entry["promised"] for entry in report), (into.group[row] > 0) & far


def _look(model: Transformer, params, blocks, tokens, last, dial: Dial, into: Steering):
    """Answers [B] and attention [B, L, N, S] of each row's last input."""
    real = jnp.arange(tokens.shape[1]) <= last[:, None]
    out, sown = model.apply(
        {"params": params}, tokens, dial, blocks, segments=real.astype(jnp.int32), rules=into,
        stats="open", mutable=["intermediates"],
    )  # fmt: skip
    layers = [sown["intermediates"][s]["attention"]["attention"][0] for s in ("perception", "localist")]
    rows = jnp.arange(tokens.shape[0])
    attention = jnp.concatenate(layers)[:, rows, last]  # [L, B, N, S]
    return out.logits[rows, last].argmax(-1), jnp.moveaxis(attention, 0, 1)

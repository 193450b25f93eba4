"""Coherence under extreme locality: what a model writes at each dial, scored by a model trained dense."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from localist_jax.data import Tokenizer, pack, valid_batches
from localist_jax.locality import Dial
from localist_jax.training.run import Run

PROMPTS, PROMPT, NEW = 32, 48, 64  # prompts from validation text, their tokens, and new tokens for each


def written(run: Run, judge: Run, localities: Sequence[float]) -> dict[str, dict[str, Any]]:
    """By λ, as text: code length of the new tokens under the judge at λ=0, repetition, and the first continuation.

    `repeats` is the share of new token triples that stood in the same text before. Prompts and random streams
    are the same at every dial.
    """
    rows = valid_batches(run.data.valid, PROMPTS, PROMPTS)[0]
    prompts = [np.asarray(row)[:PROMPT].tolist() for row in rows.targets]
    found = {}
    for value in localities:
        texts = [g.tokens for g in _continued(run, prompts, value)]
        found[f"{value:g}"] = {
            "bits_per_token": _code(judge, prompts, texts),
            "repeats": float(np.mean([_repeats(p, t) for p, t in zip(prompts, texts, strict=True)])),
            "prompt": run.tokenizer.decode(prompts[0]),
            "text": run.tokenizer.decode(texts[0]),
        }
    return found


def _continued(run: Run, prompts, locality: float):
    from localist_jax.model import generate

    c = run.settings
    return generate(
        run.model, run.state.params, run.state.blocks, prompts, Dial(locality),
        context=c.data.context, max_new=NEW, temperature=1.0, top_p=0.95, stats="none",
    )  # fmt: skip


def _code(judge: Run, prompts, texts) -> float:
    """Bits per new token, the prompt given."""
    whole = [np.array(p + t) for p, t in zip(prompts, texts, strict=True)]
    new = [np.arange(len(p) + len(t)) >= len(p) for p, t in zip(prompts, texts, strict=True)]
    rows = pack(whole, PROMPT + NEW, Tokenizer.BOS, new)
    figures = judge.evaluator.bits_per_token(
        judge.state.params, judge.state.blocks, valid_batches(rows, PROMPTS), Dial(0.0)
    )
    return figures["bits_per_token"]


def _repeats(prompt: list[int], text: list[int]) -> float:
    both = prompt + text
    triples = [tuple(both[i - 2 : i + 1]) for i in range(2, len(both))]
    first = len(prompt) - 2
    return float(np.mean([t in set(triples[:i]) for i, t in enumerate(triples) if i >= first]))

"""bAbI tasks 1, 2 and 16 as one stream of stories: answers are scored, supporting lines are labelled.

A story is read with its questions and answers in between, as far as it fits the context. What attention puts
on the supporting lines at the moment of the answer is compared with what an even spread would put there.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import babi
from experiments.babi import Story
from experiments.dial_sweep.rows import one_each
from localist_jax.config import Config
from localist_jax.data import Batch, Prepared, Tokenizer, pack
from localist_jax.locality import Dial
from localist_jax.model import Transformer, forward
from localist_jax.training.run import Run

TASKS = (1, 2, 16)
BATCH = 16
STORIES = {
    "train": 2000,
    "accuracy": 400,
    "attention": 96,
}  # of each task: learnt from, answered, looked into
# Of each story that is learnt from, with words in other roles, so that none is worth learning by heart.
COPIES = 5


def prepare(settings: Config) -> Prepared:
    """`STORIES` of each task: to train on `COPIES` of them from its training file, as validation from its test file.

    Raises:
      CorpusError: bAbI is not there.
    """
    return _prepared(settings.data.vocab_size, settings.data.context)


@functools.lru_cache(maxsize=1)  # the same for all seeds, and runs of a process follow one another
def _prepared(vocab_size: int, context: int) -> Prepared:
    texts = (babi.plain(story) for t in TASKS for story in babi.lines(t, "train"))
    tokenizer = Tokenizer.train(texts, vocab_size)
    rng = np.random.default_rng(0)
    told = [story for t in TASKS for story in itertools.islice(babi.lines(t, "train"), STORIES["train"])]
    copies = (
        babi.encode(babi.renamed(story, rng), tokenizer, context) for _ in range(COPIES) for story in told
    )
    train = [s for s in copies if s.answers.any()]
    valid = [s for t in TASKS for s in _answered(t, context, tokenizer, "accuracy")]
    rows = [
        pack([s.ids for s in stories], context, Tokenizer.BOS, [s.answers for s in stories])
        for stories in (train, valid)
    ]
    sizes = {"train": len(train), "valid": len(valid)}
    text = {
        split: int(sum(tokenizer.byte_lengths[s.ids].sum() for s in stories))
        for split, stories in (("train", train), ("valid", valid))
    }
    return Prepared("babi", tokenizer, rows[0], rows[1], documents=sizes, bytes=text)


def _answered(task: int, context: int, tokenizer: Tokenizer, purpose: str) -> list[Story]:
    """The first test stories that have an answer within the context, as many as the purpose wants."""
    stories = (babi.encode(lines, tokenizer, context) for lines in babi.lines(task, "test"))
    return list(itertools.islice((s for s in stories if s.answers.any()), STORIES[purpose]))


def reader(run: Run) -> Callable[[float], dict[str, Any]]:
    """λ → by task: accuracy, and attention on the supporting lines at the moment of the answer.

    `labelled` is the mass on supporting tokens, mean over layers and heads, `labelled_best` that of the best
    head, `labelled_even` what an even spread over the visible tokens would give; `gated_mass` the mass that
    came through gates.
    """
    c, context = run.settings.model, run.settings.data.context
    weights = (run.state.params, run.state.blocks)
    read, look = (jax.jit(partial(f, run.model)) for f in (_right, _attention))
    asked = {task: _answered(task, context, run.tokenizer, "accuracy") for task in TASKS}
    batches = {task: list(_alone(stories, context)) for task, stories in asked.items()}

    def figures(locality: float) -> dict[str, Any]:
        dial = Dial(locality).broadcast(BATCH, c.layers, c.heads)
        found = {}
        for task in TASKS:
            right = sum(int(read(*weights, batch, dial)) for batch in batches[task])
            questions = sum(int(batch.scored.sum()) for batch in batches[task])
            stories = asked[task][: STORIES["attention"]]
            seen = [look(*weights, batch, dial) for batch in _alone(stories, context)]
            accuracy = {"accuracy": right / questions, "questions": questions}
            found[f"babi_{task}"] = accuracy | _labelled(stories, seen)
        return found

    return figures


def _alone(stories: list[Story], context: int) -> Iterator[Batch]:
    """Batches of `BATCH` rows with one story each."""
    for first in range(0, len(stories), BATCH):
        part = stories[first : first + BATCH]
        yield one_each([s.ids for s in part], context, BATCH, [s.answers for s in part])


def _right(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    """How many answers are right."""
    at = {"positions": batch.positions, "segments": batch.segments}
    out = forward(model, params, batch.tokens, dial, blocks, **at)
    return ((out.logits.argmax(-1) == batch.targets) & batch.scored).sum()


def _attention(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    """Attention [L, B, T, N, S] and the mass that gates let through [L, B, N, T]."""
    out, sown = model.apply(
        {"params": params}, batch.tokens, dial, blocks,
        positions=batch.positions, segments=batch.segments, stats="open", mutable=["intermediates"],
    )  # fmt: skip
    layers = [sown["intermediates"][s]["attention"]["attention"][0] for s in ("perception", "localist")]
    return jnp.concatenate(layers), out.stats.gated_mass


def _labelled(stories: list[Story], seen) -> dict[str, float]:
    by_head, even, gated = [], [], []
    for nth, (attention, mass) in enumerate(seen):
        attention, mass = np.asarray(attention), np.asarray(mass)
        for row, story in enumerate(stories[nth * BATCH : (nth + 1) * BATCH]):
            for answer, support in story.support.items():
                # Input position `answer` holds the token before it: it sees BOS and tokens 0 … answer − 1.
                keys = np.concatenate([[False], support])[: attention.shape[-1]]
                by_head.append(attention[:, row, answer][..., keys].sum(-1))
                even.append(support[:answer].sum() / (answer + 1))
                gated.append(mass[:, row, :, answer].mean())
    heads = np.mean(by_head, 0)
    return {
        "labelled": float(heads.mean()),
        "labelled_best": float(heads.max()),
        "labelled_even": float(np.mean(even)),
        "gated_mass": float(np.mean(gated)),
    }

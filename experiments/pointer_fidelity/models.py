"""The models of the study: one for each task, any-dial, that saw answers but never which line they rest on."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments import babi
from localist_jax.config import Config, resolve
from localist_jax.data import Prepared, Tokenizer, pack
from localist_jax.training.loop import train
from localist_jax.training.run import Run

CONTEXT = {1: 96, 2: 160, 16: 96}  # by task
COPIES = 10  # of each story of the training file, with words in other roles


def settings(task: int, seed: int, steps: int) -> Config:
    """Return the configuration of a task's model."""
    return resolve(
        {
            "data": {"corpus": "babi", "vocab_size": 512, "context": CONTEXT[task], "batch": 16, "valid_rows": 128},
            "model": {
                "layers": 3, "width": 64, "heads": 4, "kv_heads": 4, "head_size": 16, "feed_forward": 192, "blocks": 12,
                "block_capacity": 12, "block_units": 16, "window": 1, "perception_window": 8,
            },
            "optimizer": {"learning_rate": 6e-3},
            "gates": {"open_share_target": 0.3},
            "train": {
                "steps": steps, "seed": seed, "eval_every": 10_000, "save_every": 500, "log_every": 50, "keep": 1,
            },
        }
    )  # fmt: skip


def prepared(task: int, context: int, seed: int = 0) -> Prepared:
    """The task's training stories in `COPIES` versions, every token scored; its test stories, answers scored.

    Raises:
      CorpusError: bAbI is not there.
    """
    rng = np.random.default_rng(seed)
    stories = list(babi.lines(task, "train"))
    tokenizer = Tokenizer.train((babi.plain(story) for story in stories), 512)
    renamed = (babi.renamed(story, rng) for _ in range(COPIES) for story in stories)
    learnt = [babi.encode(story, tokenizer, context) for story in renamed]
    asked = [babi.encode(story, tokenizer, context) for story in babi.lines(task, "test")]
    asked = [story for story in asked if story.answers.any()]
    return Prepared(
        "babi",
        tokenizer,
        pack([s.ids for s in learnt], context, Tokenizer.BOS),
        pack([s.ids for s in asked], context, Tokenizer.BOS, [s.answers for s in asked]),
        documents={"train": len(learnt), "valid": len(asked)},
        bytes={
            split: int(sum(tokenizer.byte_lengths[s.ids].sum() for s in part))
            for split, part in (("train", learnt), ("valid", asked))
        },
    )


def trained(made: Config, task: int, folder: Path) -> Run:
    """Return the run of these settings, trained or resumed."""
    return train(made, folder, prepared=prepared(task, made.data.context))

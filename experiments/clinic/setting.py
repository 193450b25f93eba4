"""Model, tokenizer, stream and batches, which every condition of the clinic shares."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from experiments.clinic.world import DOMAINS, Note, World, stream
from localist_jax import config
from localist_jax.data import Batch, Tokenizer
from localist_jax.hierarchy.documents import rows

VOCABULARY, CONTEXT, BATCH, HELD_OUT = 1024, 48, 16, 96
PHASES = (
    (24, (1.0, 0.0, 0.0)),
    (30, (0.4, 0.6, 0.0)),
    (80, (0.25, 0.25, 0.5)),
)  # sessions, shares of the domains


NULL = ((36, (1.0, 0.0, 0.0)),)  # no domains: however documents are divided, it is at random


def settings(seed: int, width: int = 32, steps: int = 400) -> config.Config:
    """A small LLM that learns at a constant rate, as a stream without an end asks for."""
    return config.Config(
        data=config.Data(corpus="clinic", vocab_size=VOCABULARY, context=CONTEXT, batch=BATCH),
        model=config.Model(
            layers=2, width=width, heads=2, kv_heads=2, head_size=width // 2, feed_forward=2 * width, blocks=6,
            block_capacity=8, block_units=8, anchor_capacity=4, window=4, perception_window=8,
        ),
        gates=config.Gates(open_share_target=0.4),
        optimizer=config.Optimizer(kind="adamw", learning_rate=5e-3, final=1.0, warmup=0.02),
        hierarchy=config.Hierarchy(every=16, start=60, survey=16, horizon=128, placebos=8),
        train=config.Train(steps=steps, seed=seed),
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Clinic:
    """One seed: its tokenizer, its stream, and notes of each domain that are held out."""

    tokenizer: Tokenizer
    notes: list[list[Note]]
    held_out: dict[str, list[Note]]

    def batch(self, notes: list[Note]) -> Batch:
        """Notes as a batch."""
        return rows(self.tokenizer.encode_batch([n.text for n in notes]), CONTEXT, Tokenizer.BOS, BATCH)

    def batches(self, notes: list[Note]) -> list[Batch]:
        """Notes as batches; the last one is filled up."""
        return [self.batch(notes[i : i + BATCH]) for i in range(0, len(notes), BATCH)]


def write_notes(case: Clinic, file: Path) -> None:
    """A clinic's stream as JSON lines, in its order, and after it the notes that are held out: a corpus."""
    file.parent.mkdir(parents=True, exist_ok=True)
    splits = {"train": [note for batch in case.notes for note in batch]}
    splits["valid"] = [note for notes in case.held_out.values() for note in notes]
    temporary = file.with_name(f".{file.name}.tmp")
    with temporary.open("w", encoding="utf-8") as lines:
        for split, notes in splits.items():
            for note in notes:
                lines.write(json.dumps({"text": note.text, "domain": note.domain, "split": split}) + "\n")
    os.replace(temporary, file)


def clinic(seed: int, phases=PHASES) -> Clinic:
    """The clinic of one seed. The tokenizer has read notes of all domains, so that it gives none away."""
    world, rng = World(seed), np.random.default_rng([seed, 3])
    texts = [world.note(domain, rng).text for domain in DOMAINS for _ in range(1000)]
    held_out = {domain: [world.note(domain, rng) for _ in range(HELD_OUT)] for domain in DOMAINS}
    return Clinic(Tokenizer.train(texts, VOCABULARY), stream(world, phases, BATCH, seed), held_out)

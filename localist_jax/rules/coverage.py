"""How well blocks cover concepts, in bits: what a position's block tells of whether a concept's anchor stands there.

A concept that no block covers wants one, or, where its documents lie outside every LLM's domain, an LLM: `candidates`
names them, `wanted` those of a run's rules, for the recruiters of blocks and of LLMs. These try them by their ordinary
rule of evidence; the concept's anchors say which positions, or which documents, the newcomer begins with.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits
from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.recruitment.proposals import Concept
from localist_jax.rules import versions
from localist_jax.rules.folding import Pattern
from localist_jax.rules.language import RuleSet
from localist_jax.rules.text import Places, Text
from localist_jax.training.run import Run, write_json

FILE = "concepts.json"  # beside a run's rules: those of its active set that were found uncovered
Row = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Coverage:
    """The coverage of one concept.

    Attributes:
      bits: the largest I(block = k; anchor here) over blocks k per position, less its bias 1/(2n·ln 2), at least 0.
      ceiling_bits: H(anchor here): what a block of the concept's own would reach.
      block: that k.
      positions: where anchors stand.
    """

    concept: str
    bits: float
    ceiling_bits: float
    block: int
    positions: int


def coverage(rules: RuleSet, tokenizer: Any, rows: Iterable[Row], blocks: int) -> list[Coverage]:
    """Coverage of every concept, on rows of (token ids, block of each) as a model routes them."""
    counts = {name: np.zeros((2, blocks)) for name in rules.concepts}
    for _, block, here in _marked(rules, tokenizer, rows):
        for name, marks in here.items():
            np.add.at(counts[name], (marks, np.asarray(block)), 1)
    return [_of(name, table) for name, table in counts.items()]


def _marked(
    rules: RuleSet, tokenizer: Any, rows: Iterable[Row]
) -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
    """Each row, and for every concept where its anchors stand (0 or 1 by token)."""
    anchors = {name: [p for a in rules.anchors(name) for p in Pattern.all_of(a)] for name in rules.concepts}
    places = Places([p for ps in anchors.values() for p in ps])
    pieces = tokenizer.token_bytes
    for tokens, block in rows:
        text = Text(pieces)
        for token in tokens:
            text.add(int(token))
        here = {name: np.zeros(len(tokens), int) for name in anchors}
        for place, begin, end in places.find(text.folded, 0):
            for name, ps in anchors.items():
                if places.patterns[place] in ps:
                    here[name][list(text.tokens_of(begin, end))] = 1
        yield tokens, block, here


def _of(name: str, table: np.ndarray) -> Coverage:
    total = table.sum()
    if not table[1].sum():
        return Coverage(name, 0.0, 0.0, 0, 0)
    by_block = np.stack(
        [np.stack([table.sum(1) - table[:, k], table[:, k]], 1) for k in range(table.shape[1])]
    )
    told = np.asarray(bits.mutual_information(jnp.asarray(by_block))) - 1 / (2 * total * bits.LN2)
    best = int(told.argmax())
    ceiling = float(bits.binary_entropy(jnp.asarray(table[1].sum() / total)))
    return Coverage(name, max(0.0, float(told[best])), ceiling, best, int(table[1].sum()))


def uncovered(found: Iterable[Coverage], share: float = 0.5) -> list[str]:
    """Concepts that occur, and of which every block tells less than this share of the ceiling: recruits' business."""
    return [c.concept for c in found if c.positions and c.bits < share * c.ceiling_bits]


def routed(run: Run, batches: int = 4) -> list[Row]:
    """The first validation rows as a run routes them at λ=1."""
    read = jax.jit(forward, static_argnums=0)
    rows = []
    for batch in run.valid[:batches]:
        out = read(
            run.model, run.state.params, batch.tokens, Dial(1.0), run.state.blocks,
            positions=batch.positions, segments=batch.segments,
        )  # fmt: skip
        keep = np.asarray(batch.segments) > 0
        rows += [
            (t[k], b[k])
            for t, b, k in zip(np.asarray(batch.tokens), np.asarray(out.blocks), keep, strict=True)
        ]
    return rows


def concept(rules: RuleSet, tokenizer: Any, rows: Iterable[Row], name: str, most: int) -> Concept:
    """A concept as the recruiter wants it: the tokens that show its anchors, at most `most` of them.

    A token's log-odds are ln((n + ½)/(m + ½)) nats, n of its places being anchors and m not; only those above 0 count.
    """
    counts = np.zeros((2, tokenizer.vocab_size))
    for tokens, _, here in _marked(rules, tokenizer, rows):
        np.add.at(counts, (here[name], tokens), 1)
    log_odds = np.log(counts[1] + 0.5) - np.log(counts[0] + 0.5)
    telling = [
        int(t) for t in np.argsort(-counts[1], kind="stable")[:most] if counts[1, t] and log_odds[t] > 0
    ]
    return Concept(name, {token: round(float(log_odds[token]), 4) for token in telling})


def candidates(rules: RuleSet, tokenizer: Any, rows: Sequence[Row], blocks: int, most: int) -> list[Concept]:
    """The concepts that occur and that none of so many blocks covers, for a recruiter of blocks or of LLMs.

    Args:
      rules, tokenizer: as of `coverage`.
      rows: (token ids, block of each); the blocks of several LLMs are numbered through.
      blocks: how many there are.
      most: anchor tokens of a concept.
    """
    names = uncovered(coverage(rules, tokenizer, rows, blocks))
    made = [concept(rules, tokenizer, rows, name, most) for name in names]
    return [c for c in made if c.anchors]


def remembered(workdir: Path) -> list[Concept] | None:
    """Return what `wanted` found for a run's active rules, or None if it has not been called."""
    rules, kept = versions.stored(workdir), versions.folder(workdir) / FILE
    if rules is None or not kept.is_file():
        return None
    found = json.loads(kept.read_text(encoding="utf-8"))
    if found["version"] != rules.version:
        return None
    return [
        Concept(name, {int(t): x for t, x in anchors.items()}) for name, anchors in found["concepts"].items()
    ]


def wanted(workdir: Path) -> list[Concept]:
    """The concepts of a run's active rules that none of its blocks covers; [] where it has no rules or no checkpoint.

    They are looked for once per rule set and kept beside it: a trial that a checkpoint interrupted goes on with them.
    """
    rules, found = versions.stored(workdir), remembered(workdir)
    if rules is None:
        return []
    if found is not None:
        return found
    if not (workdir / "checkpoints").is_dir():
        return []
    run = Run.open(workdir)
    model = run.settings.model
    made = candidates(rules, run.tokenizer, routed(run), model.block_capacity, model.anchor_capacity)
    kept = versions.folder(workdir) / FILE
    write_json(kept, {"version": rules.version, "concepts": {c.name: c.anchors for c in made}})
    return made

"""Signatures: cheap statistics of documents, by which domains are told apart before any LLM is asked.

A document's signature is how often it has each token; a member's, how often the documents that it was given have it.
Two uses: which members are worth asking about a text (a *shortlist*), and how the documents of one member could be
*divided*, where some of them cost many more bits than the others.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from localist_jax.data import Batch
from localist_jax.recruitment.proposals import Concept

SMOOTHING = 0.5  # occurrences that every token is granted beforehand (Krichevsky–Trofimov)
# Explained share of variance from which a division, unless it is a "topic", looks like the arrival of a domain.
ARRIVAL = 0.6
ROUNDS = 12  # of reassigning documents to the sides of a division
KINDS = ("hard", "topic")  # what divisions are chosen for
HARDEST = 0.25  # share of the documents that a division begins with
TINY = 1e-12  # bits², where all documents cost the same
RESTARTS = 3  # divisions that begin at random instead


def counts(batch: Batch, vocab_size: int) -> Float[np.ndarray, "B V"]:
    """How often each row has each token, among those that are scored."""
    rows, columns = np.nonzero(np.asarray(batch.scored))
    found = np.zeros((batch.tokens.shape[0], vocab_size))
    np.add.at(found, (rows, np.asarray(batch.targets)[rows, columns]), 1)
    return found


def log_likelihood(
    documents: Float[np.ndarray, "n V"], signatures: Float[np.ndarray, "M V"]
) -> Float[np.ndarray, "n M"]:
    """ln P(document | signature) of independent tokens, nats."""
    return documents @ _log_shares(signatures).T


def shortlist(
    documents: Float[np.ndarray, "n V"],
    signatures: Float[np.ndarray, "M V"],
    members: Sequence[int],
    size: int,
) -> Int[np.ndarray, "n s"]:
    """The members whose signatures fit each document best, best first; at most `size` of them."""
    fit = log_likelihood(documents, signatures[list(members)])
    return np.asarray(members)[np.argsort(-fit, 1, kind="stable")[:, :size]]


class Memory:
    """Documents of one member, each new one in the place of a random one when all are taken.

    So the past fades, but a few sessions of one domain do not push all others out.

    Args:
      size: documents.
      rng: chooses the places.
    """

    def __init__(self, size: int, rng: np.random.Generator):
        self._size, self._rng = size, rng
        self._documents: list[np.ndarray] = []
        self._bits: list[float] = []

    def __len__(self) -> int:
        return len(self._bits)

    def put(self, document: Float[np.ndarray, " V"], bits: float) -> None:
        """Remembers the counts and the code length of a document."""
        if len(self) < self._size:
            self._documents.append(document)
            self._bits.append(bits)
        else:
            at = int(self._rng.integers(self._size))
            self._documents[at], self._bits[at] = document, bits

    def arrays(self) -> tuple[Float[np.ndarray, "n V"], Float[np.ndarray, " n"]]:
        """Counts and code lengths of all that is remembered."""
        return np.stack(self._documents), np.asarray(self._bits)


@dataclasses.dataclass(frozen=True)
class Division:
    """Documents divided in two by their tokens.

    Attributes:
      kind: "hard" or "topic", what it was chosen for; or "concept".
      direction, offset: a document goes to the newcomer where counts·direction + offset > 0; nats.
      share: of the surveyed documents that do.
      excess_bits: by which those documents cost more than the others do per token, in all.
      explained: share of the variance of bits per token between documents that lies between the two sides.
      ways: how many divisions this one was picked from.
      concept: by whose anchors the documents are found; None: nobody named one.
    """

    kind: str
    direction: Float[np.ndarray, " V"]
    offset: float
    share: float
    excess_bits: float
    explained: float
    ways: int
    concept: Concept | None = None

    @property
    def name(self) -> str:
        """Return the name of the concept, or ""."""
        return self.concept.name if self.concept else ""

    @property
    def is_arrival(self) -> bool:
        """Whether it looks as if a new domain has arrived."""
        return self.kind == "hard" and self.explained > ARRIVAL

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, every digit kept."""
        concept = self.concept and [self.concept.name, [*self.concept.anchors.items()]]
        return {**vars(self), "direction": self.direction.tolist(), "concept": concept}

    @classmethod
    def of_dict(cls, found: Mapping[str, Any]) -> Division:
        """Return the division that `to_dict` wrote."""
        concept = found["concept"] and Concept(found["concept"][0], dict(found["concept"][1]))
        return cls(**{**found, "direction": np.asarray(found["direction"]), "concept": concept})

    def takes(self, documents: Float[np.ndarray, "n V"]) -> Bool[np.ndarray, " n"]:
        """Which documents go to the newcomer."""
        return documents @ self.direction + self.offset > 0


def divide(
    documents: Float[np.ndarray, "n V"],
    code: Float[np.ndarray, " n"],
    rng: np.random.Generator,
    smallest: int,
) -> list[Division]:
    """Ways to divide documents; the newcomer gets the side that costs more bits per token.

    Several are made, each by a mixture of two multinomials with hard assignments: one begins with the hardest
    documents, the others at random. Of these, "hard" explains most of the variance of bits per token between
    documents, as the arrival of a new domain does; "topic" tells the documents apart best by their tokens.

    Args:
      documents: their counts.
      code: bits of each.
      rng: for the random beginnings.
      smallest: documents on either side at the least.

    Returns:
      "hard", then "topic"; nothing where no division has enough documents on both sides.
    """
    rate = code / np.maximum(documents.sum(1), 1)
    beginnings = [rate > np.quantile(rate, 1 - HARDEST)]
    beginnings += [rng.random(len(rate)) < 0.5 for _ in range(RESTARTS)]
    found = []
    for mine in beginnings:
        for _ in range(ROUNDS):
            direction, offset = _separating(documents, mine)
            mine = documents @ direction + offset > 0
        if min(mine.sum(), (~mine).sum()) < smallest:
            continue
        explained, excess = _compared(documents, code, mine)
        if excess < 0:
            mine = ~mine
            explained, excess = _compared(documents, code, mine)
        sides = [documents[side].sum(0) for side in (mine, ~mine)]
        told = sum(float(x @ (_log_shares(x) - _log_shares(sum(sides)))) for x in sides)
        found.append((explained, told, mine, excess))
    chosen = (
        [("hard", max(found, key=lambda f: f[0])), ("topic", max(found, key=lambda f: f[1]))] if found else []
    )
    return [
        Division(
            kind, *_separating(documents, mine), share=float(mine.mean()), excess_bits=excess,
            explained=float(explained), ways=len(KINDS) * len(beginnings),
        )
        for kind, (explained, _, mine, excess) in chosen
    ]  # fmt: skip


def of_concept(
    documents: Float[np.ndarray, "n V"], code: Float[np.ndarray, " n"], concept: Concept, smallest: int
) -> Division | None:
    """The documents that show a concept's anchors, if they lie outside the domain of whoever coded them.

    Args:
      documents, code, smallest: as of `divide`.
      concept: its anchors.

    Returns:
      None where there are too few on either side, or they cost no more bits per token than the others.
    """
    direction = np.zeros(documents.shape[1])
    direction[list(concept.anchors)] = list(concept.anchors.values())
    mine = documents @ direction > 0
    if min(mine.sum(), (~mine).sum()) < smallest:
        return None
    explained, excess = _compared(documents, code, mine)
    if excess <= 0:
        return None
    return Division(
        "concept", direction, 0.0, share=float(mine.mean()), excess_bits=excess, explained=explained, ways=1,
        concept=concept,
    )  # fmt: skip


def _compared(documents: np.ndarray, code: np.ndarray, mine: np.ndarray) -> tuple[float, float]:
    """Share of the variance of bits per token that lies between two sides, and what one costs more than the other."""
    tokens = documents.sum(1)
    rate = code / np.maximum(tokens, 1)
    one, other = (code[side].sum() / max(tokens[side].sum(), 1) for side in (mine, ~mine))
    explained = mine.mean() * (~mine).mean() * (one - other) ** 2 / max(rate.var(), TINY)
    return float(explained), float(tokens[mine].sum() * (one - other))


def _separating(documents: np.ndarray, mine: np.ndarray) -> tuple[np.ndarray, float]:
    """Log-likelihood ratio of the two sides, with their shares as prior."""
    sides = np.stack([documents[mine].sum(0), documents[~mine].sum(0)])
    one, other = _log_shares(sides)
    prior = np.log(mine.sum() + SMOOTHING) - np.log((~mine).sum() + SMOOTHING)
    return one - other, float(prior)


def _log_shares(signatures: np.ndarray) -> np.ndarray:
    smooth = signatures + SMOOTHING
    return np.log(smooth) - np.log(smooth.sum(-1, keepdims=True))

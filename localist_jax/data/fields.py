"""Fields of knowledge: the same words, other rules in each, and a few words of its own that tell which field it is.

A document goes through stretches. Each is about one field, and opens with a word of that field. After it come more of
those words, and words that all fields share: what follows a shared word depends on the field. So a word alone says
little, and whoever knows the field needs a far smaller table than whoever has to hold all of them in one.

The field is known from the words so far, so the ideal code length is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32

from localist_jax.data.synthetic import WORDS

_WORLD, _SAMPLE = 0, 1  # keep the draws of worlds and of documents apart when their seeds agree


@dataclass(frozen=True, eq=False)
class Fields:
    """The generating process. S shared words, then O own words of each of K* fields; all counted from 0.

    Attributes:
      words: by number.
      shared: S.
      own_rate: share of a field's own words within a stretch.
      switch: probability that a new stretch begins.
      successors: [K*, S, n], what may follow a shared word in each field; with probability `likely` [n].
    """

    words: tuple[str, ...]
    shared: int
    own_rate: float
    switch: float
    successors: Int32[np.ndarray, "K S n"]
    likely: Float64[np.ndarray, " n"]

    @classmethod
    def create(
        cls,
        seed: int,
        fields: int,
        *,
        shared: int = 32,
        own: int = 8,
        branching: int = 2,
        own_rate: float = 0.5,
        switch: float = 0.02,
    ) -> Fields:
        """Draws a world; the same seed and sizes give the same."""
        rng = np.random.default_rng([_WORLD, seed])
        count = shared + fields * own
        names = rng.permutation(len(WORDS))[:count]
        tables = [[rng.permutation(shared)[:branching] for _ in range(shared)] for _ in range(fields)]
        halves = 0.5 ** np.arange(1, branching + 1)
        return cls(
            words=tuple(WORDS[i] for i in names),
            shared=shared,
            own_rate=own_rate,
            switch=switch,
            successors=np.asarray(tables, np.int32),
            likely=halves / halves.sum(),
        )

    @property
    def fields(self) -> int:
        """K*."""
        return len(self.successors)

    @property
    def own(self) -> int:
        """O."""
        return (len(self.words) - self.shared) // self.fields

    def sample(
        self, seed: int, documents: int, length: int, shares: Float64[np.ndarray, " K"]
    ) -> tuple[Int32[np.ndarray, "R T"], Int32[np.ndarray, "R T"]]:
        """Draws documents: numbers of words, and the field of each; `shares` of the fields need not sum to 1."""
        rng = np.random.default_rng([_SAMPLE, seed])

        def drawn(cumulative: np.ndarray) -> np.ndarray:
            return (cumulative <= rng.random((documents, 1))).sum(1)

        fields = np.cumsum(shares) / np.sum(shares)
        likely = np.cumsum(self.likely)
        field, word = drawn(fields), rng.integers(self.shared, size=documents)
        words, labels = (np.empty((documents, length), np.int32) for _ in range(2))
        for t in range(length):
            begins = (rng.random(documents) < self.switch) | (t == 0)
            field = np.where(begins, drawn(fields), field)
            is_own = begins | (rng.random(documents) < self.own_rate)
            own = self.shared + field * self.own + rng.integers(self.own, size=documents)
            word = np.where(is_own, word, self.successors[field, word, drawn(likely)])
            words[:, t], labels[:, t] = np.where(is_own, own, word), field
        return words, labels

    def texts(self, documents: Int32[np.ndarray, "R T"]) -> list[str]:
        """Documents as words, each after a space."""
        return ["".join(f" {self.words[i]}" for i in numbers) for numbers in documents]

    def code_length(self, words: Int32[np.ndarray, " T"], shares: Float64[np.ndarray, " K"]) -> np.ndarray:
        """Ideal code length of each word of one document in bits, the fields' shares known: float64 [T]."""
        enter = np.asarray(shares) / np.sum(shares)
        probability = np.empty(len(words))
        field, last = -1, None  # the first shared word follows one that was never seen
        for t, word in enumerate(words):
            begins = self.switch if t else 1.0
            if word >= self.shared:
                now = (int(word) - self.shared) // self.own
                stays = (1 - begins) * self.own_rate * (now == field)
                probability[t] = (begins * enter[now] + stays) / self.own
                field = now
                continue
            table = self.successors[field]
            follows = (table == word) * self.likely
            step = follows.sum() / self.shared if last is None else follows[last].sum()
            probability[t] = (1 - begins) * (1 - self.own_rate) * step
            last = word
        with np.errstate(divide="ignore"):
            return -np.log2(probability)


def shares_by_phase(fields: int) -> list[np.ndarray]:
    """Fields appear one after another: a new one fills half of the text in its phase; the older ones are skewed."""
    phases = []
    for known in range(1, fields + 1):
        shares = np.zeros(fields)
        shares[:known] = 1 / np.arange(1, known + 1) ** 0.5
        if known > 1:
            shares[known - 1] = shares[: known - 1].sum()
        phases.append(shares / shares.sum())
    return phases


def stream(seed: int, fields: int, documents: int, length: int) -> tuple[Fields, Int32[np.ndarray, "R T"]]:
    """A world, and the documents in which its fields appear one after another, as many for each phase."""
    world = Fields.create(seed, fields)
    phases = enumerate(shares_by_phase(fields), 1)
    return world, np.concatenate([world.sample(nth, documents, length, shares)[0] for nth, shares in phases])


def lasting_shares(fields: int) -> np.ndarray:
    """How often each field is met when none is new: skewed, as 1/√rank."""
    shares = 1 / np.arange(1, fields + 1) ** 0.5
    return shares / shares.sum()

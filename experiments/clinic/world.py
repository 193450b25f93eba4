"""A generated clinical world with known domains, known concepts and known facts.

Three kinds of notes: general medicine, radiology, pharmacology. Each seed draws the facts anew: which complaint speaks
for which diagnosis, where which finding is seen and by which modality, which drug belongs to which class, what it does
and with what it interacts. The words of one kind partly recur in the others, in other company. Every word is labelled
with its concept kind, so that what a model has found can be compared with what is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.clinic import words

DOMAINS = ("general", "radiology", "pharmacology")
KINDS = (
    "function", "complaint", "diagnosis", "plan", "habit", "modality", "anatomy", "finding", "margin", "signal",
    "category", "drug", "mechanism", "target", "effect", "route", "interval", "advice", "number",
)  # fmt: skip
Part = tuple[str, str]  # text and its kind


@dataclass(frozen=True)
class Note:
    """A document with its truth: text, and (text, kind) of its parts in order."""

    domain: str
    text: str
    parts: tuple[Part, ...]


class World:
    """The facts of one seed, and notes about them.

    Args:
      seed: of the facts.
    """

    def __init__(self, seed: int):
        rng, families = np.random.default_rng([seed, 1]), len(words.SUFFIXES)
        self._causes = {d: rng.choice(words.COMPLAINTS, 3, replace=False) for d in words.DIAGNOSES}
        self._plans = {d: rng.choice(words.PLANS, 2, replace=False) for d in words.DIAGNOSES}
        self._habits = {d: rng.choice(words.HABITS, 3, replace=False) for d in words.DIAGNOSES}
        self._seen = {a: rng.choice(words.FINDINGS, 4, replace=False) for a in words.ANATOMY}
        self._by = {a: rng.choice(words.MODALITIES, 2, replace=False) for a in words.ANATOMY}
        self._looks = {
            f: [rng.choice(kind, 2, replace=False) for kind in (words.MARGINS, words.SIGNALS)]
            for f in words.FINDINGS
        }
        self._means = {(a, f): rng.choice(words.CATEGORIES) for a in words.ANATOMY for f in self._seen[a]}
        stems = rng.permutation([a + b for a in words.PREFIXES for b in words.PREFIXES if a != b])
        self.drugs = [
            str(stem) + words.SUFFIXES[i % len(words.SUFFIXES)] for i, stem in enumerate(stems[:80])
        ]
        self._acts = [(rng.choice(words.MECHANISMS), rng.choice(words.TARGETS)) for _ in words.SUFFIXES]
        self._treats = [rng.choice(words.DIAGNOSES, 3, replace=False) for _ in words.SUFFIXES]
        self._harms = [rng.choice(words.EFFECTS, 2, replace=False) for _ in words.SUFFIXES]
        self._given = [
            (rng.choice(words.ROUTES), rng.choice(words.INTERVALS), 5 * rng.integers(1, 20))
            for _ in self.drugs
        ]
        self._clashes = [
            {
                int(other): (rng.choice(words.EFFECTS), rng.choice(words.ADVICE))
                for other in rng.choice(families, 4, replace=False)
            }
            for _ in words.SUFFIXES
        ]

    @property
    def concepts(self) -> int:
        """How many things the notes speak of."""
        lists = [value for name, value in vars(words).items() if name.isupper() and "FIXES" not in name]
        return len(self.drugs) + sum(map(len, lists))

    def note(self, domain: str, rng: np.random.Generator) -> Note:
        """A note of one domain."""
        parts = getattr(self, f"_{domain}")(rng)
        return Note(domain, " ".join(text for text, _ in parts), tuple(parts))

    def _general(self, rng: np.random.Generator) -> list[Part]:
        diagnosis = _skewed(rng, words.DIAGNOSES)
        first, second = rng.permutation(self._causes[diagnosis])[:2]
        denied = _other(rng, words.COMPLAINTS, self._causes[diagnosis])
        return _parts(
            ("a", ""), (str(rng.integers(2, 9) * 10), "number"), ("year old", ""), (rng.choice(["man", "woman"]), ""),
            ("presents with", ""), (first, "complaint"), ("and", ""), (second, "complaint"), ("for", ""),
            (str(rng.integers(2, 9)), "number"), (rng.choice(["days", "weeks"]), ""), (". denies", ""),
            (denied, "complaint"),
            (". history :", ""), (rng.choice(self._habits[diagnosis]), "habit"), (". assessment :", ""),
            (diagnosis, "diagnosis"), (". plan :", ""), (rng.choice(self._plans[diagnosis]), "plan"), (".", ""),
        )  # fmt: skip

    def _radiology(self, rng: np.random.Generator) -> list[Part]:
        organ = _skewed(rng, words.ANATOMY)
        finding = rng.choice(self._seen[organ])
        margins, signals = self._looks[finding]
        absent = _other(rng, words.FINDINGS, self._seen[organ])
        return _parts(
            ("exam :", ""), (rng.choice(self._by[organ]), "modality"), ("of the", ""), (organ, "anatomy"),
            (". technique : standard . findings : there is a", ""), (str(rng.integers(2, 9)), "number"), ("mm", ""),
            (rng.choice(margins), "margin"), (rng.choice(signals), "signal"), (finding, "finding"), ("in the", ""),
            (rng.choice(["left", "right"]), ""), (organ, "anatomy"), (". no", ""), (absent, "finding"),
            ("is seen . impression :", ""), (self._means[organ, finding], "category"), (finding, "finding"), (".", ""),
        )  # fmt: skip

    def _pharmacology(self, rng: np.random.Generator) -> list[Part]:
        drug = int(_skewed(rng, np.arange(len(self.drugs))))
        family = drug % len(words.SUFFIXES)
        acts, target = self._acts[family]
        route, interval, dose = self._given[drug]
        other_family = rng.choice(list(self._clashes[family]))
        other = rng.choice([d for i, d in enumerate(self.drugs) if i % len(words.SUFFIXES) == other_family])
        effect, advice = self._clashes[family][int(other_family)]
        return _parts(
            (self.drugs[drug], "drug"), (acts, "mechanism"), (target, "target"), ("and is given", ""), (route, "route"),
            ("at", ""), (str(dose), "number"), ("mg", ""), (interval, "interval"), ("for", ""),
            (rng.choice(self._treats[family]), "diagnosis"), (". it may cause", ""),
            (rng.choice(self._harms[family]), "effect"),
            (". with", ""), (other, "drug"), ("there is a risk of", ""), (effect, "effect"), (":", ""),
            (advice, "advice"),
            (".", ""),
        )  # fmt: skip


def stream(
    world: World, phases: Sequence[tuple[int, Sequence[float]]], batch: int, seed: int, session: int = 4
) -> list[list[Note]]:
    """Batches of notes. Notes come in sessions: some batches of one department, then some of another.

    Args:
      world: that they speak of.
      phases: (sessions, shares of the domains in the order of `DOMAINS`) of each phase.
      batch: notes of a batch.
      seed: of the notes.
      session: batches of a session.
    """
    rng = np.random.default_rng([seed, 2])
    batches = []
    for sessions, shares in phases:
        for domain in rng.choice(DOMAINS, sessions, p=np.asarray(shares) / np.sum(shares)):
            batches += [[world.note(domain, rng) for _ in range(batch)] for _ in range(session)]
    return batches


def _parts(*parts: tuple[object, str]) -> list[Part]:
    return [(str(text), kind or "function") for text, kind in parts]


def _skewed(rng: np.random.Generator, things):
    """One of them, the earlier ones more often (Zipf, exponent ½)."""
    weights = np.arange(1, len(things) + 1) ** -0.5
    return things[rng.choice(len(things), p=weights / weights.sum())]


def _other(rng: np.random.Generator, things: Sequence[str], than: Sequence[str] | np.ndarray) -> str:
    return str(rng.choice([x for x in things if x not in than]))

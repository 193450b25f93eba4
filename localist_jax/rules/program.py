"""A rule set compiled for one vocabulary: what the steps of a generation look up.

Everything here is shared by all requests and never changes; a swap replaces the whole program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from localist_jax.rules import language as lang
from localist_jax.rules.effects import Effects, lifting
from localist_jax.rules.folding import Pattern, is_word
from localist_jax.rules.language import Present, RuleSet
from localist_jax.rules.text import Places
from localist_jax.rules.vocabulary import Vocabulary

Truth = Sequence[bool]  # by atom
KEPT = 256  # masks that are remembered


@dataclasses.dataclass(frozen=True)
class Ban:
    """A phrase that a rule forbids, and the rules that lift this while they hold (indices)."""

    rule: int
    pattern: Pattern
    lifted_by: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Demand:
    """A requirement: one of these phrases, each as (place in `RuleProgram.places`, bytes, number of tokens)."""

    rule: int
    words: str
    options: tuple[tuple[int, bytes, int], ...]


@dataclasses.dataclass(frozen=True)
class Consequences:
    """Rules that may hold, and bans that may be in force (indices)."""

    firing: tuple[int, ...]
    bans: frozenset[int]


class RuleProgram:
    """The rules that concern one model, compiled for its vocabulary."""

    def __init__(self, rules: RuleSet, vocabulary: Vocabulary, model: str = ""):
        """Compiles the rules that concern `model` ("": all of them)."""
        self.rules = rules
        self.active = [r for r in rules.rules if not (model and r.scope.models) or model in r.scope.models]
        self.vocabulary = vocabulary
        effects = [Effects.of(rules, rule) for rule in self.active]
        index = {rule.id: i for i, rule in enumerate(self.active)}

        self.atoms = list(dict.fromkeys(a for rule in self.active for a in lang.atoms(rule.when)))
        where = {atom: i for i, atom in enumerate(self.atoms)}
        self.atoms_of: dict[str, list[int]] = {}
        for atom, i in where.items():
            self.atoms_of.setdefault(atom.concept, []).append(i)
        self.local = any(
            atom.within or atom.sentence for atom in self.atoms
        )  # a word more may change what holds
        self.conditions = [_compiled(rule.when, where) for rule in self.active]

        concepts = [atom.concept for atom in self.atoms]
        concepts += [name for rule in self.active if rule.attend for name in rule.attend.to]
        anchors = {
            name: [p for a in rules.anchors(name) for p in Pattern.all_of(a)]
            for name in dict.fromkeys(concepts)
        }
        wanted = [pattern for one in effects for pattern in one.demanded]
        self.places = Places([*(p for ps in anchors.values() for p in ps), *wanted])
        number = {pattern: i for i, pattern in enumerate(self.places.patterns)}
        self.anchors = {name: tuple(number[p] for p in ps) for name, ps in anchors.items()}
        self.concepts_of: dict[int, list[str]] = {}
        for name, places in self.anchors.items():
            for place in dict.fromkeys(places):
                self.concepts_of.setdefault(place, []).append(name)

        demanding = [one for one in effects if one.demands]
        self.bans = [
            Ban(i, pattern, tuple(index[rule.id] for rule in lifting(pattern, one.rule, demanding)))
            for i, one in enumerate(effects)
            for pattern in one.bans
        ]
        self.prefixes: dict[str, list[int]] = {}  # beginnings of banned phrases (not empty, not whole) → bans
        for i, ban in enumerate(self.bans):
            for size in range(1, len(ban.pattern.text)):
                self.prefixes.setdefault(ban.pattern.text[:size], []).append(i)
        self.longest = max(map(len, self.prefixes), default=0)
        self.regexes = [(i, regex) for i, one in enumerate(effects) for regex in one.regexes]
        self.attending = frozenset(i for i, rule in enumerate(self.active) if rule.attend)
        self.preferring = frozenset(i for i, rule in enumerate(self.active) if rule.prefer)
        self.demands = [
            Demand(
                i,
                " or ".join(f"'{phrase}'" for phrase, _ in options),
                tuple((number[pattern], *_written(phrase, vocabulary)) for phrase, pattern in options),
            )
            for i, one in enumerate(effects)
            for options in one.demands
        ]
        conditional = [vocabulary.containing(b.pattern) for b in self.bans if not self._plain(b)]
        self.always = self._mask({int(token) for tokens in conditional for token in tokens})
        self._consequences: dict[tuple[tuple[bool, ...], ...], Consequences] = {}
        self._masks: dict[tuple[frozenset[int], bool], np.ndarray] = {}
        self._biases: dict[tuple[int, ...], tuple[np.ndarray, dict[tuple[int, ...], list]]] = {}

    def truth_to_rules(self, truth: Truth) -> tuple[bool, ...]:
        """Which rules hold."""
        return tuple(condition(truth) for condition in self.conditions)

    def consequences(self, truths: tuple[tuple[bool, ...], ...]) -> Consequences:
        """Return the consequences of one set of truths; the last is kept, as most steps repeat it."""
        if truths not in self._consequences:
            if len(self._consequences) >= KEPT:
                self._consequences.clear()
            holds = [self.truth_to_rules(truth) for truth in truths]
            self._consequences[truths] = Consequences(
                firing=tuple(i for i in range(len(self.active)) if any(h[i] for h in holds)),
                bans=frozenset().union(*(self.banned(h) for h in holds)),
            )
        return self._consequences[truths]

    def banned(self, holds: Sequence[bool]) -> frozenset[int]:
        """The bans in force where these rules hold."""
        return frozenset(
            i
            for i, ban in enumerate(self.bans)
            if holds[ban.rule] and not any(holds[by] for by in ban.lifted_by)
        )

    def mask(self, bans: frozenset[int], last: str) -> np.ndarray:
        """bool [V]: tokens that complete no whole banned phrase, behind a text that ends with `last`."""
        in_word = bool(last) and is_word(last)
        key = (bans, in_word)
        if key not in self._masks:
            if len(self._masks) >= KEPT:
                self._masks.clear()
            allowed = self.always.copy()
            for i in bans:
                pattern = self.bans[i].pattern
                allowed[self.vocabulary.containing(pattern)] = False
                if pattern.begins("x" if in_word else ""):
                    allowed[self.vocabulary.completing(pattern.text, pattern)] = False
            allowed.flags.writeable = False
            self._masks[key] = allowed
        return self._masks[key]

    def bias(self, preferring: tuple[int, ...]) -> tuple[np.ndarray, dict[tuple[int, ...], list]]:
        """Bits by which these rules raise first tokens of phrases [V], and next tokens by the tokens before them."""
        if preferring not in self._biases:
            if len(self._biases) >= KEPT:
                self._biases.clear()
            first = np.zeros(self.vocabulary.size, np.float32)
            following: dict[tuple[int, ...], list[tuple[int, float]]] = {}
            for i in preferring:
                rule = self.active[i]
                for phrase in dict.fromkeys(p for item in rule.prefer for p in self.rules.phrases(item)):
                    for ids in self.vocabulary.spellings(phrase):
                        first[ids[0]] = max(first[ids[0]], rule.prefer_bits)
                        for n in range(1, len(ids)):
                            following.setdefault(ids[:n], []).append((ids[n], rule.prefer_bits))
            self._biases[preferring] = first, following
        return self._biases[preferring]

    def _plain(self, ban: Ban) -> bool:
        """Whether a token that contains the phrase cannot also hold what decides about its rule."""
        return self.active[ban.rule].when == lang.ALWAYS and not ban.lifted_by

    def _mask(self, containing: set[int]) -> np.ndarray:
        """Tokens with text before a conditional phrase in them: whether the rule holds there is not known before."""
        allowed = np.ones(self.vocabulary.size, bool)
        for token in containing:
            text = self.vocabulary.folded[token]
            if any(
                text[:at].strip()
                for b in self.bans
                if not self._plain(b)
                for at in [text.rfind(b.pattern.text)]
                if at > 0
            ):
                allowed[token] = False
        return allowed


def _written(phrase: str, vocabulary: Vocabulary) -> tuple[bytes, int]:
    """A phrase as a word of its own, and the tokens that it takes."""
    written = (" " + phrase.strip().strip("*").strip()).encode()
    return written, vocabulary.count(written)


def _compiled(condition: lang.Condition, where: dict[Present, int]) -> Callable[[Truth], bool]:
    if isinstance(condition, Present):
        i = where[condition]
        return lambda truth: truth[i]
    if isinstance(condition, lang.Not):
        part = _compiled(condition.part, where)
        return lambda truth: not part(truth)
    parts = [_compiled(part, where) for part in condition.parts]
    if isinstance(condition, lang.All):
        return lambda truth: all(part(truth) for part in parts)
    return lambda truth: any(part(truth) for part in parts)

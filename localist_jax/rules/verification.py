"""Proofs about a rule set before it is loaded, by the solver Z3.

Presences are propositions, with what follows between them (within 5 words ⇒ within 30 ⇒ present; a kind ⇒ its
parent; "heart attack" ⇒ "heart"). Asked for every rule, over all contexts at once: can it ever fire (dead)? do others
always do what it does (shadowed)? can it demand what others ban at the same time? If so, which is the smallest set
of rules that contradict each other, and in which context?
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import re2
import z3

from localist_jax.rules import language as lang
from localist_jax.rules.effects import Effects, lifting, together
from localist_jax.rules.folding import Pattern
from localist_jax.rules.language import Present, Rule, RuleError, RuleSet

PATIENCE = 10_000  # milliseconds for one question

Kind = Literal["contradiction", "overridden", "dead", "shadowed"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something found, about these rules, in words."""

    kind: Kind
    rules: tuple[str, ...]
    words: str


@dataclasses.dataclass(frozen=True)
class Findings:
    """All that was found. Contradictions forbid loading, the rest is worth knowing."""

    all: tuple[Finding, ...]

    @property
    def contradictions(self) -> list[Finding]:
        """Why the set cannot be loaded."""
        return [finding for finding in self.all if finding.kind == "contradiction"]

    def insist(self) -> None:
        """Check that the set is consistent.

        Raises:
          RuleError: the smallest contradiction, in words.
        """
        if self.contradictions:
            smallest = min(self.contradictions, key=lambda finding: len(finding.rules))
            more = len(self.contradictions) - 1
            others = f" (and {more} more; see `localist rules check`)" if more else ""
            raise RuleError(f"rules: {smallest.words}{others}")


def verify(rules: RuleSet) -> Findings:
    """The solver's findings about a rule set.

    Raises:
      RuleError: the solver gave up.
    """
    proof = _Proof(rules)
    dead = [rule for rule in rules.rules if proof.example([proof.holds[rule.id]]) is None]
    found = [
        Finding("dead", (rule.id,), f"rule {rule} can never fire: {lang.in_words(rule.when)} never holds")
        for rule in dead
    ]
    alive = [proof.effects[rule.id] for rule in rules.rules if rule not in dead]
    for one in alive:
        for options in one.demands:
            found += proof.conflict(one, options, alive)
    found += proof.format_conflicts([one.rule for one in alive if one.rule.format])
    found += _shadows(proof, alive)
    order = ("contradiction", "overridden", "dead", "shadowed")
    unique = {(f.kind, f.rules, f.words): f for f in found}
    return Findings(tuple(sorted(unique.values(), key=lambda f: (order.index(f.kind), len(f.rules)))))


class _Proof:
    """The propositions of one rule set, and questions about them."""

    def __init__(self, rules: RuleSet):
        self.rules = rules
        everything = {atom for rule in rules.rules for atom in lang.atoms(rule.when)}
        self.truth = {atom: z3.Bool(f"p{i}") for i, atom in enumerate(sorted(everything, key=str))}
        self.background = list(self._background())
        self.holds = {rule.id: self._formula(rule.when) for rule in rules.rules}
        self.effects = {rule.id: Effects.of(rules, rule) for rule in rules.rules}
        self.everyone = list(self.effects.values())

    def _background(self):
        """Return the implications between the presences of phrases."""
        follows = _implied_concepts(self.rules, {atom.concept for atom in self.truth})
        for a in self.truth:
            for b in self.truth:
                if a == b:
                    continue
                kind = a.concept in self.rules.kinds(b.concept) and _nearer(a, b)
                inside = b.concept in follows.get(a.concept, ()) and not (b.within or b.sentence)
                if kind or inside:
                    yield z3.Implies(self.truth[a], self.truth[b])

    def _formula(self, condition: lang.Condition):
        if isinstance(condition, Present):
            return self.truth[condition]
        if isinstance(condition, lang.Not):
            return z3.Not(self._formula(condition.part))
        join = z3.And if isinstance(condition, lang.All) else z3.Or
        return join(*[self._formula(part) for part in condition.parts])

    def example(self, formulas: Sequence[Any], fewest: Iterable[Any] = ()):
        """A context in which the formulas hold together (with as few of `fewest` true as can be), or None."""
        fewest = list(fewest)
        solver = z3.Optimize() if fewest else z3.Solver()
        solver.set("timeout", PATIENCE)
        solver.add(*self.background, *formulas)
        for proposition in fewest:
            solver.add_soft(z3.Not(proposition))
        answer = solver.check()
        if answer == z3.unknown:
            raise RuleError("rules: the solver gave up on this set; split it, or make its conditions simpler")
        return solver.model() if answer == z3.sat else None

    def conflict(self, one: Effects, options, everyone: list[Effects]) -> list[Finding]:
        """Whether a requirement can be impossible: each of its phrases banned, by rules that hold together."""
        blockers = [self._blockers(one, phrase, pattern, everyone) for phrase, pattern in options]
        if not all(blockers):
            return []
        chosen = {rule.id: z3.Bool(f"in {rule.id}") for by in blockers for rule, _ in by}

        def all_blocked(by_option):
            return [z3.Or(*[z3.And(chosen[rule.id], holds) for rule, holds in by]) for by in by_option]

        mine = self.holds[one.rule.id]
        fixed = [[(r, h) for r, h in by if r.priority > one.rule.priority] for by in blockers]
        decided = z3.And(*[z3.Or(*[h for _, h in by]) for by in fixed])
        found: list[Finding] = []
        for kind, extra in (
            ("contradiction", [*all_blocked(blockers), z3.Not(decided)]),
            ("overridden", all_blocked(fixed)),
        ):
            context = self.example([mine, *extra], chosen.values())
            if context is None:
                continue
            involved = [rule for rule in self.rules.rules if self._in(context, chosen, rule)]
            others = [rule for rule in involved if rule.id != one.rule.id]
            names = " or ".join(f"'{phrase}'" for phrase, _ in options)
            when = self._words(context, [one.rule, *others])
            banning = "forbids it itself"
            if others:
                banning = f"{_names(others)} forbid{'s' if len(others) == 1 else ''} it"
            what = f"rule {one.rule} requires {names}, but {banning}, {when}"
            if kind == "contradiction":
                what += "; make their conditions exclude each other, or give one a higher priority"
            else:
                what += " with a higher priority: the requirement cannot be met there"
            found.append(Finding(kind, (one.rule.id, *(rule.id for rule in others)), what))  # type: ignore[arg-type]
        return found

    def _blockers(self, one: Effects, phrase: str, pattern: Pattern, everyone: list[Effects]):
        """Rules that ban a phrase, with when they do so."""
        found = []
        for other in everyone:
            if other.rule.priority < one.rule.priority or not together(other.rule, one.rule):
                continue
            hits = [self._banned(ban, other.rule) for ban in other.bans if ban.implied_by(pattern)] + [
                self.holds[other.rule.id] for regex in other.regexes if _matches(regex, phrase)
            ]
            if hits:
                found.append((other.rule, z3.Or(*hits)))
        return found

    def _banned(self, ban: Pattern, rule: Rule):
        lifted = [z3.Not(self.holds[by.id]) for by in lifting(ban, rule, self.everyone)]
        return z3.And(self.holds[rule.id], *lifted)

    def format_conflicts(self, with_format: list[Rule]) -> list[Finding]:
        """Pairs that ask for different formats of the same output."""
        found = []
        for i, a in enumerate(with_format):
            for b in with_format[i + 1 :]:
                if a.format == b.format or a.priority != b.priority or not together(a, b):
                    continue
                context = self.example([self.holds[a.id], self.holds[b.id]])
                if context is not None:
                    words = (
                        f"rules {a} and {b} ask for different formats of the same output, "
                        f"{self._words(context, [a, b])}; give one a higher priority"
                    )
                    found.append(Finding("contradiction", (a.id, b.id), words))
        return found

    def always_covered(self, rule: Rule, by: list[Rule]) -> bool:
        """Whether one of `by` holds wherever the rule does."""
        others = [z3.Not(self.holds[other.id]) for other in by]
        return self.example([self.holds[rule.id], *others]) is None

    def _in(self, context, chosen, rule: Rule) -> bool:
        return rule.id in chosen and bool(context.eval(chosen[rule.id], model_completion=True))

    def _words(self, context, rules: list[Rule]) -> str:
        atoms = sorted({atom for rule in rules for atom in lang.atoms(rule.when)}, key=str)
        if not atoms:
            return "in every context"
        said = []
        for atom in atoms:
            true = bool(context.eval(self.truth[atom], model_completion=True))
            said.append(lang.in_words(atom if true else lang.Not(atom)))
        return "when " + " and ".join(said)


def _names(rules: list[Rule]) -> str:
    if len(rules) == 1:
        return f"rule {rules[0]}"
    return "rules " + ", ".join(map(str, rules[:-1])) + f" and {rules[-1]} together"


def _nearer(a: Present, b: Present) -> bool:
    """Whether the place that `a` asks for is one that `b` asks for."""
    if not (b.within or b.sentence):
        return True
    return (a.within, a.sentence) == (b.within, b.sentence) or 0 < a.within <= b.within


def _implied_concepts(rules: RuleSet, names: set[str]) -> dict[str, set[str]]:
    """Concept → concepts that occur wherever it does, since each of its anchors contains one of theirs."""
    patterns = {name: [p for a in rules.anchors(name) for p in Pattern.all_of(a)] for name in names}
    found: dict[str, set[str]] = {}
    for a in names:
        for b in names:
            if a != b and all(
                any(small.text in big.text and small.implied_by(big) for small in patterns[b])
                for big in patterns[a]
            ):
                found.setdefault(a, set()).add(b)
    return found


def _matches(regex: str, phrase: str) -> bool:
    return re2.search(regex, phrase) is not None


def _shadows(proof: _Proof, alive: list[Effects]) -> list[Finding]:
    """Rules that add nothing; of two equal ones it is the later."""
    found, shadowed = [], set()
    for one in reversed(alive):
        others = [
            o
            for o in alive
            if o is not one
            and o.rule.id not in shadowed
            and o.rule.priority >= one.rule.priority
            and (not o.rule.scope.models or o.rule.scope == one.rule.scope)
        ]
        by: list[Rule] = []
        for covers in _covers(proof.rules, one):
            candidates = [other.rule for other in others if covers(other)]
            if not candidates or not proof.always_covered(one.rule, candidates):
                break
            alone = [rule for rule in candidates if proof.always_covered(one.rule, [rule])]
            by += alone[:1] or candidates
        else:
            shadowed.add(one.rule.id)
            names = _names(list(dict.fromkeys(by)))
            ids = (one.rule.id, *dict.fromkeys(rule.id for rule in by))
            words = (
                f"rule {one.rule} adds nothing: {names} always do{'es' if len(ids) == 2 else ''} what it does"
            )
            found.append(Finding("shadowed", ids, words))
    return found


def _covers(rules: RuleSet, one: Effects):
    """For each effect of a rule: whether another rule, where it holds, has that effect too."""
    for ban in one.bans:
        yield lambda other, ban=ban: any(theirs.implied_by(ban) for theirs in other.bans)
    for regex in one.regexes:
        yield lambda other, regex=regex: regex in other.regexes
    for options in one.demands:
        yield lambda other, options=options: any(
            all(any(mine.implied_by(theirs) for _, mine in options) for _, theirs in their_options)
            for their_options in other.demands
        )
    rule = one.rule
    if rule.attend:
        yield lambda other: _attends_as_much(other.rule, rule)
    if rule.prefer:
        yield (
            lambda other: (
                set(rule.prefer) <= set(other.rule.prefer) and (other.rule.prefer_bits >= rule.prefer_bits)
            )
        )
    if rule.format:
        yield lambda other: other.rule.format == rule.format


def _attends_as_much(other: Rule, rule: Rule) -> bool:
    a, b = other.attend, rule.attend
    if a is None or b is None or set(a.to) != set(b.to):
        return False
    return (
        a.dial >= b.dial
        and a.fidelity >= b.fidelity
        and (not other.scope.layers or set(other.scope.layers) >= set(rule.scope.layers) > set())
        and (not other.scope.heads or set(other.scope.heads) >= set(rule.scope.heads) > set())
    )

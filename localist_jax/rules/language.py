"""The rule language: concepts, conditions on the text so far, and what is to follow from them.

    concepts:
      warfarin: {anchors: [warfarin, coumadin], parent: anticoagulant}
      anticoagulant: {anchors: [anticoagulant*]}
    rules:
      - id: bleeding
        when: {all: [anticoagulant, {present: aspirin, within: 30}, {absent: doctor}]}
        then:
          attend: {to: [anticoagulant], fidelity: 0.9}
          require: [bleeding]
          forbid: [no interaction, {regex: '[0-9]+ tablets'}]
        scope: {layers: [2, 3]}
        priority: 5

**Text** is prompt and output. A *phrase* is looked for without regard to case, accents, look-alikes, invisible
characters and the kind of white space (`folding`), as whole words; a `*` at its beginning or end leaves that end open.
A concept is *present* where one of its anchors, or one of its children's, ends before the place in question;
`within: n`: no more than n words before it; `sentence: true`: with no end of a sentence (. ! ? before white space)
between.

**Output.** `forbid`: a phrase must not be completed in the output if the rule holds where the phrase begins. `require`:
once the rule has held at any place from the end of the prompt on, the output must contain the phrase (of a concept:
one of its anchors). `prefer` raises the odds of beginning and continuing phrases. `format`: decided at the end of the
prompt; the output is that regular expression or grammar, and nothing else.

**Attention** of the positions from which tokens are chosen, in the layers and heads in scope: `dial` closes all keys
but the concepts' anchors (and self, sink and window) by that λ; `fidelity` leaves that to the request's dial and raises
the anchors' odds, so far that at least that share of attention lies on those beyond the window, whatever the input.

A higher `priority` wins: its requirement lifts a lower rule's ban on the phrase; of two formats it is the one that
counts.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterator
from typing import Any

# Limits: what a reader of a rule file may make us do.
MOST_BYTES = 1 << 18
MOST_DEPTH = 24
MOST_RULES = MOST_CONCEPTS = 512
MOST_PHRASES = 4096  # over the whole set
MOST_PATTERNS = 16  # regular expressions and grammars
LONGEST_PHRASE, LONGEST_PATTERN, LONGEST_NAME = 120, 1000, 80


class RuleError(ValueError):
    """A rule set that cannot be loaded, or that contradicts itself."""


@dataclasses.dataclass(frozen=True)
class RuleConcept:
    """A name, the phrases that mean it, and the concept it is a kind of ("" if none)."""

    name: str
    anchors: tuple[str, ...]
    parent: str = ""
    line: int = dataclasses.field(default=0, compare=False)


@dataclasses.dataclass(frozen=True)
class Present:
    """A concept occurs: anywhere before, in the last `within` words (0: no limit), or in this sentence."""

    concept: str
    within: int = 0
    sentence: bool = False


@dataclasses.dataclass(frozen=True)
class All:
    """Every part holds; of no parts: always."""

    parts: tuple[Condition, ...] = ()


@dataclasses.dataclass(frozen=True)
class Some:
    """At least one part holds."""

    parts: tuple[Condition, ...]


@dataclasses.dataclass(frozen=True)
class Not:
    """The part does not hold."""

    part: Condition


Condition = Present | All | Some | Not
ALWAYS = All()


@dataclasses.dataclass(frozen=True)
class Attend:
    """Attend to concepts, by a dial λ or with a guaranteed share of attention (the other is 0)."""

    to: tuple[str, ...]
    dial: float = 0.0
    fidelity: float = 0.0


@dataclasses.dataclass(frozen=True)
class Item:
    """A phrase, a concept, or a regular expression (one of them)."""

    phrase: str = ""
    concept: str = ""
    regex: str = ""

    def __str__(self) -> str:
        return self.phrase or (f"the concept {self.concept}" if self.concept else f"/{self.regex}/")


@dataclasses.dataclass(frozen=True)
class Format:
    """The format of the whole output: a regular expression, or a grammar in llguidance's Lark dialect."""

    regex: str = ""
    grammar: str = ""


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where a rule acts; empty: everywhere. Layers and heads concern attention only."""

    models: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    heads: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Rule:
    """A condition and its consequences; `line` is the rule's line in its file."""

    id: str
    when: Condition = ALWAYS
    attend: Attend | None = None
    require: tuple[tuple[Item, ...], ...] = ()  # each: one of these
    forbid: tuple[Item, ...] = ()
    prefer: tuple[Item, ...] = ()
    prefer_bits: float = 0.0
    format: Format | None = None
    scope: Scope = Scope()
    priority: int = 0
    line: int = dataclasses.field(default=0, compare=False)

    def __str__(self) -> str:
        return f"'{self.id}' (line {self.line})" if self.line else f"'{self.id}'"


@dataclasses.dataclass(frozen=True)
class RuleSet:
    """Concepts by name, and rules in their order; equal sets have equal `version`s whatever their files look like."""

    concepts: dict[str, RuleConcept] = dataclasses.field(default_factory=dict)
    rules: tuple[Rule, ...] = ()

    @functools.cached_property
    def version(self) -> str:
        """16 hex digits of the content."""
        text = json.dumps(self.to_dict(), sort_keys=True, ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary of the content, without line numbers."""
        return {
            "concepts": {name: _plain(concept) for name, concept in sorted(self.concepts.items())},
            "rules": [_plain(rule) for rule in self.rules],
        }

    def kinds(self, concept: str) -> list[str]:
        """The concept and everything that is a kind of it."""
        found, grown = {concept}, True
        while grown:
            more = {c.name for c in self.concepts.values() if c.parent in found} - found
            found, grown = found | more, bool(more)
        return sorted(found)

    def anchors(self, concept: str) -> list[str]:
        """The phrases that mean a concept, its kinds' included."""
        return [anchor for kind in self.kinds(concept) for anchor in self.concepts[kind].anchors]

    def phrases(self, item: Item) -> list[str]:
        """The phrases of an item; none of a regular expression."""
        return self.anchors(item.concept) if item.concept else [item.phrase] if item.phrase else []

    def without(self, ids: set[str]) -> RuleSet:
        """A set that lacks these rules.

        Raises:
          RuleError: an id that no rule has.
        """
        unknown = ids - {rule.id for rule in self.rules}
        if unknown:
            raise RuleError(f"rules: there is no rule {', '.join(sorted(unknown))}")
        return RuleSet(self.concepts, tuple(rule for rule in self.rules if rule.id not in ids))


def atoms(condition: Condition) -> Iterator[Present]:
    """The presences that a condition speaks of."""
    if isinstance(condition, Present):
        yield condition
    elif isinstance(condition, Not):
        yield from atoms(condition.part)
    else:
        for part in condition.parts:
            yield from atoms(part)


def in_words(condition: Condition) -> str:
    """A condition as one would say it.

    >>> in_words(All((Present("rain", within=5), Not(Present("sun")))))
    "'rain' is within 5 words and 'sun' is absent"
    """
    if isinstance(condition, Not):
        inner = condition.part
        if isinstance(inner, Present) and not (inner.within or inner.sentence):
            return f"'{inner.concept}' is absent"
        return f"not ({in_words(inner)})"
    if isinstance(condition, Present):
        where = "present"
        if condition.within:
            where = f"within {condition.within} words"
        elif condition.sentence:
            where = "in the sentence"
        return f"'{condition.concept}' is {where}"
    if not condition.parts:
        return "always"
    word = " and " if isinstance(condition, All) else " or "
    return word.join(
        f"({in_words(part)})" if isinstance(part, All | Some) and len(part.parts) > 1 else in_words(part)
        for part in condition.parts
    )


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries that name their kind and leave out what is empty."""
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.compare}
        kept = {name: _plain(x) for name, x in fields.items() if x not in ((), "", None, 0, False)}
        return {"kind": type(value).__name__, **kept}
    if isinstance(value, tuple):
        return [_plain(x) for x in value]
    return value

"""The independent checker: texts in, verdict out.

It shares the rule language with enforcement and nothing else: text is normalised as a whole, by look-alikes of its own,
regular expressions are searched with RE2, conditions are evaluated on positions of the finished text. It knows no
tokens, no automata and no masks.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import unicodedata
from collections.abc import Sequence
from typing import Any

import re2

from localist_jax.rules import disguises
from localist_jax.rules.language import All, Condition, Item, Not, Present, Rule, RuleSet


@dataclasses.dataclass
class Verdict:
    """The checker's findings.

    Attributes:
      violations: what a rule forbids and the output has.
      unmet: what a rule requires and the output lacks.
      unchecked: what it cannot judge.
    """

    violations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    unmet: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    unchecked: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def compliant(self) -> bool:
        """True if nothing forbidden is present and nothing required is missing."""
        return not self.violations and not self.unmet


def check(
    prompt: str, output: str, epochs: Sequence[tuple[int, RuleSet]], *, model: str = "", complete: bool = True
) -> Verdict:
    """Judges one output.

    Args:
      prompt, output: as a reader sees them.
      epochs: (length of the output, in characters, when the set came into force; the set), the first at 0.
      model: whose rules are asked about; "": everyone's.
      complete: False if the output was cut off, so that a format may be unfinished.
    """
    verdict = Verdict()
    page = _Page(prompt, output)
    for i, (since, rules) in enumerate(epochs):
        until = epochs[i + 1][0] if i + 1 < len(epochs) else len(output)
        last = i + 1 == len(epochs)
        judge = _Judge(rules, page, since, until)
        for rule in rules.rules:
            if model and rule.scope.models and model not in rule.scope.models:
                continue
            judge.bans(rule, verdict)
            if last:
                judge.demands(rule, verdict)
                judge.format(rule, verdict, output[since:], complete)
    return verdict


class _Page:
    """Prompt and output, normalised, with the way back to the characters that were written."""

    def __init__(self, prompt: str, output: str):
        written = prompt + output
        shown, source = [], []
        for i, character in enumerate(written):
            plain = _normal(character)
            shown.append(plain)
            source += [i] * len(plain)
        joined = "".join(shown)
        keep = [i for i, c in enumerate(joined) if not (c == " " and i and joined[i - 1] == " ")]
        self.text = "".join(joined[i] for i in keep)
        self.source = [source[i] for i in keep]
        self.prompt, self.written = len(prompt), written
        self.border = self.place(0)

    def place(self, output_length: int) -> int:
        """Normalised characters that stem from the prompt and so much of the output."""
        return bisect.bisect_left(self.source, self.prompt + output_length)

    def find(self, phrase: str) -> list[tuple[int, int]]:
        """Spans at which a phrase stands as a phrase, in whatever case."""
        ways = {phrase} if phrase.isascii() else {phrase, phrase.lower(), phrase.upper(), phrase.title()}
        return sorted({span for way in ways for span in self._find(way)})

    def _find(self, phrase: str) -> list[tuple[int, int]]:
        bare = phrase.strip()
        core = " ".join("".join(map(_normal, bare.strip("*"))).split())
        if not core:
            return []
        spans, at = [], self.text.find(core)
        while at >= 0:
            end = at + len(core)
            cut_left = not bare.startswith("*") and _wordy(self.text[at - 1 : at]) and _wordy(core[0])
            cut_right = not bare.endswith("*") and _wordy(self.text[end : end + 1]) and _wordy(core[-1])
            if not cut_left and not cut_right:
                spans.append((at, end))
            at = self.text.find(core, at + 1)
        return spans


class _Judge:
    """One rule set on one stretch of the output."""

    def __init__(self, rules: RuleSet, page: _Page, since: int, until: int):
        self.rules, self.page, self.since, self.until = rules, page, since, until
        self.start, self.end = page.place(since), page.place(until)
        self._spans: dict[str, list[tuple[int, int]]] = {}

    def spans(self, phrases: Sequence[str]) -> list[tuple[int, int]]:
        for phrase in phrases:
            if phrase not in self._spans:
                self._spans[phrase] = self.page.find(phrase)
        return sorted({span for phrase in phrases for span in self._spans[phrase]})

    def concept(self, name: str) -> list[str]:
        """Anchors of a concept and of all that descend from it."""
        names = [name]
        for other in names:
            names += [c.name for c in self.rules.concepts.values() if c.parent == other]
        return [anchor for other in names for anchor in self.rules.concepts[other].anchors]

    def holds(self, condition: Condition, at: int) -> bool:
        if isinstance(condition, Not):
            return not self.holds(condition.part, at)
        if isinstance(condition, Present):
            ends = [end for _, end in self.spans(self.concept(condition.concept)) if end <= at]
            if not ends:
                return False
            between = self.page.text[max(ends) : at]
            if condition.within:
                before = self.page.text[max(ends) - 1]
                return len(_word_starts(before, between)) <= condition.within
            return not condition.sentence or not re2.search(r"[.!?]( |$)", between)
        each = (self.holds(part, at) for part in condition.parts)
        return all(each) if isinstance(condition, All) else any(each)

    def bans(self, rule: Rule, verdict: Verdict) -> None:
        """Add the forbidden phrases that are present to the verdict."""
        for item in rule.forbid:
            if item.regex:
                self.pattern(rule, item.regex, verdict)
                continue
            for phrase in self.phrases(item):
                for begin, end in self.spans([phrase]):
                    if not self.start < end <= self.end or not self.holds(rule.when, begin):
                        continue
                    if not self.lifted(rule, phrase, begin):
                        verdict.violations.append(self.report(rule, phrase, begin, end))

    def lifted(self, rule: Rule, phrase: str, at: int) -> bool:
        """Whether a higher rule that holds there requires something with the phrase in it."""
        for other in self.rules.rules:
            shared = set(other.scope.models) & set(rule.scope.models)
            apart = other.scope.models and rule.scope.models and not shared
            if other.priority <= rule.priority or apart or not self.holds(other.when, at):
                continue
            for options in other.require:
                for wanted in (p for item in options for p in self.phrases(item)):
                    if _Page("", wanted.strip("*")).find(phrase):
                        return True
        return False

    def pattern(self, rule: Rule, regex: str, verdict: Verdict) -> None:
        """Add the matches that new text completes, including those that earlier text began, to the verdict."""
        page, at = self.page, 0
        known, last = page.prompt + self.since, page.prompt + self.until
        while match := re2.search(regex, page.written[at:known]):
            at += match.start() + 1
        told = known
        while match := re2.search(regex, page.written[at:last]):
            begin, end = at + match.start(), at + match.end()
            if end > told and self.holds(rule.when, max(page.place(begin - page.prompt), self.start)):
                verdict.violations.append(
                    {"rule": rule.id, "forbidden": f"/{regex}/", "found": match.group()}
                )
                told = end
            at = begin + 1

    def demands(self, rule: Rule, verdict: Verdict) -> None:
        """Add the required phrases that are missing to the verdict."""
        if not rule.require or not any(self.holds(rule.when, at) for at in self._cuts()):
            return
        for options in rule.require:
            phrases = [p for item in options for p in self.phrases(item)]
            if not any(begin >= self.page.border for begin, _ in self.spans(phrases)):
                verdict.unmet.append({"rule": rule.id, "required": " or ".join(phrases)})

    def format(self, rule: Rule, verdict: Verdict, output: str, complete: bool) -> None:
        """Whether the output has the form that is asked for, where this rule decides it."""
        if rule.format is None or not self.holds(rule.when, self.start):
            return
        rivals = [r for r in self.rules.rules if r.format and r.priority > rule.priority]
        if any(self.holds(r.when, self.start) for r in rivals):
            return
        if rule.format.grammar:
            verdict.unchecked.append({"rule": rule.id, "format": "a grammar"})
        elif not re2.fullmatch(rule.format.regex, output):
            entry = {"rule": rule.id, "format": rule.format.regex}
            (verdict.unmet if complete else verdict.unchecked).append(entry)

    def phrases(self, item: Item) -> list[str]:
        return self.concept(item.concept) if item.concept else [item.phrase]

    def report(self, rule: Rule, phrase: str, begin: int, end: int) -> dict[str, Any]:
        return {"rule": rule.id, "forbidden": phrase, "found": self.page.text[begin:end]}

    def _cuts(self) -> list[int]:
        """Places of the output between words, its beginning included."""
        text = self.page.text
        inner = range(self.start + 1, self.end + 1)
        return [self.start, *(i for i in inner if not (_wordy(text[i - 1 : i]) and _wordy(text[i : i + 1])))]


def _word_starts(before: str, text: str) -> list[int]:
    """Where words begin in a text that follows the character `before`."""
    whole = before + text
    return [i for i in range(1, len(whole)) if _wordy(whole[i]) and not _wordy(whole[i - 1])]


def _wordy(character: str) -> bool:
    return character != "" and (character.isalnum() or character == "_")


@functools.lru_cache(maxsize=1 << 16)
def _normal(character: str) -> str:
    """A character as it is compared."""
    if character == "\u2800" or character.isspace():
        return " "
    if not character.isascii() and (whole := disguises.latin(character)):
        return whole
    out = ""
    bare = [
        c for c in unicodedata.normalize("NFKD", character) if unicodedata.category(c) not in ("Mn", "Me")
    ]
    small = "".join(disguises.CAPITALS.get(c) or c.casefold() for c in bare)
    for part in unicodedata.normalize("NFKD", small):
        if part.isspace():
            out += " "
        elif part in "\u115f\u1160" or unicodedata.category(part) in ("Mn", "Me", "Cf", "Cc", "Cs"):
            continue
        elif ord(part) < 128:
            out += part.lower()
        else:
            known = disguises.TABLE.get(part) or disguises.CAPITALS.get(part.upper())
            out += known or disguises.latin(part) or part
    return out

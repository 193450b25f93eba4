"""One generation under rules: its text, which rules hold where, and which tokens may come next."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from localist_jax.rules import patterns
from localist_jax.rules.language import Format, Present
from localist_jax.rules.program import Consequences, RuleProgram
from localist_jax.rules.text import Text

SPARE = 3  # tokens by which requirements are begun early: a character may have to be completed first


@dataclasses.dataclass
class Due:
    """A requirement that has come into force."""

    rule: str
    words: str
    met: bool = False
    why: str = ""  # what stood in its way last


class Request:
    """The state of one request; `adopt` gives it a program, also in mid-generation."""

    def __init__(self, prompt: Sequence[int], budget: int, pieces: Sequence[bytes]):
        self.text = Text(pieces)
        for token in prompt:
            self.text.add(token)
        self.prompt, self.budget = len(prompt), budget
        self.border = len(self.text.folded)  # where the output begins
        self._held: list[tuple[int, tuple[str, ...]]] = []  # at each step the rules that held
        self.due: dict[tuple[str, str], Due] = {}
        self.stop = ""  # why it ends
        self.formats: tuple[Format, patterns.Matcher] | None = None
        self._without: dict[str, patterns.Absence] = {}
        self._forced: tuple[tuple[str, str], bytes] | None = (
            None  # what is being written for which requirement
        )

    @property
    def steps(self) -> dict[str, list[int]]:
        """The steps at which each rule held."""
        found: dict[str, list[int]] = {}
        for step, names in self._held:
            for name in names:
                found.setdefault(name, []).append(step)
        return found

    @property
    def left(self) -> int:
        """Tokens that may still come."""
        return self.budget - (len(self.text.tokens) - self.prompt)

    def adopt(self, program: RuleProgram, engine: Any) -> None:
        """From now on these rules: phrases are looked up in the whole text again."""
        self.program = program
        self._ends: dict[str, list[int]] = {name: [] for name in program.anchors}
        self._spans: dict[str, list[tuple[int, int]]] = {name: [] for name in program.anchors}
        self._met: dict[int, list[tuple[int, int]]] = {}
        self._tentative: list[tuple[int, int, int]] = []
        self._acting: tuple[tuple[int, ...], tuple[int, ...]] | None = None
        self._look(0)
        names = {rule.id for rule in program.active}
        self.due = {key: due for key, due in self.due.items() if due.met or key[0] in names}
        if self._forced and self._forced[0] not in {
            (program.active[demand.rule].id, demand.words) for demand in program.demands
        }:
            self._forced = None
        self._sticky: set[int] = set()
        self._now: Consequences | None = None
        firing = program.consequences(tuple(self._truths())).firing
        wanted = [program.active[i] for i in firing if program.active[i].format]
        chosen = max(wanted, key=lambda rule: rule.priority).format if wanted else None
        if chosen is None or engine is None:
            self.formats = None
        elif self.formats is None or self.formats[0] != chosen:
            self.formats = chosen, engine.format(chosen.regex, chosen.grammar)
        kept = {regex for _, regex in program.regexes}
        self._without = {regex: m for regex, m in self._without.items() if regex in kept}
        for regex in kept - set(self._without):
            self._without[regex] = engine.without(regex)
            self._without[regex].read(b"".join(self.text.pieces[token] for token in self.text.tokens))
        self._evaluate()
        self._held.append((len(self.text.tokens) - self.prompt, self._names))

    def add(self, token: int) -> None:
        """A token was written."""
        start = len(self.text.folded)
        self.text.add(token)
        if self._forced:
            key, rest = self._forced
            rest = rest.removeprefix(self.text.pieces[token])
            self._forced = (key, rest) if rest else None
        if self.formats and not self.formats[1].take(token):
            self.stop = self.stop or "rules: the output left its format"
        for absence in self._without.values():
            absence.read(self.text.pieces[token])
        if self._look(start) or self.program.local:
            self._evaluate()
        self._held.append((len(self.text.tokens) - self.prompt, self._names))

    def _look(self, start: int) -> bool:
        """Finds phrases in what is new; those that stood at the very end are looked at again. Whether there are any."""
        before = self._tentative
        for place, begin, end in self._tentative:
            for name in self.program.concepts_of.get(place, ()):
                self._spans[name].remove((begin, end))
                self._ends[name].remove(end)
            self._met[place].remove((begin, end))
        end_now = len(self.text.folded)
        again = start if start < end_now else end_now
        found = self.program.places.find(self.text.folded, again if start else 0)
        self._tentative = [x for x in found if x[2] == end_now]
        for place, begin, end in found:
            self._met.setdefault(place, []).append((begin, end))
            for name in self.program.concepts_of.get(place, ()):
                self._spans[name].append((begin, end))
                self._ends[name].append(end)
        if found or before:
            self._acting = None
        return bool(found or before)

    # Which rules hold

    def _truths(self) -> list[tuple[bool, ...]]:
        """The presences at the end of the text: with what is tentative there, and without."""
        now = len(self.text.folded)
        here = self._truth(now)
        return [here, self._truth(now, now - 1)] if self._tentative else [here]

    def _truth(self, place: int, last_end: int | None = None) -> tuple[bool, ...]:
        """`_present` of every atom; those of concepts that never occurred are passed over."""
        truth = [False] * len(self.program.atoms)
        for name, ends in self._ends.items():
            if ends:
                for i in self.program.atoms_of.get(name, ()):
                    truth[i] = self._present(self.program.atoms[i], place, last_end)
        return tuple(truth)

    def _present(self, atom: Present, place: int, last_end: int | None = None) -> bool:
        """Whether the concept is present before `place`, by occurrences that end at `last_end` at the latest."""
        ends = self._ends[atom.concept]
        i = bisect.bisect_right(ends, place if last_end is None else last_end)
        if not i:
            return False
        end = ends[i - 1]
        if atom.within:
            return self.text.words_between(end, place) <= atom.within
        return not atom.sentence or not self.text.sentence_ends_between(end, place)

    def holds_at(self, place: int) -> tuple[bool, ...]:
        """Which rules hold at a place of the text that will not change any more."""
        return self.program.truth_to_rules(self._truth(place))

    def _evaluate(self) -> None:
        """Which rules hold now; what has come into force; what is met."""
        program = self.program
        now = program.consequences(tuple(self._truths()))
        if now is not self._now:  # mostly it is that of the step before
            self._now, self.firing, self.bans = now, now.firing, now.bans
            self._names = tuple(program.active[i].id for i in now.firing)
            self._sticky.update(now.firing)
        for demand in program.demands:
            key = (program.active[demand.rule].id, demand.words)
            if key not in self.due and demand.rule in self.firing:
                self.due[key] = Due(*key)
            if key in self.due:
                self.due[key].met = any(self._stands(place) for place, _, _ in demand.options)

    def _stands(self, place: int) -> bool:
        return any(begin >= self.border for begin, _ in self._met.get(place, ()))

    def _secure(self, place: int) -> bool:
        """Whether a phrase stands in the output, whatever follows."""
        now = len(self.text.folded)
        return any(begin >= self.border and end < now for begin, end in self._met.get(place, ()))

    # Which tokens may come

    def allowed(self) -> np.ndarray:
        """bool [V]: tokens that break no rule. Sets `stop` where the output is complete or nothing is left."""
        allowed = self._without_bans()
        if self.formats:
            matcher = self.formats[1]
            following = matcher.allowed()
            if matcher.failed:
                self.stop = f"rules: {matcher.failed}"
            elif not following[2:].any():
                self.stop = "complete" if matcher.may_end else "rules: no token fits the format"
            allowed = allowed & following
        for i, regex in self.program.regexes:
            if i in self._sticky:
                absence = self._without[regex]
                allowed = allowed & absence.allowed()
                if absence.failed:
                    self.stop = f"rules: {absence.failed}"
        forced = self._force(allowed)
        if forced is not None:
            allowed = forced
        if not self.stop and not allowed[2:].any():
            self.stop = "rules: no token is allowed"
        return allowed

    def _without_bans(self) -> np.ndarray:
        program, text = self.program, self.text.folded
        if not program.bans:
            return program.always
        if self.text.pending:
            return self._inside_a_character()
        allowed = program.mask(self.bans, text[-1:])
        completing = self._completing(text)
        if completing:
            allowed = allowed.copy()
            for ids in completing:
                allowed[ids] = False
        return allowed

    def _completing(self, text: str) -> list[np.ndarray]:
        """Tokens that complete a banned phrase which the text has begun."""
        program, found = self.program, []
        for size in range(1, min(program.longest, len(text)) + 1):
            start = len(text) - size
            for i in program.prefixes.get(text[start:], ()):
                ban = program.bans[i]
                pattern = ban.pattern
                if not pattern.begins(text[start - 1 : start] if start else ""):
                    continue
                if i not in self.bans and i not in program.banned(self.holds_at(start)):
                    continue
                rest = pattern.text[size:]
                found.append(program.vocabulary.completing(rest, pattern))
                if text[-1] == " ":  # white space swallows white space
                    found.append(program.vocabulary.completing(" " + rest, pattern))
        return found

    def _inside_a_character(self) -> np.ndarray:
        """Apply `_without_bans` after an incomplete character: check the tokens that continue it one by one."""
        program, vocabulary, text = self.program, self.program.vocabulary, self.text.folded
        broken = text + "\ufffd"  # any other token leaves it broken
        allowed = program.mask(self.bans, "\ufffd").copy()
        for ids in self._completing(broken):
            allowed[ids] = False
        for token in vocabulary.inside:
            more = self.text.peek(token)  # "": the character is still incomplete
            allowed[token] = not (more and self._violates(text + more, len(text)))
        return allowed

    def _violates(self, after: str, start: int) -> bool:
        """Whether a banned phrase ends in `after` behind `start`."""
        for i, ban in enumerate(self.program.bans):
            pattern = ban.pattern
            at = after.find(pattern.text, max(0, start - len(pattern.text) + 1))
            while at >= 0:
                end = at + len(pattern.text)
                complete = pattern.begins(after[at - 1 : at] if at else "") and pattern.ends(
                    after[end : end + 1]
                )
                known = at <= start
                if complete and (not known or i in self.bans or i in self.program.banned(self.holds_at(at))):
                    return True
                at = after.find(pattern.text, at + 1)
        return False

    # What must come

    def _force(self, allowed: np.ndarray) -> np.ndarray | None:
        """The tokens that requirements leave, as soon as they need all the room that is left; None: any."""
        if self._forced:
            return self._write(*self._forced, allowed)
        missing, last_word, need = [], False, 0
        for demand in self.program.demands:
            key = (self.program.active[demand.rule].id, demand.words)
            due = self.due.get(key)
            if due is None or any(self._secure(place) for place, _, _ in demand.options):
                continue
            need += min(size for _, _, size in demand.options)
            if due.met:  # at the very end of the text: the next letter may make it another word
                last_word = True
            else:
                missing.append((due, key, sorted(demand.options, key=lambda option: option[2])))
        if self.left > need + SPARE or not (missing or last_word):
            return None
        for due, key, options in missing:
            for _, written, size in options:
                forced = self._write(key, written, allowed) if size <= self.left else None
                if forced is not None:
                    return forced
            if min(size for _, _, size in options) > self.left:
                due.why = due.why or "there is no room left for it"
        closing = allowed & self.program.vocabulary.between_words
        return closing if last_word and closing[2:].any() else None

    def _write(self, key: tuple[str, str], rest: bytes, allowed: np.ndarray) -> np.ndarray | None:
        """Only the token with which `rest` goes on; None, and said why, if other rules forbid every such token."""
        token = self.program.vocabulary.next_of(rest, allowed)
        if token is None:
            self.due[key].why, self._forced = "other rules forbid it", None
            return None
        self.due[key].why, self._forced = "", (key, rest)
        one = np.zeros_like(allowed)
        one[token] = True
        return one

    def bias(self) -> np.ndarray | None:
        """Bits [V] by which preferred tokens are raised; None: none."""
        preferring = tuple(i for i in self.program.preferring if i in self.firing)
        if not preferring:
            return None
        first, following = self.program.bias(preferring)
        tail, bias = self.text.tokens, first
        for size in range(1, min(len(tail), max(map(len, following), default=0)) + 1):
            for token, amount in following.get(tuple(tail[-size:]), ()):
                if bias is first:
                    bias = first.copy()
                bias[token] = max(bias[token], amount)
        return bias

    def acting_anchors(self, acting: tuple[int, ...]) -> tuple[int, ...]:
        """`anchors` of all concepts that these rules point to, in order; looked up where a phrase came or went."""
        if self._acting is None or self._acting[0] != acting:
            rules = (self.program.active[i] for i in acting)
            names = {name for rule in rules if rule.attend for name in rule.attend.to}
            self._acting = acting, tuple(sorted(self.anchors(sorted(names))))
        return self._acting[1]

    def anchors(self, concepts: Sequence[str]) -> set[int]:
        """Positions (BOS is 0) of the tokens that show anchors of these concepts."""
        spans = {span for name in concepts for span in self._spans[name]}
        return {index + 1 for begin, end in spans for index in self.text.tokens_of(begin, end)}

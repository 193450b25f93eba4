"""The effects of rules on phrases: which ban hits which requirement, and which rule lifts which.

Verification and enforcement both ask here, so that what was proven is what runs.
"""

from __future__ import annotations

import dataclasses

from localist_jax.rules.folding import Pattern
from localist_jax.rules.language import Rule, RuleSet


@dataclasses.dataclass(frozen=True)
class Effects:
    """The patterns of one rule.

    Attributes:
      bans: phrases that may not be completed.
      regexes: expressions that may not match.
      demands: for each requirement the phrases of which one is to occur, as written, with their patterns.
    """

    rule: Rule
    bans: tuple[Pattern, ...]
    regexes: tuple[str, ...]
    demands: tuple[tuple[tuple[str, Pattern], ...], ...]

    @classmethod
    def of(cls, rules: RuleSet, rule: Rule) -> Effects:
        """Return the effects of a rule of this set."""
        phrases = [phrase for item in rule.forbid for phrase in rules.phrases(item)]
        bans = [pattern for phrase in phrases for pattern in Pattern.all_of(phrase)]
        demands = [
            tuple((phrase, Pattern.of(phrase)) for item in options for phrase in rules.phrases(item))
            for options in rule.require
        ]
        return cls(
            rule,
            tuple(dict.fromkeys(bans)),
            tuple(item.regex for item in rule.forbid if item.regex),
            tuple(demands),
        )

    @property
    def demanded(self) -> list[Pattern]:
        """Every phrase that some requirement would take."""
        return [pattern for options in self.demands for _, pattern in options]


def together(a: Rule, b: Rule) -> bool:
    """Whether some model is in the scope of both."""
    return not a.scope.models or not b.scope.models or bool(set(a.scope.models) & set(b.scope.models))


def lifting(ban: Pattern, of: Rule, everyone: list[Effects]) -> list[Rule]:
    """The rules that lift a ban while they hold: of higher priority, with a requirement that the ban would hit."""
    return [
        other.rule
        for other in everyone
        if other.rule.priority > of.priority
        and together(other.rule, of)
        and any(ban.implied_by(pattern) for pattern in other.demanded)
    ]

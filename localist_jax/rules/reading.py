"""From a YAML file to a `RuleSet`: strictly, with line numbers, with limits, executing nothing.

Only the YAML of mappings, sequences and scalars is read: no tags, no anchors and aliases, no key twice. Scalars
are taken as they are written, so that `no` is a word and not a truth value.
"""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from localist_jax.rules import language as lang
from localist_jax.rules import patterns
from localist_jax.rules.folding import Pattern
from localist_jax.rules.language import RuleError, RuleSet

LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # the former is ten times faster


def read(path: str | Path) -> RuleSet:
    """The rule set of a file.

    Raises:
      RuleError: the file cannot be read, or `parse` refuses it.
    """
    try:
        if os.path.getsize(path) > lang.MOST_BYTES:
            raise RuleError(f"{path}: larger than {lang.MOST_BYTES} bytes; split the set")
        data = Path(path).read_bytes()
    except OSError as error:
        raise RuleError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise RuleError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error
    return parse(text, str(path))


def parse(text: str, name: str = "rules") -> RuleSet:
    """The rule set of a text.

    Args:
      name: stands in errors.

    Raises:
      RuleError: one line that says where, what was expected, what was found.

    >>> parse("rules: [{id: a, then: {forbid: [tea], forbids: [x]}}]")
    Traceback (most recent call last):
    ...
    localist_jax.rules.language.RuleError: rules, line 1: rules[0].then.forbids: unknown key; did you mean 'forbid'?
    """
    if len(text.encode("utf-8", "replace")) > lang.MOST_BYTES:
        raise RuleError(f"{name}: larger than {lang.MOST_BYTES} bytes; split the set")
    reader = _Reader(name)
    root = _compose(text, name)
    fields = reader.fields(root, "", {"concepts": False, "rules": False})
    concepts = reader.concepts(fields["concepts"]) if "concepts" in fields else {}
    rules = reader.rules(fields["rules"]) if "rules" in fields else ()
    ruleset = RuleSet(concepts, rules)
    reader.check(ruleset)
    return ruleset


def _compose(text: str, name: str) -> yaml.Node:
    """The tree of the document; refuses what would make it larger than its text, or deeper than the limit."""

    def refuse(mark, why: str):
        line = f", line {mark.line + 1}" if mark is not None else ""
        return RuleError(f"{name}{line}: {why}")

    try:
        depth = 0
        for event in yaml.parse(text, Loader=LOADER):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
                raise refuse(event.start_mark, "YAML anchors and aliases (& and *) are not allowed; quote it")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
                if depth > lang.MOST_DEPTH:
                    raise refuse(event.start_mark, f"nested deeper than {lang.MOST_DEPTH} levels")
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if getattr(event, "tag", None):
                raise refuse(event.start_mark, f"YAML tags ({event.tag}) are not allowed")
        node = yaml.compose(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        raise refuse(error.problem_mark or error.context_mark, f"not YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise RuleError(f"{name}: not YAML: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, RecursionError, OverflowError, IndexError) as error:  # PyYAML's own on odd escapes
        if isinstance(error, RuleError):
            raise
        raise RuleError(f"{name}: not YAML: {' '.join(str(error).split())[:200]}") from error
    if node is None:
        raise RuleError(f"{name}: empty; expected the keys 'concepts' and 'rules'")
    return node


class _Reader:
    """Turns nodes into values; every complaint carries the line and the path of what it is about."""

    def __init__(self, name: str):
        self.name = name

    def error(self, node: yaml.Node, path: str, what: str) -> RuleError:
        where = f"{path}: " if path else ""
        return RuleError(f"{self.name}, line {node.start_mark.line + 1}: {where}{what}")

    # Values

    def fields(self, node: yaml.Node, path: str, known: dict[str, bool]) -> dict[str, yaml.Node]:
        """A mapping with these keys; True marks those that must be there."""
        pairs = self.pairs(node, path)
        for key, (key_node, _) in pairs.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
                raise self.error(key_node, f"{path}.{key}".lstrip("."), f"unknown key; {hint}")
        for key, needed in known.items():
            if needed and key not in pairs:
                raise self.error(node, path, f"the key {key!r} is missing")
        return {key: value for key, (_, value) in pairs.items()}

    def pairs(self, node: yaml.Node, path: str) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        if not isinstance(node, yaml.MappingNode):
            raise self.error(node, path, f"expected keys with values, got {_show(node)}")
        found: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.error(key, path, f"expected a name as a key, got {_show(key)}")
            if key.value in found:
                raise self.error(key, path, f"the key {key.value!r} stands here twice")
            found[key.value] = (key, value)
        return found

    def items(self, node: yaml.Node, path: str, read: Callable[[yaml.Node, str], Any]) -> tuple[Any, ...]:
        """A sequence; a single value may stand alone."""
        if not isinstance(node, yaml.SequenceNode):
            return (read(node, path),)
        return tuple(read(item, f"{path}[{i}]") for i, item in enumerate(node.value))

    def some(self, node: yaml.Node, path: str, read: Callable[[yaml.Node, str], Any]) -> tuple[Any, ...]:
        """`items`, of which there must be one."""
        found = self.items(node, path, read)
        if not found:
            raise self.error(node, path, "expected at least one entry, got none")
        return found

    def text(self, node: yaml.Node, path: str, longest: int = lang.LONGEST_PHRASE) -> str:
        if not isinstance(node, yaml.ScalarNode):
            raise self.error(node, path, f"expected text, got {_show(node)}")
        if not node.value.strip():
            raise self.error(node, path, "expected text, got nothing")
        if len(node.value) > longest:
            raise self.error(node, path, f"expected at most {longest} characters, got {len(node.value)}")
        return node.value

    def name_of(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path, lang.LONGEST_NAME)
        if not text.isprintable():
            raise self.error(node, path, f"expected printable characters, got {text!r}")
        return text

    def phrase(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path)
        if not Pattern.of(text).text:
            raise self.error(node, path, f"expected a word or phrase, got {text!r}, which shows nothing")
        return text

    def number(self, node: yaml.Node, path: str, low: float, high: float) -> float:
        text = self.text(node, path)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise self.error(node, path, f"expected a number in [{low:g}, {high:g}], got {text!r}")
        return value

    def whole(self, node: yaml.Node, path: str, low: int, high: int) -> int:
        text = self.text(node, path)
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise self.error(node, path, f"expected a whole number in {low} … {high}, got {text!r}")
        return value

    def flag(self, node: yaml.Node, path: str) -> bool:
        text = self.text(node, path)
        if text not in ("true", "false"):
            raise self.error(node, path, f"expected true or false, got {text!r}")
        return text == "true"

    # Concepts

    def concepts(self, node: yaml.Node) -> dict[str, lang.RuleConcept]:
        found = {}
        for name, (key, value) in self.pairs(node, "concepts").items():
            path = f"concepts.{name}"
            self.name_of(key, path)
            parts = self.fields(value, path, {"anchors": True, "parent": False})
            found[name] = lang.RuleConcept(
                name=name,
                anchors=self.items(parts["anchors"], f"{path}.anchors", self.phrase),
                parent=self.name_of(parts["parent"], f"{path}.parent") if "parent" in parts else "",
                line=key.start_mark.line + 1,
            )
            if not found[name].anchors:
                raise self.error(value, path, "expected at least one anchor, got none")
        return found

    # Rules

    def rules(self, node: yaml.Node) -> tuple[lang.Rule, ...]:
        if not isinstance(node, yaml.SequenceNode):
            raise self.error(node, "rules", f"expected a list of rules, got {_show(node)}")
        return tuple(self.rule(item, f"rules[{i}]") for i, item in enumerate(node.value))

    def rule(self, node: yaml.Node, path: str) -> lang.Rule:
        known = {"id": True, "when": False, "then": True, "scope": False, "priority": False}
        parts = self.fields(node, path, known)
        then_path = f"{path}.then"
        known = dict.fromkeys(("attend", "require", "forbid", "prefer", "format"), False)
        then = self.fields(parts["then"], then_path, known)
        if not then:
            raise self.error(parts["then"], then_path, f"expected one of {', '.join(known)}, got nothing")
        more: dict[str, Any] = {}
        if "attend" in then:
            more["attend"] = self.attend(then["attend"], f"{then_path}.attend")
        if "require" in then:
            more["require"] = self.some(then["require"], f"{then_path}.require", self.requirement)
        if "forbid" in then:
            more["forbid"] = self.some(then["forbid"], f"{then_path}.forbid", self.forbidden)
        if "prefer" in then:
            more["prefer"], more["prefer_bits"] = self.prefer(then["prefer"], f"{then_path}.prefer")
        if "format" in then:
            more["format"] = self.format(then["format"], f"{then_path}.format")
        if "scope" in parts:
            more["scope"] = self.scope(parts["scope"], f"{path}.scope")
        if "priority" in parts:
            more["priority"] = self.whole(parts["priority"], f"{path}.priority", -1000, 1000)
        if "when" in parts:
            more["when"] = self.condition(parts["when"], f"{path}.when")
        return lang.Rule(id=self.name_of(parts["id"], f"{path}.id"), line=node.start_mark.line + 1, **more)

    def condition(self, node: yaml.Node, path: str) -> lang.Condition:
        if isinstance(node, yaml.ScalarNode):
            if node.value == "always":
                return lang.ALWAYS
            return lang.Present(self.name_of(node, path))
        parts = self.fields(
            node, path, dict.fromkeys(("all", "any", "not", "present", "absent", "within", "sentence"), False)
        )
        kinds = [key for key in ("all", "any", "not", "present", "absent") if key in parts]
        if len(kinds) != 1:
            got = " and ".join(kinds) if kinds else "none of them"
            raise self.error(node, path, f"expected exactly one of all, any, not, present, absent, got {got}")
        kind = kinds[0]
        value, inner = parts[kind], f"{path}.{kind}"
        if kind in ("present", "absent"):
            within = self.whole(parts["within"], f"{path}.within", 1, 100_000) if "within" in parts else 0
            sentence = self.flag(parts["sentence"], f"{path}.sentence") if "sentence" in parts else False
            if within and sentence:
                raise self.error(node, path, "expected within or sentence, got both")
            found = lang.Present(self.name_of(value, inner), within, sentence)
            return found if kind == "present" else lang.Not(found)
        for key in ("within", "sentence"):
            if key in parts:
                raise self.error(parts[key], f"{path}.{key}", "belongs beside 'present' or 'absent'")
        if kind == "not":
            return lang.Not(self.condition(value, inner))
        some = self.items(value, inner, self.condition)
        if not some:
            raise self.error(value, inner, "expected at least one condition, got none")
        return lang.All(some) if kind == "all" else lang.Some(some)

    def attend(self, node: yaml.Node, path: str) -> lang.Attend:
        parts = self.fields(node, path, {"to": True, "dial": False, "fidelity": False})
        if ("dial" in parts) == ("fidelity" in parts):
            raise self.error(node, path, "expected either dial (λ) or fidelity (a share of attention)")
        to = self.items(parts["to"], f"{path}.to", self.name_of)
        if not to:
            raise self.error(node, f"{path}.to", "expected at least one concept, got none")
        if "dial" in parts:
            return lang.Attend(to, dial=self.number(parts["dial"], f"{path}.dial", 1e-9, 1))
        return lang.Attend(to, fidelity=self.number(parts["fidelity"], f"{path}.fidelity", 1e-9, 0.9999))

    def item(self, node: yaml.Node, path: str, kinds: dict[str, bool]) -> lang.Item:
        if isinstance(node, yaml.ScalarNode):
            return lang.Item(phrase=self.phrase(node, path))
        parts = self.fields(node, path, kinds)
        if len(parts) != 1:
            raise self.error(node, path, f"expected a phrase, or one of the keys {', '.join(kinds)}")
        if "concept" in parts:
            return lang.Item(concept=self.name_of(parts["concept"], f"{path}.concept"))
        return lang.Item(regex=self.regex(parts["regex"], f"{path}.regex"))

    def regex(self, node: yaml.Node, path: str) -> str:
        text = self.text(node, path, lang.LONGEST_PATTERN)
        problem = patterns.problem_with_regex(text)
        if problem:
            raise self.error(node, path, f"not a regular expression that can be enforced: {problem}")
        return text

    def requirement(self, node: yaml.Node, path: str) -> tuple[lang.Item, ...]:
        if isinstance(node, yaml.MappingNode) and [key.value for key, _ in node.value] == ["any"]:
            options = node.value[0][1]
            found = self.items(options, f"{path}.any", lambda n, p: self.item(n, p, {"concept": False}))
            if not found:
                raise self.error(node, f"{path}.any", "expected at least one phrase, got none")
            return found
        return (self.item(node, path, {"concept": False}),)

    def forbidden(self, node: yaml.Node, path: str) -> lang.Item:
        return self.item(node, path, {"concept": False, "regex": False})

    def prefer(self, node: yaml.Node, path: str) -> tuple[tuple[lang.Item, ...], float]:
        parts = self.fields(node, path, {"items": True, "bits": True})
        found = self.items(parts["items"], f"{path}.items", lambda n, p: self.item(n, p, {"concept": False}))
        if not found:
            raise self.error(node, f"{path}.items", "expected at least one phrase, got none")
        return found, self.number(parts["bits"], f"{path}.bits", 1e-6, 40)

    def format(self, node: yaml.Node, path: str) -> lang.Format:
        parts = self.fields(node, path, {"regex": False, "grammar": False})
        if len(parts) != 1:
            raise self.error(node, path, "expected exactly one of regex and grammar")
        if "regex" in parts:
            return lang.Format(regex=self.regex(parts["regex"], f"{path}.regex"))
        grammar = self.text(parts["grammar"], f"{path}.grammar", 8 * lang.LONGEST_PATTERN)
        problem = patterns.problem_with_grammar(grammar)
        if problem:
            raise self.error(node, f"{path}.grammar", f"not a grammar: {problem}")
        return lang.Format(grammar=grammar)

    def scope(self, node: yaml.Node, path: str) -> lang.Scope:
        parts = self.fields(node, path, {"models": False, "layers": False, "heads": False})

        def index(n, p):
            return self.whole(n, p, 0, 10_000)

        kinds = {"models": self.name_of, "layers": index, "heads": index}
        return lang.Scope(
            **{key: self.items(value, f"{path}.{key}", kinds[key]) for key, value in parts.items()}
        )

    # The whole

    def check(self, rules: RuleSet) -> None:
        """Names that stand for nothing, circles, duplicates, sizes."""
        for what, count, most in (
            ("concepts", len(rules.concepts), lang.MOST_CONCEPTS),
            ("rules", len(rules.rules), lang.MOST_RULES),
        ):
            if count > most:
                raise RuleError(f"{self.name}: {count} {what}, but at most {most} fit; split the set")
        for concept in rules.concepts.values():
            self.known(rules, concept.parent, f"concepts.{concept.name}.parent", concept.line)
            seen, at = {concept.name}, concept.parent
            while at:
                if at in seen:
                    raise RuleError(
                        f"{self.name}, line {concept.line}: concepts.{concept.name}: is its own ancestor"
                    )
                seen.add(at)
                at = rules.concepts[at].parent if at in rules.concepts else ""
        ids: dict[str, int] = {}
        for rule in rules.rules:
            if rule.id in ids:
                raise RuleError(
                    f"{self.name}, line {rule.line}: the id {rule.id!r} stands on line {ids[rule.id]} already"
                )
            ids[rule.id] = rule.line
            for name in _concepts_of(rule):
                self.known(rules, name, f"rule '{rule.id}'", rule.line)
        items = [item for rule in rules.rules for item in _items_of(rule)]
        phrases = sum(len(rules.phrases(item)) for item in items)
        phrases += sum(len(c.anchors) for c in rules.concepts.values())
        patterns = sum(bool(item.regex) for item in items) + sum(bool(rule.format) for rule in rules.rules)
        for what, count, most in (
            ("phrases", phrases, lang.MOST_PHRASES),
            ("regular expressions and grammars", patterns, lang.MOST_PATTERNS),
        ):
            if count > most:
                raise RuleError(f"{self.name}: {count} {what}, but at most {most} fit; split the set")

    def known(self, rules: RuleSet, name: str, path: str, line: int) -> None:
        if name and name not in rules.concepts:
            near = difflib.get_close_matches(name, rules.concepts, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "add it under 'concepts'"
            raise RuleError(f"{self.name}, line {line}: {path}: there is no concept {name!r}; {hint}")


def _items_of(rule: lang.Rule) -> list[lang.Item]:
    return [*(item for options in rule.require for item in options), *rule.forbid, *rule.prefer]


def _concepts_of(rule: lang.Rule) -> list[str]:
    to = rule.attend.to if rule.attend else ()
    used = [item.concept for item in _items_of(rule) if item.concept]
    return [*(atom.concept for atom in lang.atoms(rule.when)), *to, *used]


def _show(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value[:60])
    return "a list" if isinstance(node, yaml.SequenceNode) else "keys with values"

"""Rule files: what is read, what is refused and how, and that no text whatever does more than be refused."""

import contextlib

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from localist_jax.rules import RuleError, RuleSet, parse, read
from localist_jax.rules.versions import difference

GOOD = """
concepts:
  blood: {anchors: [blood, no], parent: body}
  body: {anchors: [body]}
rules:
  - id: one
    when: {any: [blood, {not: {all: [{present: body, within: 3}, {absent: blood, sentence: true}]}}]}
    then:
      attend: {to: blood, dial: 0.9}
      require: [cut, {any: [plaster, {concept: body}]}]
      forbid: [knife*, {regex: '[0-9]+'}]
      prefer: {items: [doctor], bits: 2}
      format: {regex: '[a-z ]+'}
    scope: {models: [m], layers: [1, 2], heads: 0}
    priority: -2
"""


def test_everything_is_read():
    rules = parse(GOOD)
    (rule,) = rules.rules
    assert rules.concepts["blood"].anchors == ("blood", "no")  # `no` is a word
    assert rules.anchors("body") == ["blood", "no", "body"]
    assert (rule.line, rule.priority, rule.scope.layers, rule.scope.heads) == (6, -2, (1, 2), (0,))
    assert [len(options) for options in rule.require] == [1, 2]
    assert rule.attend.dial == 0.9
    assert rule.format.regex == "[a-z ]+"


def test_a_version_is_of_the_content_not_of_the_file():
    rules = parse(GOOD)
    assert parse("# a note\n" + GOOD.replace("blood, no]", "'blood',   no]")).version == rules.version
    other = parse(GOOD.replace("cut,", "cuts,"))
    assert other.version != rules.version
    assert difference(rules, other).changed == ("one",)
    assert difference(rules, rules.without({"one"})).removed == ("one",)
    assert not difference(rules, rules)


BAD = [
    ("", "empty"),
    ("rules: [{id: a, then: {forbid: [tea]}}]\nrule: []", "line 2: rule: unknown key; did you mean 'rules'"),
    ("rules:\n  - id: a\n    then: {forbids: [x]}", "line 3: .*forbids: unknown key; did you mean 'forbid'"),
    ("rules:\n  - then: {forbid: [x]}", "line 2: .*'id' is missing"),
    ("rules:\n  - {id: a, then: {}}", "expected one of attend, require"),
    ("rules: [{id: a, then: {forbid: []}}]", "forbid: expected at least one entry"),
    ("rules: [{id: a, then: {require: []}}]", "require: expected at least one entry"),
    ("rules:\n  - {id: a, then: {forbid: [x]}}\n  - {id: a, then: {forbid: [y]}}", "line 3: the id 'a'"),
    ("rules: [{id: a, when: c, then: {forbid: [x]}}]", "no concept 'c'; add it"),
    ("concepts: {a: {anchors: [x], parent: b}, b: {anchors: [y], parent: a}}", "its own ancestor"),
    ("concepts: {a: {anchors: []}}", "at least one anchor"),
    ("concepts: {a: {anchors: ['\\u200b ']}}".replace("\\u200b", "\u200b"), "shows nothing"),
    ("concepts: &x {a: {anchors: [x]}}", "anchors and aliases"),
    ("concepts: !!python/object:os.system {}", "tags"),
    ("a: [" + "[" * 60, "nested deeper|not YAML"),
    ("rules: [{id: a, then: {forbid: [{regex: '(a'}]}}]", "not a regular expression .*missing"),
    ("rules: [{id: a, then: {forbid: [{regex: 'a*'}]}}]", "matches the empty text"),
    ("rules: [{id: a, then: {attend: {to: [b], dial: 2}}}]", r"number in \[1e-09, 1\], got '2'"),
    ("rules: [{id: a, then: {attend: {to: [b], dial: 1, fidelity: 0.5}}}]", "either dial"),
    ("rules: [{id: a, when: {present: b, absent: b}, then: {forbid: [x]}}]", "exactly one of"),
    ("rules: [{id: a, id: b, then: {forbid: [x]}}]", "'id' stands here twice"),
    ("rules: [{id: a, then: {forbid: [" + "x" * 200 + "]}}]", "at most 120 characters"),
    ("rules:\n\t- x", "line 2: not YAML"),
    ("x" * 300_000, "larger than"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=range(len(BAD)))
def test_bad_files_are_refused_in_one_line(text, words):
    with pytest.raises(RuleError, match=words) as error:
        parse(text)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text(tmp_path):
    with pytest.raises(RuleError, match="cannot be read"):
        read(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"rules: []\n\xff")
    with pytest.raises(RuleError, match="line 2: not UTF-8"):
        read(tmp_path / "bytes.yaml")


FUZZ = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
words = st.text(max_size=8) | st.sampled_from(
    ["a", "b", "all", "present", "forbid", "*", "&x", "!!map", "\0"]
)
keys = st.sampled_from(
    ["concepts", "rules", "id", "when", "then", "forbid", "require", "attend", "to", "dial", "anchors", "regex",
     "all", "not", "present", "within", "scope", "layers", "priority", "format", "prefer", "items", "bits"]
)  # fmt: skip
trees = st.recursive(
    words | st.integers() | st.floats() | st.none() | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys | words, inner, max_size=4),
    max_leaves=12,
)


@settings(FUZZ, max_examples=300)
@given(st.text(max_size=200) | trees.map(lambda tree: yaml.dump(tree, allow_unicode=True)))
def test_any_text_is_a_rule_set_or_an_error(text):
    try:
        assert isinstance(parse(text), RuleSet)
    except RuleError as error:
        said = str(error)
    else:
        said = ""
    assert "\n" not in said


@settings(FUZZ, max_examples=200)
@given(st.data())
def test_a_good_file_with_a_hole_in_it_is_a_rule_set_or_an_error(data):
    start = data.draw(st.integers(0, len(GOOD) - 1))
    end = data.draw(st.integers(start, min(len(GOOD), start + 30)))
    with contextlib.suppress(RuleError):
        assert isinstance(parse(GOOD[:start] + data.draw(words) + GOOD[end:]), RuleSet)

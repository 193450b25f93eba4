"""The solver finds contradictions with their smallest sets, dead, shadowed and overridden rules."""

import pytest

from localist_jax.rules import RuleError, parse, verify

CONCEPTS = """
concepts:
  warfarin: {anchors: [warfarin], parent: anticoagulant}
  anticoagulant: {anchors: [anticoagulant*]}
  doctor: {anchors: [doctor]}
  heart: {anchors: [heart]}
  attack: {anchors: [heart attack, attack of the heart]}
"""


def found(rules):
    return [(f.kind, f.rules) for f in verify(parse(CONCEPTS + "rules:\n" + rules)).all]


def test_a_contradiction_is_named_with_its_context():
    text = """
  - {id: far, when: doctor, then: {forbid: [tea]}}
  - {id: warn, when: warfarin, then: {require: [bleeding risk]}}
  - {id: calm, when: {all: [anticoagulant, {absent: doctor}]}, then: {forbid: [bleeding]}}
"""
    with pytest.raises(RuleError) as error:
        verify(parse(CONCEPTS + "rules:" + text)).insist()
    said = str(error.value)
    for words in ("'warn' (line 10)", "'calm' (line 11)", "'bleeding risk'", "'doctor' is absent"):
        assert words in said
    assert "'far'" not in said


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        # every phrase of a requirement must be banned, if need be by several
        ("""  - {id: r, then: {require: [{any: [tea, milk]}]}}
  - {id: a, then: {forbid: [tea]}}""", []),
        ("""  - {id: r, then: {require: [{any: [tea, milk]}]}}
  - {id: a, then: {forbid: [tea]}}
  - {id: b, when: heart, then: {forbid: [milk]}}""", [("contradiction", ("r", "a", "b"))]),
        # the smallest set, not the first
        ("""  - {id: r, then: {require: [{any: [tea, milk]}]}}
  - {id: a, then: {forbid: [tea]}}
  - {id: b, when: heart, then: {forbid: [milk]}}
  - {id: c, when: doctor, then: {forbid: [tea, milk]}}""", [("contradiction", ("r", "c"))]),
        # conditions that exclude each other do not contradict
        ("""  - {id: r, when: doctor, then: {require: [tea]}}
  - {id: a, when: {absent: doctor}, then: {forbid: [tea]}}""", []),
        # nor do words that only share letters
        ("""  - {id: r, then: {require: [category]}}
  - {id: a, then: {forbid: [cat]}}""", []),
        ("""  - {id: r, then: {require: [category]}}
  - {id: a, then: {forbid: [cat*]}}""", [("contradiction", ("r", "a"))]),
        # an expression bans a phrase that matches it
        ("""  - {id: r, then: {require: [call 112]}}
  - {id: a, when: heart, then: {forbid: [{regex: '[0-9]{3}'}]}}""", [("contradiction", ("r", "a"))]),
        # priority decides: the ban is lifted, or the requirement is overridden
        ("""  - {id: r, priority: 1, then: {require: [tea]}}
  - {id: a, then: {forbid: [tea]}}""", []),
        ("""  - {id: r, then: {require: [tea]}}
  - {id: a, priority: 1, when: heart, then: {forbid: [tea]}}""", [("overridden", ("r", "a"))]),
        # models apart
        ("""  - {id: r, scope: {models: [x]}, then: {require: [tea]}}
  - {id: a, scope: {models: [y]}, then: {forbid: [tea]}}""", []),
        # two formats at once
        ("""  - {id: r, when: heart, then: {format: {regex: '[a-z]+'}}}
  - {id: a, when: doctor, then: {format: {regex: '[0-9]+'}}}""", [("contradiction", ("r", "a"))]),
        # dead: a kind is its parent, a phrase holds its words, near is present
        ("""  - {id: r, when: {all: [warfarin, {absent: anticoagulant}]},
     then: {forbid: [tea]}}""", [("dead", ("r",))]),
        ("""  - {id: r, when: {all: [attack, {absent: heart}]}, then: {forbid: [tea]}}""", [("dead", ("r",))]),
        ("""  - {id: r, when: {all: [{present: heart, within: 5}, {not: {present: heart, within: 9}}]},
     then: {forbid: [tea]}}""", [("dead", ("r",))]),
        # … but far is not near
        ("""  - {id: r, when: {all: [{present: heart, within: 9}, {not: {present: heart, within: 5}}]},
     then: {forbid: [tea]}}""", []),
        # shadowed: the later of two, by one or by several together
        ("""  - {id: r, when: heart, then: {forbid: [green tea]}}
  - {id: a, when: heart, then: {forbid: [tea]}}""", [("shadowed", ("r", "a"))]),
        ("""  - {id: r, then: {forbid: [tea]}}
  - {id: a, when: heart, then: {forbid: [tea]}}
  - {id: b, when: {absent: heart}, then: {forbid: [tea]}}""", [("shadowed", ("b", "r")), ("shadowed", ("a", "r"))]),
        ("""  - {id: a, when: heart, then: {forbid: [tea]}}
  - {id: b, when: {absent: heart}, then: {forbid: [tea]}}
  - {id: r, when: doctor, then: {forbid: [tea]}}""", [("shadowed", ("r", "a", "b"))]),
        ("""  - {id: a, then: {attend: {to: [heart], dial: 0.9}}}
  - {id: r, then: {attend: {to: [heart], dial: 0.5}}}""", [("shadowed", ("r", "a"))]),
        ("""  - {id: a, scope: {layers: [1]}, then: {attend: {to: [heart], dial: 0.9}}}
  - {id: r, then: {attend: {to: [heart], dial: 0.5}}}""", []),
    ],
)  # fmt: skip
def test_findings(rules, expected):
    assert sorted(found(rules)) == sorted(expected)

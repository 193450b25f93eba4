"""The study of rules: its world is what it says, and damaged files neither crash nor load by half."""

from experiments.rule_compliance.measure import broken_files
from experiments.rule_compliance.world import Clinic, many_rules
from localist_jax.data import Tokenizer
from localist_jax.rules import checker, parse, verify


def test_the_clinic_says_what_its_rules_forbid_also_in_disguise():
    clinic = Clinic(0)
    rules = parse(clinic.rules())
    assert verify(rules).all == ()
    sentences = [s for line in clinic.text(3000).split("\n\n") for s in line.split(". ")]
    violating = [s for s in sentences if checker.check("", s, [(0, rules)]).violations]
    assert len(violating) > 300
    assert any("no interaction" not in s and "safe together" not in s and "phone" not in s for s in violating)
    assert any(not s.isascii() for s in violating)
    lures, harmless = clinic.prompts(64, harmless=False), clinic.prompts(64, harmless=True)
    assert sum("ignore all rules" in prompt for prompt in lures) > 10
    assert all(checker.check("", prompt, [(0, rules)]).compliant for prompt in harmless)
    assert Clinic(0).text(50) == Clinic(0).text(50) != Clinic(1).text(50)


def test_the_set_for_timings_is_consistent():
    rules = parse(many_rules(20))
    assert len(rules.rules) == 20
    assert verify(rules).all == ()


def test_damaged_files_are_refused_or_whole(small):
    tokenizer = Tokenizer.train([Clinic(0).text(100)], 300)
    figures = broken_files(60, tokenizer, small)
    assert figures["crashes"] == figures["half_loaded"] == 0
    assert 0 < figures["accepted"] < 60

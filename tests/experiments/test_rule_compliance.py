"""The study of rules: its worlds are what they say, and damaged files neither crash nor load by half."""

import json
from dataclasses import asdict

import pytest

from experiments.cases import Results, Store
from experiments.rule_compliance import __main__ as study
from experiments.rule_compliance import page, parts
from experiments.rule_compliance.damage import broken_files
from experiments.rule_compliance.measure import CONDITIONS, Tally
from experiments.rule_compliance.personal import FILE, FORMS, Judge, Sentences
from experiments.rule_compliance.world import ATTACKS, Clinic, many_rules
from localist_jax.rules import checker, parse, verify

NUMBERS = (
    "forbid_violations", "fuzzed_rule_files", "accepted", "crashes", "half_loaded", "decode_ms", "decode_cpu_ms",
    "decode_added_ms_no_rule", "decode_added_ms_100_rules", "decode_added_cpu_ms_no_rule",
    "decode_added_cpu_ms_100_rules", "host_in_the_way_ms_no_rule", "host_in_the_way_ms_100_rules",
    "host_beside_ms_no_rule", "host_beside_ms_100_rules", "inject_ms_100_rules", "parse_ms_100_rules",
    "verify_ms_100_rules", "compile_ms_100_rules", "recompiles",
)  # fmt: skip


def test_the_clinic_says_what_its_rules_forbid_also_in_disguise():
    clinic = Clinic(0)
    rules = parse(clinic.rules(clinic.seen))
    assert verify(rules).all == ()
    text = clinic.text(3000)
    sentences = [s for line in text.split("\n\n") for s in line.split(". ")]
    violating = [s for s in sentences if checker.check("", s, [(0, rules)]).violations]
    assert len(violating) > 300
    assert any("no interaction" not in s and "safe together" not in s and "phone" not in s for s in violating)
    assert any(not s.isascii() for s in violating)
    harmless = [clinic.harmless(clinic.seen) for _ in range(64)]
    assert all(checker.check("", prompt, [(0, rules)]).compliant for prompt in harmless)
    assert Clinic(0).text(50) == Clinic(0).text(50) != Clinic(1).text(50)


def test_no_tested_drug_is_in_the_training_text():
    clinic = Clinic(0)
    words = set(clinic.text(3000).lower().replace(".", " ").split())
    assert {drug for pair in clinic.seen for drug in pair} <= words
    assert not words & {drug for pair in clinic.unseen for drug in pair}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_an_attack_leads_to_violates(attack):
    clinic = Clinic(0)
    rules = parse(clinic.rules(clinic.unseen))
    for _ in range(20):
        prompt = clinic.prompt(clinic.unseen, attack)
        end = prompt.replace("\u200b", "")
        rests = [
            p[n:]
            for p in ("no interaction", "safe together")
            for n in range(1, len(p))
            if end.endswith(" " + p[:n])
        ]
        assert bool(rests) == (attack == "tokens")
        written = max(rests, key=len) if rests else " 123-4567, no intеraction, safe together"
        assert checker.check(prompt, written, [(0, rules)]).violations, (prompt, written)


def test_personal_data_is_split_and_judged_by_its_labels(tmp_path, monkeypatch):
    def sentence(text, kind, value):
        start = text.index(value)
        span = {
            "entity_type": kind,
            "entity_value": value,
            "start_position": start,
            "end_position": start + len(value),
        }
        return {"full_text": text, "spans": [span]}

    one, two = (
        ("Call 555-123-4567 now", "PHONE_NUMBER", "555-123-4567"),
        ("I am Ann  Lee.", "PERSON", "Ann  Lee"),
    )
    folder = tmp_path / "pii_synthetic"
    folder.mkdir()
    (folder / FILE).write_text(
        json.dumps([sentence(*one), {"full_text": "All is well", "spans": []}, sentence(*two)])
    )
    monkeypatch.setenv("LOCALIST_DATA", str(tmp_path))
    data = Sentences()
    assert (data.lures(), data.harmless()) == (["I am"], ["All"])
    rules, judge = parse(data.rules()), Judge(data.values())
    assert verify(rules).contradictions == []
    assert judge.leaks("my name is ann lee") == ["PERSON"]
    assert judge.leaks("Joann Lee, 555-123-4567") == []  # another name; a number of the first half
    for said, kind in (
        ("ann\u200b lee", "PERSON"),
        ("555-123-4567", "PHONE_NUMBER"),
        ("a@b.cd", "EMAIL_ADDRESS"),
    ):
        assert kind in [v["rule"] for v in checker.check("I am ", said, [(0, rules)]).violations]
    assert set(FORMS) < {rule.id for rule in rules.rules}


def test_the_upper_bound_is_clopper_and_pearsons():
    assert page.at_most(0, 100) == pytest.approx(1 - 0.05 ** (1 / 100))
    assert page.at_most(3, 3) == 1.0


@pytest.mark.parametrize("personal", [False, True])
def test_the_page_says_what_was_counted(personal, tmp_path):
    def part(violating):
        counts = {
            attack: asdict(Tally(10, violating, tokens=50, bits=100.0, price_bits=25.0)) for attack in ATTACKS
        }
        return parts.total([counts, counts])

    rows = {name: [part(0 if name == "both" else 7), part(0)] for name in CONDITIONS}
    figures = {
        **dict.fromkeys(NUMBERS, 0),
        "generations": 160,
        "violation_rate_at_most": 0.5,
        "over_refusal": 0.0,
        "over_refusal_at_most": 0.5,
        "conditions": {"clinic": rows, "personal": rows if personal else {}},
        "refused": {key: [{"harmless": 9, "changed": 1, "cut": 1}] for key in ("clinic", "personal")},
        "made": {p: {"command": "again" if p == "time" else "once", "date": "today"} for p in parts.PARTS},
    }
    said = page.body(figures)
    assert "| no rules | 160 | 56 | 35.00 ± 35.00 |" in said
    assert "| both | 160 | 0 | 0.00 ± 0.00 |" in said
    assert "160 generations under both of the 100,000" in said
    assert ("Not measured in this run" in said) != personal
    assert (
        "- rules about drugs, rules about personal data, damaged files: `once`, today\n- time: `again`"
        in said
    )
    assert "Of these, 1 would violate" in said
    page.picture(figures).savefig(tmp_path / "picture.svg")


def options(tmp_path, *words):
    return study.STUDY.parsed([f"--workdir={tmp_path}", f"--out={tmp_path}", "--seeds", "0", *words])


def test_a_model_is_trained_anew_when_its_text_has_changed(tmp_path, monkeypatch):
    def model():
        return parts.clinic(options(tmp_path), 0)["model"][0]

    store, before = Store(tmp_path), model()
    assert store.own(model()) == store.own(before)
    monkeypatch.setattr(Clinic, "text", lambda self, count: "another text")
    assert store.own(model()) != store.own(before)
    (asked,) = parts.clinic(options(tmp_path), 0)["harmless"]
    assert asked.after[0].settings == model().settings


def test_every_case_has_a_file_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(Clinic, "text", lambda self, count: "a text")
    planned = study.cases(options(tmp_path, "--generations", "5000"))
    assert len({Store(tmp_path).path(case) for case in planned}) == len(planned)
    both = [case for case in planned if case.name.startswith("clinic/both/seed0/")]
    assert [case.settings["count"] for case in both] == [2048, 2048, 1024]


def test_a_part_is_measured_alone_and_the_others_stay_on_record(tmp_path, monkeypatch):
    asked, store = options(tmp_path, "--parts", "time"), Store(tmp_path)
    with pytest.raises(ValueError, match="from which the other parts would come"):
        study.recorded(asked)
    both = [{"all": asdict(Tally(generations=9, violating=1))}]
    figures = {
        "conditions": {"clinic": {"both": both}, "personal": {}},
        "refused": {"clinic": [{"harmless": 8, "changed": 2}], "personal": []},
        "decode_ms": 1.0,
        "crashes": 0,
    }
    about = {"command": "all", "date": "once", "figures": figures}
    (tmp_path / "rule_compliance.json").write_text(json.dumps(about))
    planned = study.cases(asked)
    for case, row in zip(planned, ({"decode_ms": 2.0}, {"parse_ms_100_rules": 3.0}), strict=True):
        store.keep(case, row, 1.0)
    found = study.measured(asked, Results(store, planned))
    assert (found["decode_ms"], found["parse_ms_100_rules"], found["crashes"]) == (2.0, 3.0, 0)
    assert (found["generations"], found["forbid_violations"], found["over_refusal"]) == (9, 1, 0.25)
    again = "python -m experiments.rule_compliance --parts time --seeds 0"
    assert [found["made"][part]["command"] for part in parts.PARTS] == ["all", "all", "all", again]
    assert not {"seconds", "made_on"} & found.keys()
    assert study.recorded(options(tmp_path)) == {}


def test_the_page_goes_without_personal_data_but_not_without_the_clinic(tmp_path, monkeypatch):
    monkeypatch.setattr(Clinic, "text", lambda self, count: "a text")
    asked, store = options(tmp_path, "--generations", "300", "--others", "256"), Store(tmp_path)
    planned = study.cases(asked)
    counts = {kind: asdict(Tally(10, 1, tokens=50)) for kind in ATTACKS}
    for case in planned:
        if case.name.startswith("clinic/"):
            row = (
                {"harmless": 9, "changed": 1}
                if "harmless" in case.name
                else {}
                if "model" in case.name
                else counts
            )
            store.keep(case, row, 1.0)
        elif not case.name.startswith("personal/"):
            store.keep(case, {}, 1.0)
    found = study.measured(asked, Results(store, planned))
    assert found["conditions"]["personal"] == {}
    assert found["conditions"]["clinic"][parts.SEEN][0]["all"]["generations"] == 10 * len(ATTACKS)
    assert (found["harmless"], found["generations"]) == (9, 10 * len(ATTACKS))
    store.path(planned[0]).unlink()
    with pytest.raises(ValueError, match="1 cases, such as time/times, were not run"):
        study.measured(asked, Results(store, planned))


def test_the_set_for_timings_is_consistent():
    rules = parse(many_rules(20))
    assert len(rules.rules) == 20
    assert verify(rules).all == ()


def test_damaged_files_are_refused_or_whole():
    figures = broken_files(60)
    assert figures["crashes"] == figures["half_loaded"] == 0
    assert 0 < figures["accepted"] < 60

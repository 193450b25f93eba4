"""`localist rules …` and `localist generate --rules` as users type them."""

import json
import shutil

import pytest
from command_line import command

from localist_jax.rules import versions
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import ACTIVE_RULES, Run

HOUSE = """
concepts:
  value: {anchors: [value]}
rules:
  - {id: quiet, then: {forbid: ['a*']}}
  - {id: last, when: value, then: {require: [thanks], attend: {to: [value], fidelity: 0.5}}}
"""


@pytest.fixture
def house(tmp_path):
    path = tmp_path / "house.yaml"
    path.write_text(HOUSE)
    return path


def test_check_shows_what_was_proven(house, tmp_path):
    status, out, _ = command("rules", "check", house)
    assert status == 0
    assert "2 rules, consistent" in out
    bad = tmp_path / "bad.yaml"
    bad.write_text(HOUSE + "  - {id: no, when: value, then: {forbid: [thanks]}}\n")
    status, out, err = command("rules", "check", bad)
    assert status == 1
    assert "contradiction: rule 'last' (line 6) requires 'thanks', but rule 'no' (line 7) forbids it" in out
    assert err.strip().splitlines() == [f"error: {bad}: 1 contradiction; it cannot be loaded"]


def test_show_and_diff(house, tmp_path):
    status, out, _ = command("rules", "show", house)
    assert status == 0
    assert "rule last (priority 0): when 'value' is present" in out
    assert "attend to value (fidelity 0.5)" in out
    other = tmp_path / "other.yaml"
    other.write_text(HOUSE.replace("'a*'", "'b*'").replace("id: last", "id: final"))
    status, out, _ = command("rules", "diff", house, other)
    assert (status, out.split("\n")) == (0, ["+ final", "- last", "~ quiet", ""])


def test_inject_generate_and_audit(house, tiny_run, tmp_path):
    audit = tmp_path / "out.json"
    call = ["generate", tiny_run.workdir, "value", "--tokens", "12", "--audit", audit]
    status, out, err = command(*call, "--rules", house, "--dial", "0", "1")
    assert status == 0, err
    records = json.loads(audit.read_text())
    assert len(records) == 2
    for record in records:
        assert record["verdict"]["compliant"]
        assert "thanks" in record["output"]
        assert record["price_bits"] > 0
    assert err.count("rules fired: ") == 2

    status, out, _ = command("rules", "inject", tiny_run.workdir, house)
    assert status == 0
    assert "+ quiet" in out
    version = records[0]["rule_sets"][0]["version"]
    assert (versions.folder(tiny_run.workdir) / f"{version}.yaml").is_file()
    status, out, err = command(*call)
    assert "rules fired: quiet, last" in err  # the run's active rules
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        HOUSE.replace("{to: [value], fidelity: 0.5}}", "{to: [value], dial: 1}}, scope: {layers: [0]}")
    )
    status, out, err = command("rules", "inject", tiny_run.workdir, bad)
    assert status == 1
    assert "layer 0 is not one of 1 … 2" in err
    assert versions.stored(tiny_run.workdir).version == version
    status, out, _ = command("rules", "show", house, "--run", tiny_run.workdir)
    assert status == 0
    assert "uncovered: " in out
    (tiny_run.workdir / ACTIVE_RULES).unlink()


def test_a_checkpoint_brings_its_rules_along(house, tiny_run, tmp_path):
    shutil.copytree(tiny_run.workdir, tmp_path / "run")
    wanted = versions.store(tmp_path / "run", house)
    run = Run.open(tmp_path / "run")
    assert run.saved_rules == ""  # that checkpoint is older than the rules
    with Checkpoints(run.workdir / "checkpoints", keep=9) as checkpoints:
        checkpoints.save(13, run.state, manifest=run.manifest(), cursor={})
    house.write_text(HOUSE.replace("'a*'", "'b*'"))
    other = versions.store(run.workdir, house)
    again = Run.open(run.workdir)
    assert versions.of(again).version == other.version != wanted.version
    assert versions.of(again, as_saved=True).version == wanted.version
    (run.workdir / ACTIVE_RULES).unlink()
    assert versions.of(again).version == wanted.version
    audit = tmp_path / "out.json"
    status, _, err = command("generate", run.workdir, "value", "--tokens", "3", "--audit", audit)
    assert status == 0, err
    assert [s["version"] for s in json.loads(audit.read_text())[0]["rule_sets"]] == [wanted.version]

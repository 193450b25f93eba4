"""Rules on running generations: bans, requirements, preferences, formats, attention; swaps without a recompile."""

import json
import time
from types import SimpleNamespace

import jax
import jax.monitoring
import numpy as np
import pytest

from localist_jax.locality import Dial, certificates
from localist_jax.model import forward
from localist_jax.rules import RuleError, parse
from localist_jax.rules.enforcement import Enforcer
from localist_jax.rules.record import audits
from localist_jax.rules.versions import FileWatch

COMPILED: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if name.endswith("backend_compile_duration") else None
)

PROMPTS = ["the cat sat on warfarin", "my password", "warfarin and then the dog sat on the mat with"]
CONCEPTS = "concepts: {warfarin: {anchors: [warfarin]}, dog: {anchors: [dog, cat]}}\n"


def rules_of(*rules):
    return parse(CONCEPTS + f"rules: [{', '.join(rules)}]")


BAN = "{id: ban, when: warfarin, then: {forbid: [a, the, 't*', {regex: '[0-9n]'}]}}"
NEED = "{id: need, then: {require: [heart attack, {any: [bleeding, {concept: dog}]}]}}"
PREFER = "{id: prefer, then: {prefer: {items: [mat], bits: 2}}}"
POINT = "{id: point, when: warfarin, scope: {layers: [1]}, then: {attend: {to: [warfarin], fidelity: 0.9}}}"


def test_bans_and_requirements_hold_and_are_priced(write):
    generations, enforcer = write(rules_of(BAN, NEED), PROMPTS)
    records = audits(enforcer, generations)
    for record, generation in zip(records, generations, strict=True):
        assert record["verdict"]["compliant"], (record["output"], record["verdict"], record["requirements"])
        assert len(record["price_bits_by_token"]) == len(generation.tokens) == 20
        assert all(due["met"] for due in record["requirements"])
        assert record["price_bits"] > 10  # an untrained model does not say "heart attack" of its own accord
        json.dumps(record)
    assert [sorted(e["rule"] for e in r["fired"]) for r in records] == [
        ["ban", "need"],
        ["need"],
        ["ban", "need"],
    ]


def test_without_rules_nothing_changes(write):
    free, enforcer = write(rules_of(), PROMPTS)
    plain, _ = write(None, PROMPTS, enforcer=_Nothing())
    assert [g.tokens for g in free] == [g.tokens for g in plain]
    assert all(record["price_bits"] < 1e-4 for record in audits(enforcer, free))


class _Nothing(Enforcer):
    """A constraint that allows everything."""

    def __init__(self):
        pass

    def start(self, *_):
        pass

    def steering(self, _):
        return None

    def __call__(self, logits, _):
        return logits

    def wanted(self, _):
        return None

    def ended(self, _):
        return ()


def test_the_price_of_a_ban_is_that_of_t14(write, network, tokenizer, blocks):
    generations, enforcer = write(rules_of("{id: r, then: {forbid: ['t*']}}"), ["my"], max_new=1)
    model, params = network
    row = np.array([[1, *tokenizer.encode("my")]], np.int32)
    logits = jax.jit(forward, static_argnums=0)(model, params, row, Dial(0.5), blocks).logits[0, -1]
    p = np.exp(np.asarray(logits, np.float64))
    p[:2] = 0
    begins = [tokenizer.token_text(i).strip().lower().startswith("t") for i in range(len(p))]
    attached = [tokenizer.token_text(i)[:1].lower() == "t" for i in range(len(p))]
    banned = np.array(begins) & ~np.array(attached)  # "myt…" is one word
    (record,) = audits(enforcer, generations)
    np.testing.assert_allclose(record["price_bits"], -np.log2(p[~banned].sum() / p.sum()), atol=1e-4)


def test_preferences_raise_odds_and_cost_what_they_move(write):
    generations, enforcer = write(rules_of("{id: r, then: {prefer: {items: [aspirin], bits: 30}}}"), ["my"])
    (record,) = audits(enforcer, generations)
    assert "aspirin" in record["output"]
    assert record["price_bits"] > 1


def test_a_format_ends_the_output_when_it_is_complete(write):
    rule = "{id: r, then: {format: {regex: ' (yes|no), [0-9]{3}'}}}"
    generations, enforcer = write(rules_of(rule), PROMPTS)
    for record in audits(enforcer, generations):
        assert record["finish"] == "complete"
        assert record["verdict"]["compliant"], (record["output"], record["verdict"], record["requirements"])
        assert record["output"][:4] in (" yes", " no,")


def test_what_cannot_be_done_is_said(write):
    everything = "{id: all, then: {format: {regex: 'cat'}, forbid: [{regex: 'c'}]}}"
    (generation,), enforcer = write(rules_of(everything), ["my"])
    assert generation.tokens == []
    assert generation.finish == "rules: no token is allowed"
    (generation,), enforcer = write(rules_of(NEED), ["my"], max_new=2)
    (record,) = audits(enforcer, [generation])
    assert not record["verdict"]["compliant"]
    assert {due["why"] for due in record["requirements"] if not due["met"]} == {
        "there is no room left for it"
    }


def test_a_refused_set_leaves_the_present_one(write, network, tokenizer):
    enforcer = Enforcer(tokenizer, network[0].config, network[1], rules_of(BAN))
    before = enforcer.program
    with pytest.raises(RuleError, match="forbids it itself"):
        enforcer.inject(rules_of("{id: x, then: {require: [tea], forbid: [tea]}}"))
    with pytest.raises(RuleError, match="layer 0 is not one of 1 … 2"):
        enforcer.inject(rules_of(POINT.replace("[1]", "[0]")))
    with pytest.raises(RuleError, match="no rule nobody"):
        enforcer.remove("nobody")
    enforcer.start([[5]], [3], 16)
    assert enforcer.program is before


def test_rules_come_and_go_between_steps_without_a_recompile(write, network, tokenizer):
    enforcer = Enforcer(tokenizer, network[0].config, network[1])
    step, compiled = (
        [0],
        [],
    )  # the first rule of its life comes in mid-generation, in a context of a size of its own

    def between(_):
        step[0] += 1
        if step[0] == 5:
            enforcer.inject(rules_of(BAN, POINT))
        if step[0] == 10:
            enforcer.inject(rules_of(BAN.replace("warfarin", "always"), NEED, PREFER))
        if step[0] == 15:
            enforcer.remove("ban")
        compiled.append(len(COMPILED))

    generations, _ = write(None, PROMPTS, enforcer=enforcer, on_tokens=between, context=60)
    assert len(set(compiled[2:])) == 1  # all is compiled by the first two steps: prompt and token
    records = audits(enforcer, generations)
    for record in records:
        assert record["tokens"] == 20
        assert record["verdict"]["compliant"], (record["output"], record["verdict"], record["requirements"])
        assert [s["from_token"] for s in record["rule_sets"]] == [0, 5, 10, 15]
        assert len({s["version"] for s in record["rule_sets"]}) == 4
    assert COMPILED, "the listener hears compilations"


@pytest.mark.parametrize("dial", [0.0, 0.9, 1.0])
def test_attention_keeps_its_promise_on_anchors(write, dial):
    point = POINT.replace("fidelity: 0.9", "fidelity: 0.8")
    generations, enforcer = write(rules_of(point), PROMPTS[2:], dial=Dial(dial), max_new=6)
    (record,) = audits(enforcer, generations)
    (entry,) = record["attention"]
    (layer,) = entry["layers"]
    assert (layer["layer"], entry["steps_with_anchors_beyond_the_window"]) == (1, 6)
    assert layer["promised_least"] >= 0.8 - 1e-4
    assert layer["promise_kept"]
    assert layer["anchor_mass_least"] >= 0.8
    # The same measure where no rule acts: far from it.
    weak = POINT.replace("fidelity: 0.9", "dial: 0.000001")
    generations, enforcer = write(rules_of(weak), PROMPTS[2:], dial=Dial(0.0), max_new=6)
    (layer,) = audits(enforcer, generations)[0]["attention"][0]["layers"]
    assert layer["anchor_mass"] < 0.7


def test_a_rule_at_lambda_one_leaves_only_anchors_self_sink_and_window(write):
    _, enforcer = write(
        rules_of(POINT.replace("fidelity: 0.9", "dial: 1")), PROMPTS[2:], dial=Dial(0.0), max_new=6
    )
    for entry in enforcer.trail[0]["attention"]:
        np.testing.assert_allclose(entry["fidelity"][1], 1.0, atol=1e-6)  # layer 1 is in scope
        assert entry["fidelity"][2].min() < 0.999  # layer 2 is not


def test_bounds_for_target_sets_are_attained_and_rounded_down():
    rng = np.random.default_rng(0)
    for _ in range(50):
        S, beta, a, r, u = rng.uniform(0, 5), rng.uniform(0, 4), *rng.integers(1, 30, 3)
        gain = float(certificates.gain_for_fidelity(0.9, S, a, r + u))
        worst = a * np.exp(-S + gain)
        exact = worst / (worst + r * np.exp(S) + u * np.exp(S - beta))
        bound = float(certificates.target_fidelity_bound(gain, beta, S, a, r, u))
        assert 0.9 <= bound <= exact
        assert exact - bound < 1e-4


def test_a_watched_file_is_taken_up_and_a_bad_one_refused(network, tokenizer, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("rules: []")
    enforcer, said = Enforcer(tokenizer, network[0].config), []
    watch = FileWatch(path, enforcer, said.append)
    assert not watch.look()
    path.write_text("rules: [{id: a, then: {forbid: [tea]}}]")
    late = FileWatch(path, enforcer, said.append)  # it changed since the enforcer read it
    assert late.look()
    assert not late.look()
    assert watch.look()
    path.write_text("rules: [{id: a, then: {forbid: [tea], require: [tea]}}]")
    assert not watch.look()
    assert "refused" in said[-1]
    enforcer.start([[5]], [3], 16)
    assert [rule.id for rule in enforcer.program.active] == ["a"]
    edits = iter(["rules: [{id:", "", "rules: [{id: b, then: {forbid: [tea]}}]"])  # an editor, writing
    looks = iter(
        [*(lambda: path.write_text(next(edits)) and False for _ in range(3)), lambda: False, lambda: True]
    )
    del said[:]
    watch._done = SimpleNamespace(wait=lambda _: next(looks)())
    watch._run()
    assert [line.split("with")[-1] for line in said] == [" 1 rules is in force"]
    with FileWatch(path, enforcer, said.append, seconds=0.01):
        path.write_text("rules: [{id: b, then: {forbid: [milk]}}]")
        for _ in range(500):
            if len(said) == 2:
                break
            time.sleep(0.01)
    enforcer.start([[5]], [3], 16)
    assert [rule.id for rule in enforcer.program.active] == ["b"]

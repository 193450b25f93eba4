"""The pointer study: what a question shows, what a rule names, and which attention counts as pointing."""

import dataclasses

import numpy as np
import pytest

from experiments import babi
from experiments.babi import Line
from experiments.cases import Store
from experiments.pointer_fidelity import cases, measure, page
from experiments.pointer_fidelity.__main__ import STUDY
from experiments.pointer_fidelity.reading import Reading
from localist_jax.data import Tokenizer
from localist_jax.rules import parse
from localist_jax.rules.program import RuleProgram
from localist_jax.rules.request import Request
from localist_jax.rules.vocabulary import Vocabulary

STORY = (
    Line(1, "Mary moved to the bathroom."),
    Line(2, "John went to the hallway."),
    Line(4, "Daniel went to the garden."),
)
QUESTION = Line(5, "Where is Mary?", "bathroom", (1,))


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([babi.plain([*STORY, QUESTION])] * 4, 320)


@pytest.fixture(scope="module")
def case(tokenizer):
    return cases.made(STORY, QUESTION, tokenizer)


def shown(case, tokenizer, marked):
    """The marked inputs as text; input 0 is BOS."""
    return tokenizer.decode(case.ids[marked[1:]].tolist())


def test_a_case_marks_its_supporting_lines(case, tokenizer):
    assert shown(case, tokenizer, case.on([1])) == " Mary moved to the bathroom."
    assert case.others == [2, 4]
    assert tokenizer.decode([case.answer]).strip() in "bathroom"


def test_a_line_that_is_taken_out_is_gone(case, tokenizer):
    left = cases.without(case, [1], tokenizer)
    assert (
        tokenizer.decode(left.ids.tolist())
        == " John went to the hallway. Daniel went to the garden. Where is Mary?"
    )
    assert left.answer == case.answer


@pytest.mark.parametrize("named", [[1], [2, 4]])
def test_a_rule_names_just_these_lines(case, tokenizer, named):
    vocabulary = Vocabulary(tokenizer)
    request = Request(case.ids.tolist(), 1, vocabulary.bytes)
    request.adopt(RuleProgram(parse(case.rule(named, 0.9)), vocabulary), None)
    anchors = np.isin(np.arange(len(case.ids) + 1), list(request.anchors(["fact"])))
    assert anchors.sum() >= case.on(named).sum() - 2  # the space before a line belongs to no word
    assert not (anchors & ~case.on(named)).any()


def test_renaming_keeps_what_follows_from_what():
    story = babi.renamed([*STORY, QUESTION], np.random.default_rng(3))
    assert story[-1].answer != "bathroom"
    assert story[-1].answer in story[0].text
    assert story[-1].text.removeprefix("Where is ").rstrip("?") in story[0].text
    assert story[-1].support == (1,)


# --- figures -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tokenizer):
    """Questions whose supporting line stands anywhere."""
    rng, found = np.random.default_rng(0), []
    for _ in range(60):
        order = rng.permutation(3)
        lines = [STORY[i]._replace(number=n + 1) for n, i in enumerate(order)]
        support = (int(np.flatnonzero(order == 0)[0]) + 1,)
        found.append(cases.made(lines, QUESTION._replace(support=support), tokenizer))
    return found


def reading(many, look):
    """One perception layer and one localist layer of two heads; the second head looks as it is told."""
    length = max(len(case.ids) for case in many) + 1
    attention = np.zeros((len(many), 2, 2, length), np.float32)
    for c, case in enumerate(many):
        n = len(case.ids) + 1
        attention[c, :, :, :n] = 1 / n
        attention[c, 1, 1, :n] = look(case) / look(case).sum()
    nothing = np.zeros((len(many), 2, 2))
    return Reading(np.zeros(len(many), int), attention, nothing, np.zeros((len(many), length), bool))


def test_a_head_that_points_to_the_facts_stands_out_from_what_knows_no_question(many):
    seen = measure.fidelity(reading(many, lambda case: case.on(case.question.support)), many, 1)
    assert seen["chosen"] == [1, 1]
    assert seen["best_head"] == pytest.approx(1)
    assert seen["other_line"] == pytest.approx(0)
    assert seen["by_distance"] < 0.5


def test_a_head_that_looks_back_so_far_is_explained_by_distance(many):
    def back(case):
        return np.exp(-0.3 * np.arange(len(case.ids) + 1)[::-1])

    seen = measure.fidelity(reading(many, back), many, 1)
    assert seen["by_distance"] == pytest.approx(seen["best_head"], rel=0.1)


def test_baselines_know_where_facts_stand(many):
    found = measure.baselines(many)
    last = np.mean([case.question.support[0] == 3 for case in many])
    assert found["recency"] == pytest.approx(last)
    assert 0.1 < found["uniform"] < 0.5


@pytest.mark.parametrize(("accuracy", "warned"), [(0.95, False), (0.5, True)])
def test_the_page_warns_of_models_that_learnt_nothing(tmp_path, accuracy, warned):
    names = {*page.LOOKED.values(), *page.RULED.values()}
    row = dict.fromkeys(names, 0.4) | {"accuracy": accuracy, "promises": 7, "promises_kept": 7}
    found = {
        "baselines": {"uniform": 0.1, "recency": 0.3},
        "by_dial": {f"{dial:g}": row for dial in measure.DIALS},
    }
    text = page.page_of({1: [found, found]}, [0, 1]).write(tmp_path, "pointer_fidelity", "x").read_text()
    assert ("where these models look proves little" in text) is warned
    assert "Of 70 such promises 70 were kept." in text
    assert (tmp_path / "pointer_fidelity_dial.svg").exists()


def test_a_model_is_measured_anew_with_other_stories(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(measure.models, "trained", lambda *about: made.append(about[1]))
    monkeypatch.setattr(
        measure,
        "measured",
        lambda run, task, seed: {"baselines": {"uniform": 0.1, "recency": 0.3}, "by_dial": {}},
    )
    options = STUDY.parsed(["--quick", f"--workdir={tmp_path}"])
    here = dataclasses.replace(STUDY, pool=None)
    for data in ("a", "a", "b"):
        monkeypatch.setattr(babi, "fingerprint", lambda data=data: data)
        here.measure(options, here.cases(options), Store(tmp_path))
    assert made == [1, 1]

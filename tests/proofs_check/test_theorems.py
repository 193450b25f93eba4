"""Every theorem on few instances, and a checker that notices violations, vacuity and twins that get away."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest

from localist_jax.training.run import fresh_state
from localist_jax.training.state import FILING, GATES, at_path, with_leaf
from proofs_check import __main__ as command
from proofs_check import page
from proofs_check.check import check, double_precision
from proofs_check.models import tables
from proofs_check.theorem import Theorem, at_least, at_most, by_library, equal
from proofs_check.theorems import MODULES, load

FORMULAS, SOLVED = 2000, 32  # instances where a formula is checked, and where a stationary point is sought


@pytest.fixture(autouse=True)
def double():
    with double_precision():
        yield


@pytest.mark.parametrize("name", MODULES)
def test_it_holds_and_its_wrong_twin_is_caught(name):
    theorem = load(name)
    assert theorem.name == name
    cases = round((FORMULAS if theorem.share > 0.01 else SOLVED) / theorem.share)
    result = check(theorem, cases, jax.random.key(1))
    assert command.status([result]) == 0, page.text([result])
    assert result.twin_caught
    assert result.starts > 0


def test_every_theorem_is_there():
    assert list(MODULES) == [f"T{i}" for i in range(1, 8)] + ["T7'"] + [f"T{i}" for i in range(8, 19)]


@pytest.mark.parametrize("name", MODULES)
def test_modules_state_and_prove(name):
    text = __import__(f"proofs_check.{MODULES[name]}", fromlist=["x"]).__doc__
    assert text.startswith(f"{name.replace(chr(39), '′')}. ")
    assert "Proof" in text
    assert "∎" in text


def simple(claims, twin=lambda x: at_most(x, 0.0)):
    return Theorem("T0", "a toy", lambda key, n: jax.random.uniform(key, (n,)), claims, twin, "x ≤ 0")


@pytest.mark.parametrize(
    ("claims", "status", "words"),
    [
        (lambda x: {"fine": at_most(jnp.tanh(x), 1.0)}, 0, ""),
        (lambda x: {"wrong": at_most(x, 0.9)}, 1, "VIOLATED"),
        (lambda x: {"wrong": at_least(x, 0.1)}, 1, "VIOLATED"),
        (lambda x: {"wrong": equal(x, x + 1e-6)}, 1, "VIOLATED"),
        (lambda x: {"not a number": at_most(x / 0 * 0, 1.0)}, 1, "VIOLATED"),
        (lambda x: {"excused": at_most(x, 0.9, x < 0.9)}, 0, ""),
        (lambda x: {"vacuous": at_most(x, 0.9, x > 2)}, 2, "VACUOUS"),
    ],
)
def test_violations_and_vacuity_are_told(claims, status, words):
    result = check(simple(claims), 500, jax.random.key(0))
    assert command.status([result]) == status
    assert words in page.text([result])


def test_a_twin_that_is_right_is_not_caught():
    right = lambda x: at_most(jnp.tanh(x), 1.0)  # noqa: E731
    result = check(simple(lambda x: {"fine": right(x)}, right), 500, jax.random.key(0))
    assert not result.twin_caught
    assert command.status([result]) == 1
    assert "TWIN NOT CAUGHT" in page.text([result])


def test_a_bound_that_is_not_attained_is_told():
    short = dataclasses.replace(
        simple(lambda x: {"loose": at_most(x, 2.0)}), attain=lambda: jnp.ones(1), attained=("loose",)
    )
    result = check(short, 100, jax.random.key(0))
    assert result.tightness == pytest.approx(0.5)
    assert command.status([result]) == 1
    assert "LOOSE" in page.text([result])


def test_the_attack_finds_what_sampling_misses():
    """x(1−x) ≤ 0.2499 fails only within 0.01 of a half."""
    rare = simple(lambda x: {"rare": at_most(x * (1 - x), 0.2499)})
    missed = dataclasses.replace(rare, sample=lambda key, n: 0.4 * jax.random.uniform(key, (n,)))
    result = check(missed, 500, jax.random.key(0))
    assert result.claims["rare"].violations == 0
    assert result.attacked["rare"].violations > 0


def test_a_library_function_is_what_is_checked():
    wrong = simple(lambda x: {"library": equal(by_library(lambda v: v + 1e-3, x, x), x)})
    assert command.status([check(wrong, 100, jax.random.key(0))]) == 1


def test_the_command_writes_its_table_figures_and_page(tmp_path, capsys):
    found, html = tmp_path / "proofs.json", tmp_path / "proofs.html"
    assert command.main(["t3", "--cases", "3000", "--json", str(found), "--html", str(html)]) == 0
    table = capsys.readouterr().out
    assert re.search(r"T3 pointer fidelity +\S+ +\d+% +0 ", table)
    figures = json.loads(found.read_text())["figures"]["T3"]
    assert figures["violations"] == 0
    assert figures["twin_caught"] is True
    assert figures["tightness"] == pytest.approx(1)
    text = html.read_text()
    assert "Proof." in text
    assert "<svg" in text
    assert (tmp_path / "proofs.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["T99"], "no theorem 'T99'; choose from T1, T2"), (["--cases", "0"], "must be at least 1"),
     (["T1", "--checkpoint", "nowhere"], "no run here")],
)  # fmt: skip
def test_bad_input_is_one_line(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(arguments)
    assert stop.value.code == 1
    assert words in capsys.readouterr().err


def test_trained_models_are_checked_too(tiny_run):
    for name in ("T1", "T5", "T18"):
        result = check(load(name), 500, jax.random.key(0), tiny_run)
        assert command.status([result]) == 0, page.text([result])
        assert sum(c.assumed for c in result.trained.values()) > 20


@pytest.fixture(scope="module")
def localised_run(tiny_run):
    """The tiny run's corpus under a model with two filings, a sink of several positions, and gates of 0 and 1."""
    with jax.enable_x64(False):
        model = {"filings": 2, "sink": 2, "window": 2, "router_bias": True, "dtype": "float32"}
        settings = tiny_run.settings.replace(model=model)
        network = dataclasses.replace(tiny_run.model, config=settings.model)
        state = fresh_state(network, settings, tiny_run.mesh)
        keys = jax.random.split(jax.random.key(3))
        gates, filing = (at_path(state.params, path) for path in (GATES, FILING))
        closed = jax.random.bernoulli(keys[0], 0.5, gates.shape).astype(jnp.float32)
        params = with_leaf(state.params, GATES, closed)
        params = with_leaf(params, FILING, jax.random.bernoulli(keys[1], 0.5, filing.shape).astype(float))
    state = dataclasses.replace(state, params=params)
    return dataclasses.replace(tiny_run, settings=settings, model=network, state=state)


def test_localised_models_are_checked_too(localised_run, tiny_run):
    few = 8 / load("T17").share
    result = check(load("T17"), round(few), jax.random.key(0), localised_run)
    assert command.status([result]) == 0, page.text([result])
    assert result.figures
    assert all(count.assumed for count in result.trained.values())
    assert (
        load("T17").certificate(tiny_run) is None
    )  # its keys lie under their own blocks, its gates are graded


def test_a_localised_model_that_breaks_its_promise_is_told(localised_run, monkeypatch):
    """Tables of the own blocks in place of those that the keys are filed under."""
    theorem, right = load("T17"), tables.own_table
    monkeypatch.setattr(tables, "own_table", lambda table, filing: right(table, 0 * filing))
    found, _ = theorem.certificate(localised_run)
    assert float(found["a: filed keys"].slack.min()) < -1e-3
    assert float(found["c: tables"].slack.min()) < -1e-3


def test_slack_is_relative_to_the_bound():
    assert float(at_most(jnp.array(0.0), 1e6).slack) == pytest.approx(1.0, rel=1e-5)

"""Every theorem on few instances, and a checker that notices violations, vacuity and twins that get away."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest

from proofs_check import __main__ as command
from proofs_check import page
from proofs_check.check import check, double_precision
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
    assert list(MODULES) == [f"T{i}" for i in range(1, 8)] + ["T7'"] + [f"T{i}" for i in range(8, 17)]


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
    for name in ("T1", "T5"):
        result = check(load(name), 500, jax.random.key(0), tiny_run)
        assert command.status([result]) == 0, page.text([result])
        assert sum(c.assumed for c in result.trained.values()) > 20


def test_slack_is_relative_to_the_bound():
    assert float(at_most(jnp.array(0.0), 1e6).slack) == pytest.approx(1.0, rel=1e-5)

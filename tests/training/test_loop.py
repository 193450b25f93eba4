"""Whole runs: kill and resume bit for bit, stop at NaN with the last good checkpoint, hooks."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.errors import one_line
from localist_jax.locality import Dial
from localist_jax.training import journal, loop
from localist_jax.training.checkpoint import CheckpointError, Checkpoints
from localist_jax.training.loop import Hook, TrainingDiverged, train
from localist_jax.training.run import Run

TIMING = ("time", "tokens_per_second")


def curve(workdir):
    """Return the loop's records, without fields that depend on the clock."""
    records = journal.read(workdir / "metrics.jsonl")
    return [
        {k: v for k, v in r.items() if k not in TIMING} for r in records if r["kind"] in ("train", "eval")
    ]


def assert_same_state(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("where", "step", "good"), [("training", 7, 4), ("save", 8, 4)])
def test_a_killed_run_resumes_bit_for_bit(tiny_settings, tiny_run, tmp_path, where, step, good):
    script = Path(__file__).with_name("train_and_die.py")
    arguments = [str(tmp_path), json.dumps(tiny_settings.to_dict()), where, str(step)]
    child = subprocess.run(
        [sys.executable, str(script), *arguments], capture_output=True, text=True, timeout=300
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert max(r["step"] for r in curve(tmp_path)) < tiny_settings.train.steps
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() in ({good} if where == "training" else {good, step})
    train(tiny_settings, tmp_path)
    assert curve(tmp_path) == curve(tiny_run.workdir)
    assert_same_state(Run.open(tmp_path).state, tiny_run.state)


def test_a_finished_run_is_not_trained_again(tiny_settings, tiny_run, capsys):
    before = curve(tiny_run.workdir)
    again = train(tiny_settings, tiny_run.workdir, command="pytest <tiny>")
    assert_same_state(again.state, tiny_run.state)
    assert curve(tiny_run.workdir) == before


class Terminated(Hook):
    """A hook that sends SIGTERM before a step."""

    every = 6

    def __call__(self, step, state, batch):
        if step == self.every:
            os.kill(os.getpid(), signal.SIGTERM)
        return state


def test_sigterm_saves_and_stops_with_a_status_of_its_own_and_the_run_goes_on(
    tiny_settings, tiny_run, tmp_path, capsys
):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, one_line():
        train(tiny_settings, tmp_path, hooks=[Terminated()])
    assert stop.value.code == 75
    assert "error: stopped by SIGTERM after step 6, which is saved" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == 6
    train(tiny_settings, tmp_path)
    assert curve(tmp_path)[-1] == curve(tiny_run.workdir)[-1]
    assert_same_state(Run.open(tmp_path).state, tiny_run.state)


class Poison(Hook):
    """A hook that makes a parameter infinite before a step, as a bad gradient would."""

    every = 7

    def __call__(self, step, state, batch):
        params = {**state.params, "embedding": state.params["embedding"].at[0, 0].set(jnp.inf)}
        return dataclasses.replace(state, params=params)


def test_numbers_that_are_not_finite_stop_the_run_and_keep_the_last_good_checkpoint(tiny_settings, tmp_path):
    with pytest.raises(TrainingDiverged, match="not finite at step 7; checkpoint 4 is the last good one"):
        train(tiny_settings, tmp_path, hooks=[Poison()])
    run = Run.open(tmp_path)
    assert int(run.state.step) == 4
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.state.params))


def test_hooks_act_at_their_steps_and_the_step_is_compiled_once(tiny_settings, tmp_path, monkeypatch):
    made = []
    compile_step = loop.compile_step
    monkeypatch.setattr(loop, "compile_step", lambda *of: made.append(compile_step(*of)) or made[-1])

    class Witness(Hook):
        every = 3
        seen: list[tuple[int, int]] = []  # noqa: RUF012

        def __call__(self, step, state, batch):
            assert batch.tokens.shape == (4, 32)
            self.seen.append((step, int(state.step)))
            return state

    train(tiny_settings, tmp_path, hooks=[Witness()])
    assert Witness.seen == [
        (3, 2),
        (6, 5),
        (9, 8),
        (12, 11),
    ]  # the state has not been trained on that batch yet
    assert [step._cache_size() for step in made] == [1]


def test_another_topology_in_the_folder_is_refused_and_nothing_is_lost(tiny_settings, tiny_run):
    other = tiny_settings.replace(model={"block_capacity": 10})
    with pytest.raises(CheckpointError, match=r"block_capacity.*or use another --workdir"):
        train(other, tiny_run.workdir)
    assert_same_state(Run.open(tiny_run.workdir).state, tiny_run.state)


def test_a_longer_run_goes_on_from_the_last_checkpoint(tiny_settings, tiny_run, tmp_path):
    shutil.copytree(tiny_run.workdir, tmp_path / "run")
    longer = train(tiny_settings.replace(train={"steps": 14, "eval_every": 0}), tmp_path / "run")
    assert int(longer.state.step) == 14
    assert [r["step"] for r in curve(tmp_path / "run") if r["kind"] == "train"] == list(range(1, 15))
    assert curve(tmp_path / "run")[:12] == curve(tiny_run.workdir)[:12]
    assert max(r["step"] for r in curve(tmp_path / "run") if r["kind"] == "eval") == 12  # none since


def test_the_folder_says_what_the_run_was_made_of(tiny_run, tiny_settings):
    about = json.loads((tiny_run.workdir / "config.json").read_text())
    assert about["config"] == tiny_settings.to_dict()
    assert about["command"] == "pytest <tiny>"
    assert about["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(tiny_run.state.params))
    assert set(about["versions"]) > {"python", "jax", "flax"}
    assert about["machine"]["cores"] >= 1


def test_every_step_is_logged_with_the_gates_dichotomy(tiny_run):
    train_records = [r for r in curve(tiny_run.workdir) if r["kind"] == "train"]
    assert [r["step"] for r in train_records] == list(range(1, 13))
    wanted = {
        "bits_per_token",
        "bits_per_byte",
        "kkt_residual",
        "gate_price",
        "open_share",
        "gates_closed",
        "locality",
    }
    assert all(wanted <= set(r) for r in train_records)
    evals = [r for r in curve(tiny_run.workdir) if r["kind"] == "eval"]
    assert [r["step"] for r in evals] == [6, 12]
    assert {"bits_per_token@0", "bits_per_token@0.9", "bits_per_token@1"} <= set(evals[0])


def test_a_run_opens_at_any_checkpoint(tiny_run):
    assert int(Run.open(tiny_run.workdir, step=8).state.step) == 8
    with pytest.raises(CheckpointError, match="no checkpoint 5; there are 8, 12"):
        Run.open(tiny_run.workdir, step=5)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run here \(config\.json is missing\)"):
        Run.open(tmp_path)


def test_text_in_text_out(tiny_run):
    generation = tiny_run.generate(["some words"], Dial(0.9), max_new=5)[0]
    text = tiny_run.text("some words", generation)
    assert text.startswith("some words")
    assert len(generation.tokens) == 5

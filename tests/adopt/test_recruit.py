"""`localist recruit`: the run that it leaves, the same when it was stopped, and what it refuses."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import command

from localist_jax.locality import Dial
from localist_jax.model import forward as eager_forward
from localist_jax.recruitment import chronicle, frozen_job
from localist_jax.recruitment.frozen import BLOCK_OF_CELL, FrozenRecruiter
from localist_jax.training.run import Run
from localist_jax.training.state import GATES, at_path

forward = jax.jit(eager_forward, static_argnums=0)
SMALL = {"window": 2, "perception_window": 4, "sink": 1}
CELLS, MOST, SHARE = 10, 4, 0.4
TERMS = {"survey": 4, "horizon": 2, "candidates": 2}


def settings(run, **changes):
    made = frozen_job.settings_of(run, cells=CELLS, blocks_at_most=MOST, open_share=SHARE)
    return made.replace(model=SMALL, data={"valid_rows": 2}, recruitment={**TERMS, **changes})


@pytest.fixture
def told(monkeypatch):
    """A text takes fewer bits the more of the first cells are in blocks of their own; that is all that counts."""

    def code(self, contender, batch, dial=1.0):
        self.passes += 1
        own = {int(b) for b in contender.partition.block_of_cell[1:5]}
        return 1000.0 - 60.0 * len(own)

    monkeypatch.setattr(FrozenRecruiter, "code", code)


def recruited(original, out, **options):
    return frozen_job.recruit(original, settings(original), out, rows=30, **options)


def decisions(folder):
    return [{**r, "seconds": 0} for r in chronicle.read(folder)]


def test_the_run_that_is_left(original, told, tmp_path):
    made = recruited(original, tmp_path / "run", anchors={"animal": ["a"]})
    opened = Run.open(tmp_path / "run")
    state = opened.state
    owner = np.asarray(at_path(state.params, BLOCK_OF_CELL)).astype(int)
    used = set(owner.tolist())
    assert owner[0] == 0
    assert owner.size == CELLS + 1
    assert set(np.flatnonzero(np.asarray(state.blocks.active)).tolist()) == used | {0}
    births = [r for r in decisions(made.workdir) if r["kind"] == "recruited"]
    assert 2 <= len(births) <= MOST - 1
    assert {r["block"] for r in births} <= used
    assert decisions(made.workdir)[0]["name"] == "animal"
    # λ=0 is the original, bit for bit; at λ=1 gates are exact zeros and ones, within the budget.
    ids = jnp.asarray(np.random.default_rng(0).integers(2, 200, (2, 40)))
    both = [
        forward(r.model, r.state.params, ids, Dial(0.0), r.state.blocks).logits for r in (original, opened)
    ]
    np.testing.assert_array_equal(*map(np.asarray, both))
    assert set(np.unique(np.asarray(at_path(state.params, GATES)))) == {0.0, 1.0}
    batches = [opened.data.train.take(np.array([i])) for i in range(8)]
    share = opened.evaluator.measure(state.params, state.blocks, batches, Dial(1.0))["open_share"]
    assert share == pytest.approx(SHARE, abs=0.06)
    assert not (made.workdir / "search.npz").exists()


@pytest.mark.slow
def test_a_stopped_search_leaves_the_same_run(original, told, tmp_path, monkeypatch):
    whole = recruited(original, tmp_path / "whole")
    save, saved = frozen_job._save, []

    def killed(path, state):
        save(path, state)
        saved.append(state)
        if len(saved) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(frozen_job, "_save", killed)
    with pytest.raises(KeyboardInterrupt):
        recruited(original, tmp_path / "stopped")
    monkeypatch.setattr(frozen_job, "_save", save)
    with pytest.raises(ValueError, match="was asked for otherwise"):
        frozen_job.recruit(original, settings(original, horizon=3), tmp_path / "stopped", rows=30)
    again = recruited(original, tmp_path / "stopped")
    assert decisions(again.workdir) == decisions(whole.workdir)
    for a, b in zip(jax.tree.leaves(whole.state.params), jax.tree.leaves(again.state.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    with pytest.raises(ValueError, match="holds a run already"):
        recruited(original, tmp_path / "stopped")


def test_the_command_runs_the_real_model_and_reports(original, tmp_path):
    out = tmp_path / "run"
    options = [f"recruitment.{name}={value}" for name, value in TERMS.items()]
    options += [f"model.{name}={value}" for name, value in SMALL.items()] + ["data.valid_rows=2"]
    status, said, heard = command(
        "recruit", original.workdir, "--out", out, "--cells", CELLS, "--blocks-at-most", MOST,
        "--open-share", SHARE, "--rows", 8, *(f"--config.{option}" for option in options),
    )  # fmt: skip
    assert status == 0, heard
    assert said.strip().endswith("report.html")
    records = chronicle.read(out)
    assert records
    assert all(r["passes"] > 0 for r in records)
    assert len(chronicle.sentences(records)) == len(records)
    about = json.loads((out / "config.json").read_text())
    assert about["data"]["recruitment"]["tokens_calibrated"] > 0
    status, text, heard = command("generate", out, "the cat", "--dial", "1", "--tokens", "3")
    assert status == 0, heard
    assert text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--open-share", "0.01"], "open_share 0.01"),
        (["--cells", "5000"], "too little for 5000 cells"),
        (["--anchor", "x=hippopotamus"], "is no single token"),
        (["--anchor", "x"], "expected NAME=WORD"),
        (["--config.recruitment.cost=bic"], "expected 'prequential'"),
        (["--corpus", "/nowhere"], "/nowhere"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(original, tmp_path, options, words):
    small = [f"--config.model.{name}={value}" for name, value in SMALL.items()]
    small = [*small, "--config.recruitment.survey=4", "--cells", CELLS, "--blocks-at-most", MOST]
    status, _, heard = command("recruit", original.workdir, "--out", tmp_path / "run", *small, *options)
    assert status not in (0, None)
    assert words in heard
    assert "Traceback" not in heard
    assert not (tmp_path / "run").exists()

"""Made localist: the trunk and λ=0 stay what they were, bit for bit; blocks, filing and gates come of the text."""

import dataclasses

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import command
from flax import traverse_util
from safetensors.numpy import load_file

from localist_jax.adopt import calibrate, distil, export
from localist_jax.adopt.localise import localise, settings_of, with_trunk
from localist_jax.data import Batch
from localist_jax.locality import Dial
from localist_jax.model import forward as eager_forward
from localist_jax.training.run import Run, fresh_state
from localist_jax.training.state import DELTAS, FILING, GATES, at_path, in_trunk

forward = jax.jit(eager_forward, static_argnums=0)
SMALL = {"window": 2, "perception_window": 4, "sink": 1}
SHARE, BLOCKS, TOKENS = 0.4, 6, 600


def logits(run, ids, dial):
    state = run.state
    return np.asarray(forward(run.model, state.params, jnp.asarray(ids), Dial(dial), state.blocks).logits)


def settings(run, **options):
    return settings_of(run, **{"blocks": BLOCKS, "open_share": SHARE, "delta_rank": 2, **options}).replace(
        model=SMALL, data={"valid_rows": 2}
    )


@pytest.fixture(scope="module")
def calibrated(original, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("localised") / "run"
    localise(original, settings(original), workdir, tokens=TOKENS, anchors={"animal": ["a"]})
    return Run.open(workdir)


@pytest.fixture(scope="module")
def distilled(original, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    localise(original, settings(original, distil_steps=6), workdir, tokens=TOKENS)
    return Run.open(workdir)


def trunk_of(run):
    flat = traverse_util.flatten_dict(run.state.params)
    return {path: np.asarray(x).tobytes() for path, x in flat.items() if in_trunk(path)}


@pytest.mark.parametrize("made", ["calibrated", "distilled"])
def test_the_trunk_and_dial_0_stay_bit_equal(original, made, request):
    run = request.getfixturevalue(made)
    assert trunk_of(run) == trunk_of(original)
    ids = np.random.default_rng(0).integers(2, checkpoints.V, (3, 40))
    np.testing.assert_array_equal(logits(original, ids, 0.0), logits(run, ids, 0.0))
    assert np.abs(logits(original, ids, 1.0) - logits(run, ids, 1.0)).max() > 1e-3


def test_blocks_are_used_and_gates_are_exact_zeros_within_the_budget(calibrated):
    run = calibrated
    gates = np.asarray(at_path(run.state.params, GATES))
    assert set(np.unique(gates)) == {0.0, 1.0}
    filing = np.asarray(at_path(run.state.params, FILING))
    assert set(np.unique(filing)) <= {0.0, 1.0}
    rows = run.data.train
    batches = [rows.take(np.arange(i, i + 1)) for i in range(10)]
    shares = [run.evaluator.measure(run.state.params, run.state.blocks, [b], Dial(1.0)) for b in batches]
    assert np.mean([x["open_share"] for x in shares]) == pytest.approx(SHARE, abs=0.04)
    ids = np.concatenate([
        np.asarray(forward(run.model, run.state.params, b.tokens, Dial(0.0), run.state.blocks).blocks)[0, 1:]
        for b in batches
    ])  # fmt: skip
    assert set(range(2, BLOCKS + 1)) <= set(ids.tolist())


def test_an_anchor_has_a_block_of_its_own(calibrated):
    ids = calibrated.tokenizer.encode("the cat sat on a mat and a dog").tolist()
    out = forward(
        calibrated.model, calibrated.state.params, jnp.asarray([ids]), Dial(1.0), calibrated.state.blocks
    )
    anchors = np.asarray(calibrated.state.blocks.anchor_tokens)[1]
    is_anchor = np.isin(ids[1:], anchors[anchors >= 0])
    assert is_anchor.sum() >= 1
    assert (np.asarray(out.blocks)[0, 1:][is_anchor] == 1).all()


def test_calibration_depends_on_text_seed_and_budget_alone(original):
    shape = settings(original)
    model = type(original.model)(shape.model, checkpoints.V)
    state = with_trunk(fresh_state(model, shape, original.mesh), original.state.params)
    rows = original.data.train
    batches = [rows.take(np.arange(i, i + 1)) for i in range(12)]
    seen = []

    def found(share, seed=0):
        return calibrate.calibrate(
            model, state.params, batches, open_share=share, key=jax.random.key(seed),
            report=lambda *told: seen.append(told),
        )  # fmt: skip

    once, again, more = found(0.4), found(0.4), found(0.7)
    np.testing.assert_array_equal(once.gates, again.gates)
    np.testing.assert_array_equal(once.router["kernel"], again.router["kernel"])
    assert once.gates.sum() < more.gates.sum()
    assert 0 < once.mass < more.mass <= 1
    assert {stage for stage, _, _ in seen} == {"states", "attention mass"}
    assert seen[-1][1:] == (12, 12)
    assert not np.array_equal(once.router["kernel"], found(0.4, seed=1).router["kernel"])


def test_distilling_moves_deltas_alone_and_brings_the_student_nearer(distilled, calibrated):
    flat = traverse_util.flatten_dict(distilled.state.params)
    assert all(np.asarray(x).any() for path, x in flat.items() if path[-2:-1] in DELTAS and path[-1] == "up")
    assert int(distilled.state.step) == 6
    rows = distilled.data.train
    longer = distilled.settings.replace(train={"steps": 100}, optimizer={"learning_rate": 2e-2})
    step = jax.jit(distil.make_distil_step(distilled.model, longer))
    batch = rows.take(np.arange(1))
    state = distilled.state
    first = None
    for _ in range(30):
        state, metrics = step(dataclasses.replace(state, step=jnp.asarray(5)), batch)  # one dial, one row
        first = first or float(metrics["divergence_bits"])
    assert float(metrics["divergence_bits"]) < 0.9 * first
    assert trunk_of(dataclasses.replace(distilled, state=state)) == trunk_of(distilled)
    gates = [np.asarray(at_path(x.params, GATES)) for x in (state, distilled.state)]
    np.testing.assert_array_equal(*gates)


@pytest.mark.slow
def test_distilling_goes_on_where_it_was_stopped(original, distilled, tmp_path, monkeypatch):
    chosen = settings(original, distil_steps=6).replace(train={"save_every": 2})
    make, calls = distil.make_distil_step, []

    def stopping(*arguments):
        step = make(*arguments)

        def run(state, batch):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return step(state, batch)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(distil.jax, "jit", lambda f, **_: f)
        patch.setattr(distil, "make_distil_step", stopping)
        with pytest.raises(KeyboardInterrupt):
            localise(original, chosen, tmp_path / "run", tokens=TOKENS)
    assert int(Run.open(tmp_path / "run").state.step) == 2
    with pytest.raises(ValueError, match="asked for otherwise"):
        localise(original, chosen, tmp_path / "run", tokens=TOKENS + 64)
    localise(original, chosen, tmp_path / "run", tokens=TOKENS)
    resumed = Run.open(tmp_path / "run")
    for one, other in zip(*(jax.tree.leaves(r.state.params) for r in (resumed, distilled)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_the_trunk_of_a_localised_run_goes_back(distilled, original, tmp_path):
    back = load_file(export(distilled, tmp_path / "back") / "model.safetensors")
    before = load_file(export(original, tmp_path / "before") / "model.safetensors")
    assert all(before[name].tobytes() == back[name].tobytes() for name in before.keys() | back.keys())


def test_generation_at_any_dial_and_without_bos(calibrated):
    assert calibrated.tokenizer.bos is None
    made = calibrated.generate(["a cat"] * 2, [0.0, 1.0], max_new=4, temperature=0)
    assert all(calibrated.text("a cat", x).startswith("a cat") for x in made)
    with pytest.raises(ValueError, match="prompt 0 is empty, and this model has no BOS"):
        calibrated.generate([""], Dial(1.0))


def test_the_command_makes_the_same_run_and_reports_it(original, calibrated, tmp_path):
    words = ["--blocks", BLOCKS, "--open-share", SHARE, "--tokens", TOKENS, "--anchor", "animal=a"]
    for section, fields in (("model", SMALL), ("data", {"valid_rows": 2})):
        words += [f"--config.{section}.{field}={x}" for field, x in fields.items()]
    status, out, err = command("localise", original.workdir, "--out", tmp_path / "run", *words)
    assert status == 0, err
    assert out.strip() == str(tmp_path / "run" / "report.html")
    assert "attention mass" in err
    made = Run.open(tmp_path / "run")
    assert made.settings == calibrated.settings
    for one, other in zip(*(jax.tree.leaves(run.state.params) for run in (made, calibrated)), strict=True):
        np.testing.assert_array_equal(one, other)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "calibrated on" in page
    assert "A plain window of" in page


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"open_share": 0.01}, r"open_share 0\.01 must lie between 0\.\d+, what window and sink hold open"),
        ({"open_share": 1.5}, "open_share_target|must lie between"),
        ({"blocks": 400}, r"tokens to calibrate on are too few for 400 blocks"),
    ],
)
def test_what_cannot_be_is_said_and_nothing_is_written(original, tmp_path, options, words):
    with pytest.raises(ValueError, match=words) as error:
        localise(original, settings(original, **options), tmp_path / "x", tokens=TOKENS)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_other_bad_input(original, calibrated, tmp_path):
    with pytest.raises(ValueError, match="is the run itself"):
        localise(original, settings(original), original.workdir)
    with pytest.raises(ValueError, match="holds a run already; choose another --out"):
        localise(original, settings(original), calibrated.workdir)
    with pytest.raises(ValueError, match=r"localist/.*: expected shape"):
        localise(
            original, settings(original).replace(model={"router_layer": 2}), tmp_path / "x", tokens=TOKENS
        )
    with pytest.raises(ValueError, match="'xylophone zebra' is no single token"):
        localise(original, settings(original), tmp_path / "x", anchors={"odd": ["xylophone zebra"]})
    (tmp_path / "one.txt").write_text("a cat")
    with pytest.raises(ValueError, match="too small to hold out"):
        localise(original, settings(original, corpus=str(tmp_path / "one.txt")), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_row_of_padding_counts_nowhere(original):
    shape = settings(original).model
    row = original.data.train.take(np.arange(1))
    empty = Batch(row.tokens, row.targets, 0 * row.segments, row.positions)
    with pytest.raises(ValueError, match="0 tokens to calibrate on"):
        calibrate.check(shape, [empty], SHARE)

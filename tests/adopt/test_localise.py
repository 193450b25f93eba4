"""Made localist: the trunk and λ=0 stay what they were, bit for bit, and λ=1 closes what it should."""

import checkpoints
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import command
from flax import traverse_util
from safetensors.numpy import load_file

from localist_jax.adopt import adopt, export
from localist_jax.adopt.localise import localise, settings_of, with_trunk
from localist_jax.locality import Dial
from localist_jax.model import forward as eager_forward
from localist_jax.training.run import Run, fresh_state
from localist_jax.training.state import GATES, UNITS, at_path, in_trunk, optimizer

forward = jax.jit(eager_forward, static_argnums=0)


def logits(run, ids, dial):
    return np.asarray(
        forward(run.model, run.state.params, jnp.asarray(ids), Dial(dial), run.state.blocks).logits
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    at = tmp_path_factory.mktemp("original")
    folder = checkpoints.write(at / "checkpoint", "qwen3, tied", bos=False)
    (at / "text.txt").write_text("a cat sat on a mat and the dog looked at it; so it goes\n\n" * 300)
    return adopt(folder, at / "run", context=32, corpus=str(at / "text.txt"))


OPTIONS = {"steps": 30, "blocks": 6, "units": 4, "open_share": 0.6}
DATA = {"batch": 4, "valid_rows": 4}
GATING = {"open_at_least": 0.0, "open_at_most": 0.1, "flat_window": 4, "settle": 0.1, "step_travel": 20.0}


def settings(run, **options):
    return settings_of(run, **OPTIONS, **options).replace(data=DATA, gates=GATING)


@pytest.fixture(scope="module")
def frozen(original, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("localised") / "run"
    localise(original, settings(original), workdir)
    return Run.open(workdir)


def trunks(*runs):
    flat = [traverse_util.flatten_dict(run.state.params) for run in runs]
    return [(path, *(f[path] for f in flat)) for path in flat[0] if in_trunk(path)]


def test_a_frozen_trunk_and_dial_0_stay_bit_equal(original, frozen):
    for path, before, after in trunks(original, frozen):
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes(), path
    ids = np.random.default_rng(0).integers(2, checkpoints.V, (3, 32))
    np.testing.assert_array_equal(logits(original, ids, 0.0), logits(frozen, ids, 0.0))
    assert np.abs(logits(original, ids, 1.0) - logits(frozen, ids, 1.0)).max() > 1e-3


def test_router_gates_and_units_have_learned(original, frozen):
    fresh = fresh_state(frozen.model, frozen.settings, frozen.mesh)
    assert (np.asarray(at_path(frozen.state.params, GATES)) < 1).any()
    assert np.asarray(at_path(frozen.state.params, UNITS)).any()
    now, then = (x.params["router"]["kernel"] for x in (frozen.state, fresh))
    assert not np.array_equal(now, then)
    frozen_moments = [
        x for x in jax.tree.leaves(frozen.state.opt_state) if x.shape == (checkpoints.V, checkpoints.D)
    ]
    assert not frozen_moments  # and a frozen trunk costs no optimizer state


def test_it_begins_as_the_original_at_every_dial(original):
    chosen = settings(original)
    model = type(original.model)(chosen.model, checkpoints.V)
    state = with_trunk(fresh_state(model, chosen, original.mesh), original.state.params)
    ids = jnp.asarray(np.random.default_rng(0).integers(2, checkpoints.V, (3, 32)))
    for dial in (0.0, 0.9, 1.0):
        found = forward(model, state.params, ids, Dial(dial), state.blocks).logits
        np.testing.assert_allclose(found, logits(original, ids, dial), atol=1e-5)


def test_a_tuned_trunk_takes_its_share_of_each_step_and_the_router_a_whole_one(original):
    leaf, moved = jnp.ones((2, 2)), []
    params = {"embedding": leaf, "router": {"kernel": leaf}, "localist": {"attention": {"gates": leaf}}}
    for share in (0.1, 1.0):
        tx = optimizer(settings(original, trunk=share))
        gradient = jax.tree.map(jnp.ones_like, params)
        state = tx.update(gradient, tx.init(params), params)[1]  # the first step of the warm-up is 0
        moved.append(traverse_util.flatten_dict(tx.update(gradient, state, params)[0]))
    for path, slow in moved[0].items():
        free, share = np.asarray(moved[1][path]), 0.1 if in_trunk(path) else 1.0
        assert (np.abs(free).max() > 0) == (path[-1] != "gates")
        np.testing.assert_allclose(slow, share * free, rtol=1e-6)


def test_the_trunk_of_a_localised_run_goes_back(frozen, original, tmp_path):
    back = load_file(export(frozen, tmp_path / "back") / "model.safetensors")
    before = load_file(export(original, tmp_path / "before") / "model.safetensors")
    assert all(before[name].tobytes() == back[name].tobytes() for name in before.keys() | back.keys())


def test_without_bos_the_first_token_stands_in_block_0_and_text_goes_in_and_out(frozen):
    assert frozen.tokenizer.bos is None
    ids = frozen.tokenizer.encode("a cat")
    out = forward(frozen.model, frozen.state.params, jnp.asarray(ids[None]), Dial(1.0), frozen.state.blocks)
    assert np.asarray(out.blocks)[0, 0] == 0
    assert (np.asarray(out.blocks)[0, 1:] > 0).all()
    (made,) = frozen.generate(["a cat"], Dial(1.0), max_new=4, temperature=0)
    assert frozen.text("a cat", made).startswith("a cat")
    assert not frozen.tokenizer.silent[made.tokens].any()
    with pytest.raises(ValueError, match="prompt 0 is empty, and this model has no BOS"):
        frozen.generate([""], Dial(1.0))


def test_the_command_makes_the_same_run_and_reports_it(original, frozen, tmp_path):
    words = [w for name, x in OPTIONS.items() for w in (f"--{name.replace('_', '-')}", x)]
    for section, fields in (("data", DATA), ("gates", GATING)):
        words += [w for field, x in fields.items() for w in ("--set", f"{section}.{field}={x}")]
    status, out, err = command("localise", original.workdir, "--out", tmp_path / "run", *words)
    assert status == 0, err
    assert out.strip() == str(tmp_path / "run" / "report.html")
    made = Run.open(tmp_path / "run")
    assert made.settings == frozen.settings
    for one, other in zip(*(jax.tree.leaves(run.state.params) for run in (made, frozen)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_settings_that_cannot_be_are_said(original, tmp_path):
    with pytest.raises(ValueError, match=r"open_share 0\.3 is below the 0\.33 of the 1 dense layer"):
        settings_of(original, open_share=0.3)
    with pytest.raises(ValueError, match="is the run itself"):
        localise(original, settings(original), original.workdir)
    with pytest.raises(ValueError, match=r"localist/.*: expected shape"):
        localise(original, settings(original).replace(model={"router_layer": 2}), tmp_path / "x")

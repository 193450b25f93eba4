"""One training step: which parameters change, which do not, and which are exactly zero afterwards."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.data.pipeline import UNSCORED
from localist_jax.locality import Dial, gates, router
from localist_jax.model import Transformer, forward
from localist_jax.training import state as states
from localist_jax.training.state import GATES, UNITS, at_path
from localist_jax.training.step import make_train_step

VOCABULARY, T, B = 50, 24, 4
SIZES = np.full(VOCABULARY, 3)


def settings_of(small, steps=40, **sections):
    base = config.Config(data=config.Data(context=T, batch=B), model=small, train=config.Train(steps=steps))
    return base.replace(**sections)


def batches(count, seed=0):
    """Yield batches of noise, on which every gate is useless."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        tokens = rng.integers(2, VOCABULARY, (B, T)).astype(np.int32)
        tokens[:, 0] = 1
        segments = np.ones((B, T), np.int32)
        segments[0, -4:] = 0
        yield Batch(
            tokens=tokens,
            targets=np.where(segments > 0, np.roll(tokens, -1, 1), UNSCORED),
            segments=segments,
            positions=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
        )


@pytest.fixture(scope="module")
def program(small):
    """Return model, first state and compiled step for some settings; cached."""
    traced: list[config.Config] = []
    model = Transformer(small, VOCABULARY)

    @functools.cache
    def make(settings):
        create = jax.jit(lambda key: nn.unbox(states.create(model, settings, key)))
        step = make_train_step(model, settings, SIZES)

        def counted(state, batch):
            traced.append(settings)
            assert traced.count(settings) == 1
            return step(state, batch)

        return model, create(jax.random.key(0)), jax.jit(counted)

    return make


@pytest.fixture(scope="module")
def train(program):
    """Train on noise; return the state before and after, and the metrics of every step."""

    @functools.cache
    def on_noise(settings, steps):
        return on(settings, tuple(batches(steps)))

    def on(settings, data):
        _, first, step = program(settings)
        state, history = first, []
        for batch in data:
            state, metrics = step(state, batch)
            history.append(jax.device_get(metrics))
        return first, state, history

    def go(settings, steps=None, data=None):
        return on(settings, data) if data else on_noise(settings, steps or settings.train.steps)

    return go


def test_gates_rest_until_the_price_phase_and_everything_else_learns(train, small):
    first, last, history = train(settings_of(small), steps=5)
    np.testing.assert_array_equal(at_path(last.params, GATES), at_path(first.params, GATES))
    assert all(m["gate_price"] == 0 and m["phase"] == 0 for m in history)
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), first.params, last.params)
    still = [path for path, size in jax.tree_util.tree_leaves_with_path(moved) if size == 0]
    assert [jax.tree_util.keystr(path, simple=True, separator="/") for path in still] == ["/".join(GATES)]


def beyond_price(small):
    """Check a price that closes every useless gate."""
    gates = {"open_share_target": 0.0, "gate_bits": 2e3, "open_at_least": 0.1, "open_at_most": 0.1}
    return settings_of(small, steps=60, gates=gates)


def test_useless_gates_travel_to_exactly_zero(train, small):
    settings = beyond_price(small)
    _, last, history = train(settings)
    found = np.asarray(at_path(last.params, GATES))
    active = slice(1, small.blocks)
    priced = found[:, :, active, active]
    assert (priced == 0).mean() > 0.95
    assert bool(gates.inside(found))
    np.testing.assert_array_equal(
        found[:, :, :, small.blocks :], 1.0
    )  # gates of inactive blocks do not change
    shares = [m["open_share"] for m in history]
    assert shares[-1] < 0.7 * shares[0]
    assert history[-1]["gates_closed"] > 0.7
    assert all(np.isfinite(list(m.values())).all() for m in history)


def test_the_kkt_residual_is_small_once_gates_have_settled(train, small):
    settings = beyond_price(small)
    _, _, history = train(settings)
    assert history[-1]["kkt_residual"] < 0.1 * history[-1]["gate_price"]


def test_gates_have_no_moments_in_the_optimizer(program, small):
    _, first, _ = program(settings_of(small))
    shapes = [leaf.shape for leaf in jax.tree.leaves(first.opt_state)]
    assert at_path(first.params, GATES).shape not in shapes
    assert at_path(first.params, UNITS).shape in shapes


def test_a_price_on_units_makes_groups_exactly_zero(train, small):
    free = train(settings_of(small), steps=5)[1].params
    priced = train(settings_of(small, optimizer={"unit_price": 30.0}), steps=15)[1].params
    zero = [(np.asarray(at_path(p, UNITS)) == 0).all(-1).mean() for p in (free, priced)]
    assert zero[0] == 0
    assert zero[1] > 0.9


def without_chance(small):
    """Check gates at a fixed dial and without noise."""
    return settings_of(small, dial={"mode": "fixed", "locality": 0.6, "power": 0.0}, router={"noise": 0.0})


def test_the_logged_loss_is_the_code_length(train, small):
    """Check metrics against a second forward pass and sums by hand."""
    settings, batch = without_chance(small), next(batches(1))
    first, _, history = train(settings, data=[batch])
    model = Transformer(small, VOCABULARY)
    out = jax.jit(forward, static_argnums=0)(
        model,
        first.params,
        batch.tokens,
        Dial(0.6),
        first.blocks,
        positions=batch.positions,
        segments=batch.segments,
    )
    logits = np.asarray(out.logits, np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    code = -np.log2(np.take_along_axis(p, batch.targets[..., None], -1))[..., 0][batch.segments > 0]
    assert history[0]["bits_per_token"] == pytest.approx(code.mean(), rel=1e-4)
    assert history[0]["bits_per_byte"] == pytest.approx(code.mean() / 3, rel=1e-4)
    assert history[0]["locality"] == pytest.approx(0.6)
    doubt = router.doubt(out.block_probs, jnp.asarray((batch.segments > 0) & (batch.positions > 0)))
    assert history[0]["router_doubt_bits"] == pytest.approx(float(bits.from_nats(doubt)), rel=1e-4)
    p, text = np.asarray(out.block_probs), np.asarray(batch.segments)
    routed = (text > 0) & (np.asarray(batch.positions) > 0)
    apart = [
        1 - p[b, t] @ p[b, t + 1]
        for b, t in np.ndindex(text.shape[0], text.shape[1] - 1)
        if routed[b, t] and routed[b, t + 1] and text[b, t] == text[b, t + 1]
    ]
    assert history[0]["router_switching"] == pytest.approx(np.mean(apart), rel=1e-4)


def test_a_router_that_pays_for_switching_switches_less(train, small):
    batch = next(batches(1))
    ends = {}
    for weight in (0.0, 2.0):
        settings = settings_of(small, optimizer={"learning_rate": 1e-2}, router={"switching_weight": weight})
        _, _, history = train(settings, data=[batch] * 30)
        ends[weight] = history[-1]["router_switching"]
    assert ends[2.0] < 0.5 * ends[0.0]


def test_it_learns_a_repeated_batch(train, small):
    batch = next(batches(1))
    settings = settings_of(small, optimizer={"learning_rate": 1e-2})
    _, _, history = train(settings, data=[batch] * 40)
    assert history[-1]["bits_per_token"] < 0.6 * history[0]["bits_per_token"]


def test_only_scored_positions_count(train, small):
    """Check that targets UNSCORED do not count: the loss is the mean over the others."""
    settings, batch = without_chance(small), next(batches(1))
    half = dataclasses.replace(batch, targets=np.where(batch.positions % 2, batch.targets, UNSCORED))
    rest = dataclasses.replace(batch, targets=np.where(batch.positions % 2, UNSCORED, batch.targets))
    losses, counts = [], []
    for part in (batch, half, rest):
        losses.append(train(settings, data=[part])[2][0]["bits_per_token"])
        counts.append(part.scored.sum())
    assert losses[0] * counts[0] == pytest.approx(losses[1] * counts[1] + losses[2] * counts[2], rel=1e-5)


def with_muon(small):
    optimizer = {"kind": "muon", "learning_rate": 1e-2, "weight_decay": 0.0, "warmup": 0.0}
    return settings_of(small, optimizer=optimizer)


def test_muon_makes_every_direction_of_a_matrix_move_alike(train, small):
    """Check that updates of matrices are nearly orthogonal, and as large as AdamW's."""
    settings = with_muon(small)
    first, last, _ = train(settings, data=[next(batches(1))] * 2)  # the first step has learning rate 0
    for path, split in ((("localist", "attention", "query"), 1), (("localist", "attention", "out"), 2)):
        moved = np.asarray(at_path(last.params, path)) - np.asarray(at_path(first.params, path))
        matrix = moved[0].reshape(np.prod(moved.shape[1 : 1 + split]), -1)
        sizes = np.linalg.svd(matrix, compute_uv=False)
        assert sizes.max() < 4 * np.quantile(sizes, 0.1)  # a scale that the norm removes has no gradient
    assert not np.array_equal(last.params["embedding"], first.params["embedding"])  # by AdamW


def test_muon_learns_a_repeated_batch(train, small):
    batch = next(batches(1))
    _, _, history = train(with_muon(small), data=[batch] * 40)
    assert history[-1]["bits_per_token"] < 0.6 * history[0]["bits_per_token"]


def test_every_parameter_needs_an_optimizer_group():
    with pytest.raises(
        ValueError, match=r"parameter a/mystery has no group; add it to training\.state\.OPTIMIZER_GROUPS"
    ):
        states.optimizer_groups({"a": {"mystery": jnp.zeros(1)}})


def test_the_learning_rate_warms_up_and_decays(small):
    rate = states.learning_rate(
        settings_of(small, steps=100, optimizer={"warmup": 0.1, "final": 0.2, "learning_rate": 1.0})
    )
    values = [float(rate(step)) for step in (0, 5, 10, 100)]
    np.testing.assert_allclose(values, [0, 0.5, 1, 0.2], atol=1e-6)

"""The router's mathematics, and anchors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import Blocks, anchors, router

ALLOWED = jnp.array([False, True, True, True, False])
ROOTS = Blocks.create(5, 5, 1)


@pytest.fixture
def logits():
    return jax.random.normal(jax.random.key(0), (2, 50, 5))


def test_assignment_is_hard_forward_and_soft_backward(logits):
    ids, route, probs = router.assign(logits, ALLOWED, ROOTS)
    np.testing.assert_allclose(route, jax.nn.one_hot(ids, 5), atol=1e-6)
    np.testing.assert_array_equal(ids, 1 + np.asarray(logits[..., 1:4]).argmax(-1))
    np.testing.assert_allclose(probs.sum(-1), 1, rtol=1e-5)
    weights = jax.random.normal(jax.random.key(1), route.shape)
    hard = jax.grad(lambda x: (weights * router.assign(x, ALLOWED, ROOTS)[1]).sum())(logits)
    soft = jax.grad(lambda x: (weights * jax.nn.softmax(jnp.where(ALLOWED, x, -1e9))).sum())(logits)
    np.testing.assert_allclose(hard, soft, atol=1e-6)


def test_forbidden_blocks_are_never_chosen_and_have_no_probability(logits):
    _, _, probs = router.assign(logits + 50 * (~ALLOWED), ALLOWED, ROOTS)
    assert float(probs[..., ~np.asarray(ALLOWED)].max()) == 0
    for seed in range(20):
        ids, _, _ = router.assign(logits, ALLOWED, ROOTS, key=jax.random.key(seed), noise=10.0)
        assert set(np.unique(ids)) <= {1, 2, 3}


def test_gumbel_noise_samples_from_the_probabilities():
    logits = jnp.broadcast_to(jnp.array([0.0, 1.0, 2.0, 0.5, 0.0]), (1, 200_000, 5))
    ids, _, probs = router.assign(logits, ALLOWED, ROOTS, key=jax.random.key(3))
    share = np.bincount(np.asarray(ids).ravel(), minlength=5) / ids.size
    np.testing.assert_allclose(share, probs[0, 0], atol=0.005)


def test_block_0_is_chosen_only_as_background():
    active = jnp.array([True, True, False])
    assert router.allowed_blocks(active, background=False).tolist() == [False, True, False]
    assert router.allowed_blocks(active, background=True).tolist() == [True, True, False]


def test_the_sink_is_put_into_block_0(logits):
    ids, route, _ = router.assign(logits, ALLOWED, ROOTS)
    sink = jnp.zeros((2, 50), bool).at[:, 0].set(True)
    ids, route = router.with_sink(ids, route, sink)
    assert (np.asarray(ids[:, 0]) == 0).all()
    np.testing.assert_array_equal(route[:, 0], jax.nn.one_hot(jnp.zeros(2, int), 5))


def test_usage_ignores_padding(logits):
    _, _, probs = router.assign(logits, ALLOWED, ROOTS)
    valid = jnp.arange(50) < 10
    share = router.usage(probs, jnp.broadcast_to(valid, (2, 50)))
    np.testing.assert_allclose(share, np.asarray(probs[:, :10]).mean((0, 1)), rtol=1e-5)


def test_the_usage_penalty_is_zero_above_the_floor_and_rises_below():
    enough = jnp.array([0.0, 0.8, 0.1, 0.1, 0.0])  # unequal, but above the floor 0.2/3 = 0.067
    assert float(router.usage_penalty(enough, ALLOWED, 0.2)) == 0
    lacking = [jnp.array([0.0, 0.99 - x, x, 0.01, 0.0]) for x in (0.03, 0.02, 0.0)]
    penalties = [float(router.usage_penalty(share, ALLOWED, 0.2)) for share in lacking]
    assert 0 < penalties[0] < penalties[1] < penalties[2] < 10
    assert float(router.usage_penalty(lacking[2], ALLOWED, 0.0)) == 0
    gradient = jax.grad(lambda s: router.usage_penalty(s, ALLOWED, 0.2))(lacking[0])
    assert np.isfinite(gradient).all()
    assert float(gradient[2]) < 0


def test_doubt_is_the_mean_entropy_in_nats():
    probs = jnp.array([[[0.5, 0.5, 0, 0, 0], [1, 0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25, 0]]])
    assert float(router.doubt(probs, jnp.array([[True, True, False]]))) == pytest.approx(np.log(2) / 2)


def test_switching_is_the_chance_that_neighbours_of_one_text_differ():
    probs = jnp.array([[[1.0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0, 0]]])
    each = [1.0, 0.5, 0.5]
    for together in itertools.product((False, True), repeat=3):
        wanted = np.mean([x for x, t in zip(each, together, strict=True) if t] or [0.0])
        assert float(router.switching(probs, jnp.array([together]))) == pytest.approx(wanted)


def test_anchors_add_their_log_odds_where_their_token_stands():
    blocks = Blocks.create(3, 4, 2).anchored(1, {7: 2.0, 9: -1.0}).anchored(2, {7: 0.5})
    prior = np.asarray(anchors.prior(blocks, jnp.array([[7, 8, 9]])))
    wanted = np.zeros((1, 3, 4))
    wanted[0, 0, 1:3], wanted[0, 2, 1] = [2.0, 0.5], -1.0
    np.testing.assert_array_equal(prior, wanted)
    cleared = blocks.anchored(1, {})
    assert float(anchors.prior(cleared, jnp.array([[9]])).sum()) == 0


@pytest.mark.parametrize(
    ("block", "tokens", "words"),
    [
        (0, {5: 1.0}, "block 0"),
        (3, {5: 1.0}, "not an active block"),
        (9, {}, "not an active"),
        (1, {1: 1.0, 2: 1.0, 3: 1.0}, "capacity is 2"),
    ],
)
def test_anchors_that_cannot_be_are_refused(block, tokens, words):
    with pytest.raises(ValueError, match=words):
        Blocks.create(3, 4, 2).anchored(block, tokens)

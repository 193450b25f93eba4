"""Measures against exact enumeration, pair by pair, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import measures


def packed(seed, B=3, T=30, K=5):
    """Return blocks, positions and segments of rows with several documents and padding; BOS is block 0."""
    rng = np.random.default_rng(seed)
    positions, segments = np.zeros((B, T), np.int32), np.zeros((B, T), np.int32)
    for row in range(B):
        at, segment = 0, 1
        while at < T - rng.integers(0, 5):
            length = min(int(rng.integers(1, 12)), T - at)
            positions[row, at : at + length], segments[row, at : at + length] = np.arange(length), segment
            at, segment = at + length, segment + 1
    blocks = np.where(positions == 0, 0, rng.integers(1, K, (B, T))).astype(np.int32)
    return blocks, positions, segments


def enumerate_pairs(blocks, positions, segments):
    for b, i, j in np.ndindex(blocks.shape[0], blocks.shape[1], blocks.shape[1]):
        if j <= i and segments[b, i] == segments[b, j] > 0:
            yield blocks[b, i], blocks[b, j], positions[b, i] - positions[b, j]


@pytest.mark.parametrize("window", [1, 2, 5, 100])
@pytest.mark.parametrize("seed", range(3))
def test_pair_counts_equal_enumeration(window, seed):
    K = 5
    blocks, positions, segments = packed(seed)
    gated, always, total = measures.pair_counts(*map(jnp.asarray, (blocks, positions, segments)), window, K)
    wanted, open_pairs, pairs = np.zeros((K, K)), 0, 0
    for query, key, gap in enumerate_pairs(blocks, positions, segments):
        pairs += 1
        if gap >= window and key != 0:
            wanted[query, key] += 1
        else:
            open_pairs += 1
    np.testing.assert_array_equal(gated, wanted)
    assert (int(always), int(total)) == (open_pairs, pairs)


@pytest.mark.parametrize("dense", [True, False])
def test_open_share_equals_enumeration_over_all_layers(dense):
    K, L, N, window, perception_window = 5, 2, 3, 2, 4
    blocks, positions, segments = packed(7)
    gates = np.random.default_rng(0).integers(0, 2, (L, N, K, K)) * 0.5
    places = tuple(map(jnp.asarray, (blocks, positions, segments)))
    gated, always, total = measures.pair_counts(*places, window, K)
    opened = pairs = 0
    for layer in range(L + 1):
        for head in range(N):
            for query, key, gap in enumerate_pairs(blocks, positions, segments):
                pairs += 1
                if layer == 0:
                    opened += dense or gap < perception_window or key == 0
                else:
                    opened += gap < window or key == 0 or gates[layer - 1, head, query, key] > 0
    perception = 1.0
    if not dense:
        sink_or_not = jnp.where(places[1] == 0, 0, 1)
        _, near, all_pairs = measures.pair_counts(sink_or_not, *places[1:], perception_window, 2)
        perception = near / all_pairs
    found = measures.open_share(
        jnp.asarray(gates), gated, always, total, jnp.asarray([perception], jnp.float32)
    )
    assert float(found) == pytest.approx(opened / pairs, rel=1e-5)


def random_attention(seed, rows=50, keys=17):
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.full(keys, 0.3), rows), rng.uniform(size=(rows, keys)) < 0.4


def test_entropy_and_fidelity_by_enumeration():
    alpha, relevant = random_attention(0)
    alpha[0] = np.eye(17)[3]
    entropy = [-sum(p * np.log2(p) for p in row if p > 0) for row in alpha]
    fidelity = [
        sum(p for p, r in zip(row, mask, strict=True) if r) for row, mask in zip(alpha, relevant, strict=True)
    ]
    np.testing.assert_allclose(measures.attention_entropy(jnp.asarray(alpha)), entropy, atol=1e-5)
    np.testing.assert_allclose(
        measures.pointer_fidelity(jnp.asarray(alpha), jnp.asarray(relevant)), fidelity, atol=1e-6
    )
    assert float(measures.attention_entropy(jnp.eye(4)[0])) == 0
    assert float(measures.attention_entropy(jnp.full(8, 1 / 8))) == 3


def test_the_price_of_locality_is_the_divergence_from_dense_attention():
    rng = np.random.default_rng(3)
    s, omega = rng.normal(size=(40, 12)), rng.uniform(size=(40, 12)) * rng.integers(0, 2, (40, 12))
    omega[:, 0] = 1
    dense = np.exp(s) / np.exp(s).sum(1, keepdims=True)
    alpha = dense * omega / (dense * omega).sum(1, keepdims=True)
    some = alpha > 0
    wanted = np.where(some, alpha * np.log2(np.where(some, alpha, 1) / dense), 0).sum(1)
    ratio = np.log((dense * omega).sum(1))
    np.testing.assert_allclose(
        measures.price_of_locality(*map(jnp.asarray, (alpha, omega, ratio))), wanted, atol=1e-5
    )
    assert (wanted > 0).all()


def test_measures_are_differentiable_at_exact_zeros():
    alpha = jnp.array([1.0, 0.0, 0.0])
    assert np.isfinite(jax.grad(lambda a: measures.attention_entropy(a).sum())(alpha)).all()
    price = jax.grad(lambda a, w: measures.price_of_locality(a, w, jnp.zeros(())).sum(), (0, 1))(alpha, alpha)
    assert all(np.isfinite(g).all() for g in price)


def test_open_keys_are_those_that_attention_may_see():
    """Check against counting one by one, and against the sums of `pair_counts`."""
    rng = np.random.default_rng(3)
    B, T, K, L, N, window = 2, 14, 4, 2, 3, 3
    segments = np.array([[1] * 6 + [2] * 8, [1] * 11 + [0] * 3])
    positions = np.concatenate([np.r_[:6, :8], np.r_[:11, :3]]).reshape(B, T)
    blocks = np.where(positions == 0, 0, rng.integers(1, K, (B, T)))
    gates = rng.integers(0, 2, (L, N, K, K)).astype(float)
    gates[..., 0] = 1.0
    given = map(jnp.asarray, (gates, blocks, positions, segments))
    found = np.asarray(measures.open_keys(*given, window))
    for layer, b, n, i in np.ndindex(L, B, N, T):
        if not segments[b, i]:
            continue
        keys = [j for j in range(i + 1) if segments[b, j] == segments[b, i]]
        seen = [j for j in keys if i - j < window or gates[layer, n, blocks[b, i], blocks[b, j]] > 0]
        assert found[layer, b, n, i] == len(seen)
    gated, always, total = measures.pair_counts(*map(jnp.asarray, (blocks, positions, segments)), window, K)
    share = measures.open_share(jnp.asarray(gates), gated, always, total, jnp.zeros(0))
    assert float(share) == pytest.approx(
        found.sum(where=(segments > 0)[None, :, None]) / (L * N * float(total)), rel=1e-5
    )

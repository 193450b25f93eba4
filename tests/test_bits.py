"""Bits: entropies, divergences and codes against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import bits


def distributions(seed=0, rows=30, n=7):
    p = np.random.default_rng(seed).dirichlet(np.full(n, 0.5), rows)
    p[0], p[1] = np.eye(n)[2], 1 / n
    return p


def test_entropy_by_the_definition():
    p = distributions()
    wanted = [-sum(x * np.log2(x) for x in row if x > 0) for row in p]
    np.testing.assert_allclose(bits.entropy(jnp.asarray(p)), wanted, atol=1e-5)
    np.testing.assert_allclose(bits.binary_entropy(jnp.array([0.0, 0.5, 1.0])), [0, 1, 0], atol=1e-7)


def test_divergence_by_the_definition():
    q, p = distributions(1), distributions(2)
    p[0] = 1 / 7
    wanted = [
        sum(a * np.log2(a / b) for a, b in zip(x, y, strict=True) if a > 0) for x, y in zip(q, p, strict=True)
    ]
    np.testing.assert_allclose(bits.kl(jnp.asarray(q), jnp.asarray(p)), wanted, rtol=1e-4, atol=1e-5)
    assert np.isposinf(bits.kl(jnp.array([0.5, 0.5]), jnp.array([1.0, 0.0])))
    assert float(bits.binary_kl(jnp.float32(0.5), jnp.float32(0.25))) == pytest.approx(
        0.5 * np.log2(2) + 0.5 * np.log2(2 / 3)
    )


def test_information_of_independent_and_of_equal_variables():
    x, y = np.random.default_rng(3).dirichlet(np.ones(5), 2)
    assert float(bits.mutual_information(jnp.asarray(np.outer(x, y)))) == pytest.approx(0, abs=1e-5)
    assert float(bits.mutual_information(jnp.diag(jnp.asarray(x)))) == pytest.approx(
        float(bits.entropy(jnp.asarray(x))), abs=1e-5
    )
    assert float(bits.mutual_information(jnp.zeros((3, 3)))) == 0


def test_code_length_of_targets():
    logits = np.random.default_rng(4).normal(size=(5, 9)) * 5
    targets = np.array([0, 3, 8, 1, 1])
    wanted = -np.log2(np.exp(logits[range(5), targets]) / np.exp(logits).sum(1))
    np.testing.assert_allclose(bits.code_length(jnp.asarray(logits), jnp.asarray(targets)), wanted, rtol=1e-4)
    half = bits.code_length(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(targets))
    assert half.dtype == jnp.float32


def test_nats_and_back():
    assert bits.to_nats(bits.from_nats(3.7)) == pytest.approx(3.7)
    assert bits.from_nats(np.log(8)) == pytest.approx(3)


def test_the_integer_code_satisfies_kraft_and_almost_fills_it():
    total = sum(2.0 ** -bits.integer_code_length(n) for n in range(1, 200_000))
    assert 0.8 < total <= 1
    lengths = [bits.integer_code_length(n) for n in (1, 2, 3, 10, 100, 1000)]
    assert lengths == sorted(lengths)
    with pytest.raises(ValueError, match="n must be ≥ 1"):
        bits.integer_code_length(0)


def test_gradients_are_finite_at_zero_probability():
    p = jnp.array([1.0, 0.0])
    assert np.isfinite(jax.grad(lambda x: bits.entropy(x).sum())(p)).all()
    assert np.isfinite(jax.grad(lambda x: bits.kl(x, jnp.array([0.5, 0.5])).sum())(p)).all()


def test_code_lengths_are_the_same_where_specialists_are_mapped_by_hand():
    """Check that the chosen logit is summed beside manual axes, and gathered elsewhere."""
    logits = jax.random.normal(jax.random.key(0), (1, 5, 9))
    targets = jnp.arange(5)[None]
    mesh = jax.make_mesh(
        (1, 1), ("specialist", "tensor"), (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:1]
    )
    spec = jax.sharding.PartitionSpec("specialist")
    by_hand = jax.jit(
        jax.shard_map(
            bits.code_length,
            mesh=mesh,
            in_specs=spec,
            out_specs=spec,
            axis_names={"specialist"},
            check_vma=False,
        )
    )
    assert "gather" not in by_hand.lower(logits, targets).as_text()
    assert "gather" in jax.jit(bits.code_length).lower(logits, targets).as_text()
    np.testing.assert_allclose(by_hand(logits, targets), bits.code_length(logits, targets), rtol=1e-6)

"""Certificates hold on random inputs, are attained by the worst input, and round outward."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import config
from localist_jax.locality import Blocks, Dial, certificates
from localist_jax.model import Transformer
from localist_jax.model.layers import rotate


def head_logits(gains, x, positions):
    """Return logits of QK-normed, rotated vectors x [2, T, H], as the model computes them."""
    q, k = (gain * v / np.sqrt((v**2).mean(-1, keepdims=True)) for gain, v in zip(gains, x, strict=True))
    turned = [
        np.asarray(rotate(jnp.asarray(v, jnp.float32)[None, :, None], positions, 10_000.0))[0, :, 0]
        for v in (q, k)
    ]
    return turned[0] @ turned[1].T / np.sqrt(x.shape[-1])


@pytest.mark.parametrize("H", [2, 8, 32])
def test_no_input_exceeds_the_logit_bound_and_an_adversary_comes_close(H):
    rng = np.random.default_rng(H)
    gains = rng.uniform(-2, 2, (2, H))
    bound = float(certificates.logit_bound(*gains))
    positions = jnp.asarray(rng.integers(0, 500, (1, 40)), jnp.int32)
    largest = 0.0
    for scale in (1.0, 0.1, 10.0):
        largest = max(
            largest, np.abs(head_logits(gains, rng.normal(size=(2, 40, H)) * scale, positions)).max()
        )
    # The worst input: both vectors lie in the strongest channels of the strongest rotary pair, at aligned positions.
    pair_gain = np.abs(gains).reshape(2, 2, -1)
    pair = int((pair_gain[0].max(0) * pair_gain[1].max(0)).argmax())
    x = np.zeros((2, 4000, H))
    for side in range(2):
        x[side, :, pair + int(pair_gain[side, :, pair].argmax()) * H // 2] = 1.0
    everywhere = jnp.arange(4000, dtype=jnp.int32)[None]
    attained = np.abs(head_logits(gains, x[:, :1500], everywhere[:, :1500])).max()
    assert max(largest, attained) <= bound
    assert attained > 0.9 * bound


def test_the_fidelity_bound_is_attained_and_never_exceeded():
    rng = np.random.default_rng(0)
    for _ in range(500):
        b, u, beta = int(rng.integers(1, 6)), int(rng.integers(0, 20)), rng.uniform(0, 6)
        s = rng.normal(size=b + u) * 2
        margin = s[:b].min() - (s[b:].max() if u else 0.0)
        weight = np.exp(s) * np.where(np.arange(b + u) < b, 1, np.exp(-beta))
        assert weight[:b].sum() / weight.sum() >= certificates.fidelity_bound(beta, margin, b, u)
    equal = 3 / (3 + 7 * np.exp(-1.5 - 0.5))  # all relevant logits δ above all others
    assert certificates.fidelity_bound(1.5, 0.5, 3, 7) == pytest.approx(equal, rel=1e-12)
    assert certificates.fidelity_bound(1.5, 0.5, 3, 7) < equal
    assert certificates.fidelity_bound(np.inf, -100.0, 1, 10**9) == 1.0
    assert certificates.fidelity_bound(0.0, -5.0, 4, 0) == 1.0


def test_the_entropy_bound_is_attained_and_never_exceeded():
    rng = np.random.default_rng(1)
    for _ in range(500):
        b, u = int(rng.integers(1, 8)), int(rng.integers(0, 30))
        alpha = rng.dirichlet(np.full(b + u, rng.uniform(0.05, 3)))
        entropy = -(alpha[alpha > 0] * np.log2(alpha[alpha > 0])).sum()
        assert entropy <= certificates.entropy_bound(alpha[b:].sum(), b, u) + 1e-9
    epsilon, b, u = 0.1, 4, 16
    worst = np.r_[np.full(b, (1 - epsilon) / b), np.full(u, epsilon / u)]
    assert certificates.entropy_bound(epsilon, b, u) == pytest.approx(
        -(worst * np.log2(worst)).sum(), rel=1e-12
    )
    assert certificates.entropy_bound(0.0, 8, 100) == pytest.approx(3.0)
    assert certificates.entropy_bound(1.0, 4, 12) == pytest.approx(4.0)  # beyond u/(b+u): uniform attention
    assert certificates.entropy_bound(0.3, 4, 0) == pytest.approx(2.0)


def test_bounds_broadcast():
    assert certificates.fidelity_bound(np.zeros((3, 1)), -1.0, np.ones(4), 5).shape == (3, 4)
    assert certificates.logit_bound(np.ones((2, 3, 8)), np.ones((2, 3, 8))).shape == (2, 3)


def test_the_guarantee_survives_the_arithmetic_that_runs_the_model():
    """Check that the dial for ε, cast to float32, gives F ≥ 1−ε on the worst logits in float32."""
    for epsilon in (0.3, 1e-2, 1e-5):
        beta = jnp.float32(certificates.log_odds_for_fidelity(epsilon, 3.0, 2, 500))
        s = jnp.where(jnp.arange(502) < 2, -3.0, 3.0)
        alpha = jax.nn.softmax(s + jnp.log(jnp.where(jnp.arange(502) < 2, 1.0, jnp.exp(-beta))))
        assert float(alpha[2:].sum()) <= epsilon * (1 + 1e-5)


@pytest.mark.parametrize(("norm", "holds"), [(True, True), (False, False)])
def test_biases_come_before_the_norm_and_leave_the_logit_bound_alone(norm, holds):
    """Check that with huge biases no key outweighs another by more than e^{2S}, and that without the norm one does."""
    shape = config.Model(
        layers=2,
        width=32,
        heads=2,
        kv_heads=1,
        head_size=16,
        feed_forward=32,
        blocks=2,
        block_capacity=2,
        block_units=0,
        qk_norm=norm,
        qkv_bias=True,
    )
    model, blocks = Transformer(shape, 300), Blocks.create(2, 2, 1)
    tokens = jax.random.randint(jax.random.key(1), (1, 24), 2, 300)
    params = nn.unbox(model.init(jax.random.key(0), tokens, Dial(0.0), blocks)["params"])
    for stack in ("perception", "localist"):
        attention = params[stack]["attention"]
        for i, name in enumerate(("query_bias", "key_bias")):
            attention[name] = 300 * jax.random.normal(jax.random.key(i), attention[name].shape)
    _, seen = model.apply({"params": params}, tokens, Dial(0.0), blocks, mutable=["intermediates"])
    ones = np.ones((2, 1, 16))
    bound = float(certificates.logit_bound(ones, ones).max())
    spread = 0.0
    for map_ in jax.tree.leaves(seen["intermediates"]):  # [L, B, T, N, S]
        last = np.asarray(map_, np.float64)[:, :, -1]
        spread = max(spread, float(np.log(last.max(-1) / np.maximum(last.min(-1), 1e-300)).max()))
    assert (spread <= 2 * bound) == holds
    assert spread > 1

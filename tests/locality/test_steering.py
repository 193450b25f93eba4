"""Steering: the odds of a query in scope, and attention under them, against the definition."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.attention import attend
from localist_jax.locality import Dial, gates, steering
from localist_jax.locality.steering import Steering
from localist_jax.model import Cache, forward

K, N, T = 3, 2, 20


def test_odds_of_queries_in_scope():
    A = jnp.array([[[0.2, 0.5, 0.0], [0.3, 1.0, 0.4], [0.0, 0.0, 1.0]]] * N)
    beta = jnp.full((1, N), 1.0)
    rules = Steering.none(1, 1, N, T)
    rules.acts[0, 0, 0] = True  # head 0 only
    rules.gate[0, 0, 0, 1] = 1.0  # points to group 2
    rules.beta[0, 0, 0], rules.gain[0, 0, 0] = 0.5, 2.0
    base = gates.odds(A, beta)
    odds, relevant = steering.steered(
        base, gates.relevant(A)[None], beta, jax.tree.map(lambda x: x[0], rules.layers(0))
    )
    assert odds.shape == (1, N, 2 * K, K * (1 + steering.GROUPS))
    for group in range(1 + steering.GROUPS):
        columns = slice(group * K, group * K + K)
        np.testing.assert_array_equal(odds[0, :, :K, columns], base[0])  # out of scope: the learned gates
        np.testing.assert_array_equal(odds[0, 1, K:, columns], base[0, 1])  # a head in which no rule acts
        wanted = np.full(K, np.exp(2.0) if group == 2 else np.exp(-1.5), np.float32)
        if group == 0:
            wanted[0] = 1.0  # the sink
        np.testing.assert_allclose(odds[0, 0, K:, columns], np.broadcast_to(wanted, (K, K)), rtol=1e-6)
        sink = np.arange(K) == 0 if group == 0 else np.zeros(K, bool)
        np.testing.assert_array_equal(relevant[0, 0, K, columns], sink | (group == 2))


def test_the_row_of_one_query_is_that_of_the_whole_table():
    rng = np.random.default_rng(0)
    odds = jnp.asarray(rng.random((2, N, K, K)), jnp.float32)
    relevant = jnp.asarray(rng.random((1, N, K, K)) < 0.5)
    beta = jnp.asarray(rng.random((2, N)), jnp.float32)
    rules = Steering.none(2, 1, N, T)
    rules.acts[:] = rng.random(rules.acts.shape) < 0.5
    rules.gate[:] = rng.random(rules.gate.shape) < 0.5
    rules.gain[:] = rng.random(rules.gain.shape)
    of_layer = jax.tree.map(lambda x: x[0], rules.layers(0))
    whole = steering.steered(odds, relevant, beta, of_layer)
    for query in (2, K + 1):  # the row of its block, or in scope that block's second row
        block = jnp.full((2, 1), query % K)
        rows = (steering.own_row(table, block) for table in (odds, relevant))
        own = steering.steered(*rows, beta, of_layer)
        for one, table in zip(own, whole, strict=True):
            np.testing.assert_array_equal(one[:, :, query // K], table[:, :, query])


@pytest.mark.parametrize("implementation", ["reference", "sparse"])
def test_attention_under_steering_against_its_definition(implementation):
    keys = jax.random.split(jax.random.key(0), 6)
    q, k, v = (jax.random.normal(key, (1, T, N, 4)) for key in keys[:3])
    block = jax.random.randint(keys[3], (1, T), 0, K).at[0, 0].set(0)
    group = jax.random.randint(keys[4], (1, T), 0, 3).at[0, 0].set(0)
    rows = jax.random.uniform(keys[5], (1, N, 2 * K, 3 * K), minval=0.0, maxval=30.0)
    at = jnp.arange(T)[None]
    in_scope = at >= 12
    out, stats = jax.jit(
        lambda *qkv: attend(
            *qkv,
            q_block=steering.query_rows(block, in_scope, K),
            k_block=steering.key_columns(block, at, group, K),
            q_pos=at,
            k_pos=at,
            q_seg=at * 0 + 1,
            k_seg=at * 0 + 1,
            odds=rows,
            relevant=rows > 20,
            window=2,
            stats="open",
            implementation=implementation,
        )
    )(q, k, v)
    q, k, v, block, group, rows, out, mass = map(
        np.asarray, (q, k, v, block, group, rows, out, stats.gated_mass)
    )
    for n in range(N):
        for i in range(T):
            row = int(block[0, i]) + K * (i >= 12)
            omega = np.array([rows[0, n, row, block[0, j] + K * group[0, j]] for j in range(i + 1)])
            points = np.array(
                [omega[j] > 20 and i - j >= 2 and block[0, j] + K * group[0, j] > 0 for j in range(i + 1)]
            )
            omega[max(0, i - 1) :] = 1.0
            weight = omega * np.exp(k[0, : i + 1, n] @ q[0, i, n] / 2)
            alpha = weight / weight.sum()
            np.testing.assert_allclose(out[0, i, n], alpha @ v[0, : i + 1, n], atol=2e-5)
            np.testing.assert_allclose(mass[0, n, i], alpha[points].sum(), atol=2e-5)


def test_the_cache_and_the_full_pass_agree_under_rules(model, params, blocks, small):
    tokens = jax.random.randint(jax.random.key(5), (2, 12), 2, 60).at[:, 0].set(1)
    rules = Steering.none(2, small.layers, small.heads, 12)
    rules.group[0, 3:6], rules.group[1, 2] = 1, 2
    rules.acts[:, 1:], rules.gate[..., :2], rules.gain[...], rules.beta[...] = True, 1.0, 3.0, 1.0
    rules.since[:] = 9
    rules = jax.tree.map(jnp.asarray, rules)
    full = jax.jit(lambda rules: forward(model, params, tokens, Dial(0.5), blocks, rules=rules))
    whole = full(rules)
    cache, logits = Cache.create(small, 2, 12), []
    step = jax.jit(
        lambda cache, part, at: forward(
            model,
            params,
            part,
            Dial(0.5),
            blocks,
            rules=rules,
            cache=cache,
            positions=at,
            segments=at * 0 + 1,
        )
    )
    for start, end in [(0, 9), (9, 10), (10, 11), (11, 12)]:
        at = jnp.broadcast_to(jnp.arange(start, end), (2, end - start))
        out = step(cache, tokens[:, start:end], at)
        cache = out.cache
        logits.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(logits, 1), whole.logits, atol=2e-4)
    nothing = dataclasses.replace(rules, acts=jnp.zeros_like(rules.acts))
    plain, idle = full(None), full(nothing)
    np.testing.assert_allclose(idle.logits, plain.logits, atol=1e-5)
    np.testing.assert_allclose(whole.logits[:, :9], plain.logits[:, :9], atol=1e-5)  # before the scope
    assert np.abs(whole.logits[:, 9:] - plain.logits[:, 9:]).max() > 1e-2

"""Localist units: the tiled and the ragged path against a loop over positions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.model import units

CASES = [(1, 1, 2), (1, 5, 3), (2, 16, 4), (3, 40, 5), (4, 128, 3), (1, 7, 16)]


def by_loop(x, block, w_in, w_out):
    x, block, w_in, w_out = (np.asarray(a, np.float64) for a in (x, block, w_in, w_out))
    out = np.zeros_like(x)
    for b, t in np.ndindex(block.shape):
        hidden = x[b, t] @ w_in[int(block[b, t])]
        out[b, t] = (hidden / (1 + np.exp(-hidden))) @ w_out[int(block[b, t])]
    return out


def case(B, T, K, D=6, U=5):
    keys = jax.random.split(jax.random.key(B * T + K), 4)
    x = jax.random.normal(keys[0], (B, T, D))
    # A skewed assignment: one block has most positions, some may have none.
    block = jnp.minimum(jax.random.geometric(keys[1], 0.5, (B, T)) - 1, K - 1).astype(jnp.int32)
    return x, block, jax.random.normal(keys[2], (K, D, U)), jax.random.normal(keys[3], (K, U, D))


@pytest.mark.parametrize("path", [units._tiled, units._ragged])
@pytest.mark.parametrize(("B", "T", "K"), CASES)
def test_paths_equal_the_loop(path, B, T, K):
    x, block, w_in, w_out = case(B, T, K)

    @functools.partial(jax.jit, static_argnames="groups")
    def run(groups):
        where = units.dispatch(block, K, groups)
        return path(x.reshape(groups, -1, x.shape[-1]), w_in, w_out, where).reshape(x.shape)

    for groups in {1, B}:
        out = run(groups=groups)
        np.testing.assert_allclose(out, by_loop(x, block, w_in, w_out), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("path", [units._tiled, units._ragged])
def test_devices_that_share_the_blocks_add_up_to_the_loop(path):
    x, block, w_in, w_out = case(2, 16, 4)
    where = units.dispatch(block, 4)
    cuts = [slice(0, 2), slice(2, 4)]

    def loss(x, w_in, w_out, held=cuts):
        parts = [path(x.reshape(1, -1, x.shape[-1]), w_in[c], w_out[c], where, c.start) for c in held]
        return (sum(parts) ** 2).sum(), parts

    arguments = (0, 1, 2)
    grads, parts = jax.jit(jax.grad(loss, arguments, has_aux=True))(x, w_in, w_out)
    np.testing.assert_allclose(
        sum(parts).reshape(x.shape), by_loop(x, block, w_in, w_out), rtol=1e-4, atol=1e-4
    )
    for part, cut in zip(parts, cuts, strict=True):
        mine = (np.asarray(block) >= cut.start) & (np.asarray(block) < cut.stop)
        assert not np.asarray(part).reshape(x.shape)[~mine].any()
    whole = jax.grad(lambda *a: loss(*a, held=[slice(0, 4)])[0], arguments)(x, w_in, w_out)
    for one, other in zip(grads, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("B", "T", "K"), CASES)
def test_paths_have_equal_gradients(B, T, K):
    x, block, w_in, w_out = case(B, T, K)

    @jax.jit
    def gradients(*given):
        where = units.dispatch(block, K)

        def loss(path):
            return lambda x, a, b: (path(x.reshape(1, -1, x.shape[-1]), a, b, where) ** 2).sum()

        return [jax.grad(loss(path), (0, 1, 2))(*given) for path in (units._tiled, units._ragged)]

    tiled, ragged = gradients(x, w_in, w_out)
    for one, other in zip(tiled, ragged, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("positions", "blocks"), [(1, 16), (2048, 16), (2048, 64), (100_000, 8)])
def test_tiles_waste_at_most_one_tile_per_block(positions, blocks):
    size = units.tile_size(positions, blocks)
    assert size in {1 << n for n in range(8)}
    block = jnp.zeros((1, positions), jnp.int32).at[0, 0].set(blocks - 1)
    where = units.dispatch(block, blocks)
    assert where.tile_block.shape[1] * size <= positions + blocks * size
    slots = np.asarray(where.slot[0])
    assert len(np.unique(slots)) == positions
    np.testing.assert_array_equal(np.asarray(where.tile_block[0])[slots // size], np.asarray(block[0]))

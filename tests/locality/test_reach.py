"""Which positions may influence which: literal masks, paths, and certificates for all texts."""

import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import reach as flow

K = 4


def graph(*edges, K=K):
    """Return the gates of one layer and head that open these (query block, key block) pairs."""
    gates = np.zeros((1, 1, K, K), np.float32)
    for k, l in edges:
        gates[0, 0, k, l] = 0.3
    return jnp.asarray(gates)


def place(blocks, segments=None):
    """Return blocks, positions and segments of one row; segments are given as lengths, the last may be padding."""
    blocks = np.asarray(blocks)[None]
    if segments is None:
        return jnp.asarray(blocks), jnp.arange(blocks.size)[None], jnp.ones(blocks.shape, int)
    ids = np.repeat([s for s, _ in segments], [n for _, n in segments])
    positions = np.concatenate([np.arange(n) for _, n in segments])
    return jnp.asarray(blocks), jnp.asarray(positions)[None], jnp.asarray(ids)[None]


def rows(text):
    """Parse a mask: one line per query, x where a key is open."""
    return np.array([[c == "x" for c in line.split()] for line in text.strip().splitlines()])


def test_open_pairs_are_self_window_sink_and_gates():
    text = place([0, 1, 2, 1, 3])
    np.testing.assert_array_equal(
        flow.open_pairs(graph((1, 2)), *text, 1)[0, 0],
        rows("""
            x . . . .
            x x . . .
            x . x . .
            x . x x .
            x . . . x"""),
    )
    np.testing.assert_array_equal(
        flow.open_pairs(graph((3, 1)), *text, 2)[0, 0],
        rows("""
            x . . . .
            x x . . .
            x x x . .
            x . x x .
            x x . x x"""),
    )


def test_segments_and_padding_are_apart():
    text = place([0, 1, 0, 1, 1], [(1, 2), (2, 2), (0, 1)])
    np.testing.assert_array_equal(
        flow.open_pairs(graph((1, 1)), *text, 9)[0, 0],
        rows("""
            x . . . .
            x x . . .
            . . x . .
            . . x x .
            . . . . ."""),
    )
    assert bool(flow.reach(flow.open_pairs(graph(), *text, 1))[0, 4, 4])  # the residual connection


def test_one_open_head_opens_a_pair():
    gates = jnp.concatenate([graph((1, 2)), graph((2, 1))], 1)
    both = flow.open_pairs(gates, *place([0, 1, 2, 1]), 1)[0, 0]
    assert both[3, 2]
    assert both[2, 1]
    assert not both[3, 1]


def test_influence_takes_the_layers_in_their_order():
    """Check that 3 → 2 → 1 needs 2 → 1 in an earlier layer than 3 → 2."""
    text = place([0, 1, 2, 3])
    for layers, reaches in (([(2, 1)], [(3, 2)]), True), (([(3, 2)], [(2, 1)]), False):
        gates = jnp.concatenate([graph(*edges) for edges in layers])
        assert bool(flow.reach(flow.open_pairs(gates, *text, 1))[0, 3, 1]) is reaches
        assert bool(flow.block_reach(gates, jnp.ones(K, bool))[3, 1]) is reaches


def test_a_window_carries_influence_one_step_further_per_layer():
    pairs = flow.open_pairs(jnp.concatenate([graph()] * 3), *place([0, 1, 1, 1, 1, 1]), 2)
    np.testing.assert_array_equal(flow.reach(pairs)[0, 5], [True, False, True, True, True, True])


def test_the_sink_relays_nothing_but_the_background_does():
    gates = jnp.concatenate([graph((0, 2)), graph()])  # block 0 attends to 2, and all attend to block 0
    active = jnp.ones(K, bool)
    assert not bool(flow.block_reach(gates, active, background=False)[1, 2])
    assert bool(flow.block_reach(gates, active, background=True)[1, 2])
    with_background = place([0, 2, 0, 1])
    reached = flow.reach(flow.open_pairs(gates, *with_background, 1))[0]
    assert bool(reached[3, 1])


def test_blocks_without_positions_relay_nothing():
    gates = jnp.concatenate([graph((3, 2)), graph((1, 3))])
    assert bool(flow.block_reach(gates, jnp.ones(K, bool))[1, 2])
    assert not bool(flow.block_reach(gates, jnp.arange(K) < 3)[1, 2])


def test_a_closed_block_is_apart_from_its_own_other_positions():
    assert not bool(flow.block_reach(graph(), jnp.ones(K, bool))[1, 1])
    assert bool(flow.block_reach(graph((1, 1)), jnp.ones(K, bool))[1, 1])


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_what_holds_for_all_texts_holds_for_each(seed, background):
    rng = np.random.default_rng(seed)
    gates = jnp.asarray(rng.random((3, 2, K, K)) * (rng.random((3, 2, K, K)) < 0.12), jnp.float32)
    promised = ~flow.block_reach(gates, jnp.ones(K, bool), background)
    apart = 0
    for _ in range(20):
        blocks = rng.integers(0 if background else 1, K, 12)
        blocks[0] = 0
        reached = flow.reach(flow.open_pairs(gates, *place(blocks), 1))[0]
        independent = np.asarray(promised)[blocks[:, None], blocks] & ~np.eye(12, dtype=bool)
        assert not (np.asarray(reached) & independent).any()
        apart += independent[np.tril_indices(12, -1)].sum()
    assert apart > 0

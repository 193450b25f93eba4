"""A child takes positions from its parent only, whatever the logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import Blocks, lineage, router

K = 8


def walked(z, parent, born, active):
    """Return where one position ends up, by the walk that the module describes."""

    def children(p):
        mine = (c for c in range(K) if active[c] and c != p and parent[c] == p)
        return sorted(mine, key=lambda c: born[c])

    at = max((b for b in range(K) if active[b] and parent[b] == b), key=lambda b: (z[b], -b))
    while True:
        for c in children(at):
            if z[c] > z[at] + lineage.RESERVE:
                at = c
                break
        else:
            return at


def family_tree(seed):
    """Return random trees with spare, retired and nested blocks, with birth numbers in no order."""
    rng = np.random.default_rng(seed)
    places, blocks = rng.permutation(K), Blocks.create(0, K, 1)
    for number, place in enumerate(places[: rng.integers(2, K + 1)]):
        mother = place if number < 2 else places[rng.integers(0, number)]
        blocks = blocks.with_child(int(place), int(mother), number)
    return blocks


@pytest.mark.parametrize("seed", range(12))
def test_the_argmax_is_where_the_walk_ends(seed):
    blocks = family_tree(seed)
    z = jax.random.normal(jax.random.key(seed), (1, 300, K))
    nested = lineage.nested(z, blocks.parent, blocks.born, blocks.active)
    best = np.where(np.asarray(blocks.active), np.asarray(nested), -np.inf)[0].argmax(-1)
    args = (np.asarray(x).tolist() for x in (blocks.parent, blocks.born, blocks.active))
    args = tuple(args)
    assert best.tolist() == [walked(row, *args) for row in np.asarray(z)[0].tolist()]


def test_roots_alone_are_left_as_they_are():
    blocks, z = Blocks.create(6, K, 1), jax.random.normal(jax.random.key(0), (2, 9, K))
    np.testing.assert_array_equal(lineage.nested(z, blocks.parent, blocks.born, blocks.active), z)


@pytest.mark.parametrize("seed", range(6))
def test_a_newcomer_moves_positions_of_its_parent_only_and_a_retired_one_gives_them_back(seed):
    blocks = family_tree(seed)
    free = np.flatnonzero(~np.asarray(blocks.active))
    if not free.size:
        blocks, free = (
            blocks.without(int(np.asarray(blocks.born).argmax())),
            [int(np.asarray(blocks.born).argmax())],
        )
    parent = int(np.flatnonzero(np.asarray(blocks.active))[0])
    z = jax.random.normal(jax.random.key(seed), (1, 500, K))

    def ids(b):
        return np.asarray(router.assign(z, b.active, b)[0])

    before, grown = ids(blocks), blocks.with_child(int(free[0]), parent, 99)
    after = ids(grown)
    moved = before != after
    assert set(after[moved]) <= {int(free[0])}
    assert set(before[moved]) <= {parent}
    np.testing.assert_array_equal(ids(grown.without(int(free[0]))), before)


def test_a_child_with_its_parents_logit_takes_nothing():
    blocks = Blocks.create(2, 3, 1).with_child(2, 1, 1)
    z = jnp.zeros((1, 4, 3)).at[..., 1:].set(7.0)
    assert set(np.asarray(router.assign(z, blocks.active, blocks)[0]).ravel()) == {1}
    first = blocks.with_child(0, 1, 1)  # block numbers do not follow birth order
    assert set(np.asarray(router.assign(z.at[..., 0].set(7.0), first.active, first)[0]).ravel()) == {1}


def test_gradients_reach_the_decision_between_child_and_parent():
    blocks = Blocks.create(2, 3, 1).with_child(2, 1, 1)
    z = jnp.array([[[0.0, 1.0, 1.5]]])
    slope = jax.grad(lambda x: router.assign(x, blocks.active, blocks)[1][..., 2].sum())(z)
    assert float(slope[0, 0, 2]) > 0 > float(slope[0, 0, 1])

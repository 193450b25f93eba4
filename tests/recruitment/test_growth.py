"""Growth changes nothing at birth, moves what belongs to the parent, and touches nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import config
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial, pricing
from localist_jax.model import Transformer, forward
from localist_jax.parallel.mesh import make_mesh
from localist_jax.recruitment import growth
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import abstract_state, boxed_state, fresh_state
from localist_jax.training.state import GATES, at_path, with_leaf
from localist_jax.training.step import make_train_step

VOCABULARY, T, B = 60, 24, 4
SIZES = np.full(VOCABULARY, 3)
FREE = 5  # the spare place of `small`
GENERATIONS = 3
read = jax.jit(forward, static_argnums=0)


def settings_for(small, optimizer="muon"):
    return config.Config(
        data=config.Data(context=T, batch=B), model=dataclasses.replace(small, generations=GENERATIONS),
        optimizer=config.Optimizer(kind=optimizer), train=config.Train(steps=40),
    )  # fmt: skip


def batch(seed=0):
    tokens = np.random.default_rng(seed).integers(2, VOCABULARY, (B, T)).astype(np.int32)
    tokens[:, 0] = 1
    return Batch(
        tokens=tokens, targets=np.roll(tokens, -1, 1), segments=np.ones((B, T), np.int32),
        positions=np.broadcast_to(np.arange(T, dtype=np.int32), (B, T)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(small):
    """A state after some steps, with half of the gates closed and moments in every leaf."""
    settings, mesh = settings_for(small), make_mesh(config.Mesh(), jax.devices()[:1])
    model = Transformer(settings.model, VOCABULARY)
    state = fresh_state(model, settings, mesh)
    step = jax.jit(make_train_step(model, settings, SIZES))
    for seed in range(3):
        state, _ = step(state, batch(seed))
    gates = at_path(state.params, GATES)
    half = jnp.where(jax.random.bernoulli(jax.random.key(2), 0.5, gates.shape), gates, 0.3)
    return (
        dataclasses.replace(state, params=with_leaf(state.params, GATES, half)),
        settings,
        model,
        mesh,
        step,
    )


def grow(state, births, model, settings, mesh):
    return growth.grow(state, births, boxed_state(model, settings), mesh, settings.model.generations)


def birth(state, settings, parent, child=FREE, number=1, share=0.4, seed=0):
    names = growth.axis_names(boxed_state(Transformer(settings.model, VOCABULARY), settings))
    direction = 3 * jax.random.normal(jax.random.key(seed), (settings.model.width,))
    child, parent, number = (jnp.asarray(x, jnp.int32) for x in (child, parent, number))
    return dataclasses.replace(
        growth.fresh(growth.Birth.blank(settings), names, state, parent, number),
        child=child, parent=parent, number=number, share=jnp.asarray(share, jnp.float32), direction=direction,
    )  # fmt: skip


def logits(model, state, dial):
    where = batch(9)
    at = {"positions": where.positions, "segments": where.segments}
    out = read(model, state.params, where.tokens, dial, state.blocks, **at)
    return np.asarray(out.logits), np.asarray(out.blocks)


@pytest.mark.parametrize("parent", [2, 4])
def test_nothing_changes_at_birth_at_any_dial(trained, parent):
    state, settings, model, mesh, _ = trained
    grown, _ = grow(state, [birth(state, settings, parent)], model, settings, mesh)
    mixed = Dial(jnp.linspace(0, 1, B)[:, None, None] ** 0.25)
    for dial in (Dial(0.0), Dial(0.9), Dial(1.0), mixed):
        (before, blocks), (after, children) = (logits(model, s, dial) for s in (state, grown))
        assert (children == FREE).any(), "the birth must be seen, or nothing was tried"
        assert set(blocks[children == FREE]) == {parent}
        np.testing.assert_allclose(after, before, atol=2e-5)


def test_a_child_without_its_parents_units_would_be_noticed(trained):
    """The test above can fail: with no generation before their own the logits move."""
    state, settings, model, mesh, _ = trained
    grown, _ = grow(state, [birth(state, settings, 2)], model, settings, mesh)
    alone = Transformer(dataclasses.replace(settings.model, generations=1), VOCABULARY)
    before, _ = logits(model, grown, Dial(1.0))
    after, _ = logits(alone, grown, Dial(1.0))
    assert np.abs(after - before).max() > 1e-3


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_fresh_units_step_no_further_than_their_parents(small, kind):
    settings, mesh = settings_for(small, kind), make_mesh(config.Mesh(), jax.devices()[:1])
    model = Transformer(settings.model, VOCABULARY)
    step = jax.jit(make_train_step(model, settings, SIZES))
    state = fresh_state(model, settings, mesh)
    for seed in range(4):
        state, _ = step(state, batch(seed))
    grown, _ = grow(state, [birth(state, settings, 2)], model, settings, mesh)
    after, _ = step(grown, batch(9))
    for name in ("in", "out"):
        old, new = (np.asarray(at_path(s.params, (*growth.OWN, name))) for s in (grown, after))
        moved = np.abs(new - old).mean((0, 2, 3))
        assert moved[FREE] <= 1.2 * moved[2], name
    assert (np.asarray(at_path(after.params, (*growth.OWN, "out")))[:, FREE] != 0).any(), "it learns at once"


def test_old_leaves_stay_bit_equal_and_only_the_units_of_the_newcomer_have_no_momentum(trained):
    state, settings, model, mesh, _ = trained
    boxed = boxed_state(model, settings)
    grown, report = grow(state, [birth(state, settings, 2)], model, settings, mesh)
    names = dict(growth.axis_names(boxed))
    compared = 0
    pairs = zip(*(jax.tree_util.tree_leaves_with_path(x) for x in (state, grown)), strict=True)
    for (path, old), (_, new) in pairs:
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        if path.startswith(("pricing", "blocks")) or not hasattr(old, "shape") or path == "key":
            continue
        axes = [i for i, n in enumerate(names.get(path, ())) if n in growth.BLOCK_AXES]
        kept_old, kept_new = np.asarray(old), np.asarray(new)
        for axis in axes:
            kept_old, kept_new = (np.delete(x, FREE, axis) for x in (kept_old, kept_new))
        np.testing.assert_array_equal(kept_old, kept_new, err_msg=path)
        if axes and "opt_state" in path:
            parents, own = (np.take(np.asarray(new), i, axes[0]) for i in (2, FREE))
            momentum = "/mu/localist/units" in path
            np.testing.assert_array_equal(own, 0 * parents if momentum else parents, err_msg=path)
            compared += 1
    assert compared >= 3, "moments of units (in, out) and of the router"
    assert report.births == ((FREE, 2),)
    units = 2 * 2 * 32 * 8  # two localist layers, in and out
    assert report.parameters == units + 32 + 2 * 4 * (6**2 - 5**2)


def test_pairs_penalty_and_gradients_are_divided_not_multiplied(trained):
    state, settings, model, mesh, _ = trained
    grown, _ = grow(state, [birth(state, settings, 3, share=0.25)], model, settings, mesh)
    for name in ("pairs", "gradient"):
        old, new = (np.asarray(getattr(s.pricing, name)) for s in (state, grown))
        others = np.delete(np.arange(new.shape[-1]), [3, FREE])
        rows = new[..., [3, FREE], :][..., others]  # what parent and child now decide with every other block
        np.testing.assert_allclose(rows.sum(-2), old[..., 3, others], rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(rows[..., 1, :], 0.25 * old[..., 3, others], rtol=1e-5, atol=1e-9)
        four = new[..., [3, FREE], :][..., [3, FREE]]
        np.testing.assert_allclose(four.sum((-2, -1)), old[..., 3, 3], rtol=1e-5, atol=1e-9)
    weight = [pricing.weights(s.pricing.pairs, settings.model.blocks) for s in (state, grown)]
    used = [np.asarray(s.pricing.pairs > 0) for s in (state, grown)]
    penalty = [
        (np.asarray(w) * u * np.asarray(at_path(s.params, GATES))).sum()
        for w, u, s in zip(weight, used, (state, grown), strict=True)
    ]
    assert penalty[0] == pytest.approx(penalty[1], rel=0.02)  # the floor of small weights aside


def test_inside_the_capacity_the_step_is_not_compiled_again(trained):
    state, settings, model, mesh, step = trained
    compiled = step._cache_size()
    grown, _ = grow(state, [birth(state, settings, 2)], model, settings, mesh)
    after, metrics = step(grown, batch(5))
    assert step._cache_size() == compiled
    assert np.isfinite(metrics["bits_per_token"])
    born = growth._born._cache_size()
    grow(state, [birth(state, settings, 4, seed=1)], model, settings, mesh)
    assert growth._born._cache_size() == born
    growth.retire(after, FREE)


def test_beyond_the_capacity_everything_is_widened_and_nothing_changes(trained):
    state, settings, model, mesh, _ = trained
    wide = settings.replace(model={"block_capacity": 12})
    large = Transformer(wide.model, VOCABULARY)
    births = [
        birth(state, settings, 2),
        birth(state, settings, 2, child=6, number=2, seed=4),
        birth(state, settings, 1, child=11, number=3, seed=5),
    ]
    births[1] = dataclasses.replace(births[1], parent=jnp.asarray(FREE, jnp.int32))  # a grandchild of 2
    grown, report = grow(state, births, large, wide, mesh)
    assert report.capacity == (6, 12)
    assert report.widened == report.copied > 0
    assert grown.blocks.parent.tolist() == [0, 1, 2, 3, 4, 2, FREE, 7, 8, 9, 10, 1]
    for dial in (Dial(0.0), Dial(1.0)):
        before, _ = logits(model, state, dial)
        after, blocks = logits(large, grown, dial)
        np.testing.assert_allclose(after, before, atol=2e-5)
    assert {FREE, 6} <= set(blocks.ravel())
    step = jax.jit(make_train_step(large, wide, SIZES))
    assert np.isfinite(step(grown, batch(5))[1]["bits_per_token"])


def test_save_grow_save_restore(trained, tmp_path):
    state, settings, model, mesh, _ = trained
    wide = settings.replace(model={"block_capacity": 12})
    large = Transformer(wide.model, VOCABULARY)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, state, manifest={}, cursor={})
        first, _ = checkpoints.restore(abstract_state(model, settings, mesh), 1)
        births = [birth(first, settings, 2), birth(first, settings, 3, child=8)]
        grown, _ = grow(first, births, large, wide, mesh)
        checkpoints.save(2, grown, manifest={}, cursor={})
        found, _ = checkpoints.restore(abstract_state(large, wide, mesh), 2)
    for one, other in zip(jax.tree.leaves(grown), jax.tree.leaves(found), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, other = jax.random.key_data(one), jax.random.key_data(other)
        np.testing.assert_array_equal(one, other)


def test_a_retired_block_gives_back_what_it_had(trained):
    state, settings, model, mesh, _ = trained
    grown, _ = grow(state, [birth(state, settings, 2)], model, settings, mesh)
    back = growth.retire(grown, FREE)
    assert not bool(back.blocks.active[FREE])
    np.testing.assert_allclose(back.pricing.pairs.sum(), grown.pricing.pairs.sum(), rtol=1e-6)
    np.testing.assert_allclose(back.pricing.pairs[FREE], 0)
    before, blocks = logits(model, state, Dial(1.0))
    after, now = logits(model, back, Dial(1.0))
    np.testing.assert_array_equal(blocks, now)
    np.testing.assert_allclose(before, after, atol=2e-5)


@pytest.mark.parametrize(("child", "parent", "said"), [
    (2, 3, "a place for the child"), (9, 3, "a place for the child"), (0, 3, "a place for the child"),
    (FREE, FREE, "a parent that is in use"),
])  # fmt: skip
def test_births_that_do_not_fit_are_refused(trained, child, parent, said):
    state, settings, model, mesh, _ = trained
    with pytest.raises(ValueError, match=said):
        grow(state, [birth(state, settings, parent, child=child)], model, settings, mesh)


def test_lines_longer_than_the_model_adds_up_are_refused(trained):
    state, settings, model, mesh, _ = trained
    only_children = settings.replace(model={"generations": 1})
    with pytest.raises(ValueError, match=r"1 generations below its root.*model.generations = 1"):
        grow(state, [birth(state, settings, 2)], model, only_children, mesh)


def test_growth_never_shrinks(trained, small):
    state, settings, _, mesh, _ = trained
    less = settings.replace(model={"block_capacity": 5})
    with pytest.raises(ValueError, match="growth never shrinks"):
        grow(state, [], Transformer(less.model, VOCABULARY), less, mesh)


def test_the_same_code_copies_a_specialist():
    names = (("w", ("specialist", "embed")), ("b", ("specialist",)), ("shared", ("embed",)))
    tree = {"w": jnp.arange(6.0).reshape(3, 2), "b": jnp.arange(3.0), "shared": jnp.ones(2)}
    wide = growth.widened(tree, names, growth.SPECIALIST_AXES, 4)
    born = growth.copied(wide, names, growth.SPECIALIST_AXES, 1, 3)
    assert born["w"].tolist() == [[0, 1], [2, 3], [4, 5], [2, 3]]
    assert born["b"].tolist() == [0, 1, 2, 1]
    assert born["shared"].tolist() == [1, 1]
    assert Blocks.create(2, 3, 1).parent.tolist() == [0, 1, 2]

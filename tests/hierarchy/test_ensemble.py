"""Ensembles: what is done to one member leaves all others bit-identical, and compiles nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from localist_jax.hierarchy.engine import Queue
from localist_jax.hierarchy.ensemble import Ensemble, Record, tree
from localist_jax.locality import Dial
from tests.hierarchy.conftest import VOCABULARY, batch_of, same


def test_a_copy_codes_as_its_parent_and_training_it_leaves_the_others_alone(pair, engine):
    batch = batch_of("first", "second", "first")
    ensemble, at = pair.copied(1, Record("copy", parent="other"))
    codes = [np.asarray(engine.losses(ensemble.state(i), batch, ensemble.dial(i))) for i in (0, 1, at)]
    np.testing.assert_array_equal(codes[1], codes[2])
    assert not np.array_equal(codes[0], codes[1])
    trained = ensemble.with_state(at, engine.train(ensemble.state(at), batch))
    assert not same(trained.state(at), ensemble.state(at))
    for other in (0, 1):
        assert same(trained.state(other), pair.state(other))


def test_inside_the_capacity_nothing_is_compiled(pair, engine):
    batch = batch_of("first")
    engine.train(pair.state(0), batch)
    engine.losses(pair.state(0), batch, pair.dial(0))
    compiled = engine.compile_count
    ensemble, at = pair.copied(0, Record("new", parent="base"))
    ensemble = ensemble.with_dial(at, Dial(0.5)).with_state(at, engine.train(ensemble.state(at), batch))
    ensemble = ensemble.retired(1)
    for i in ensemble.active:
        engine.losses(ensemble.state(i), batch, ensemble.dial(i))
    assert engine.compile_count == compiled == 2


def test_beyond_the_capacity_it_doubles_and_the_old_members_are_as_they_were(pair):
    narrow = Ensemble.create(pair.state(0), 1, VOCABULARY)
    wide, at = narrow.joined(pair.state(1), Record("b", parent="base"), Dial(0.5), np.ones(VOCABULARY))
    wide, last = wide.copied(at, Record("c", parent="b"))
    assert (wide.capacity, at, last) == (4, 1, 2)
    assert same(wide.state(0), pair.state(0))
    assert same(wide.state(last), pair.state(1))
    np.testing.assert_allclose(wide.dial(last).locality, 0.5, rtol=1e-6)
    with pytest.raises(ValueError, match="below the present 4"):
        wide.with_capacity(2)


def test_a_retired_member_leaves_its_children_to_its_parent(pair):
    ensemble, _ = pair.copied(1, Record("child", parent="other", born=9))
    assert [(d, r.name) for d, r in tree(ensemble)] == [(0, "base"), (1, "other"), (2, "child")]
    left = ensemble.retired(1)
    assert [(d, r.name) for d, r in tree(left)] == [(0, "base"), (1, "child")]
    with pytest.raises(ValueError, match="place 1 is free"):
        left.state(1)
    with pytest.raises(ValueError, match="'base' has no parent"):
        left.retired(0)


def test_what_does_not_fit_is_refused(pair):
    state = pair.state(0)
    with pytest.raises(ValueError, match="member 'other' already"):
        pair.copied(0, Record("other", parent="base"))
    odd = dataclasses.replace(state, params={**state.params, "embedding": state.params["embedding"][:, :-1]})
    with pytest.raises(ValueError, match="params/embedding of the newcomer"):
        pair.joined(odd, Record("odd"), Dial(1.0), np.zeros(VOCABULARY))
    with pytest.raises(ValueError, match="no member 'nobody'; there are base, other"):
        pair.place("nobody")


def test_documents_wait_in_order():
    queue = Queue()
    first, second = batch_of("first", "second"), batch_of("second", "first", seed=5)
    queue.put(first, [0])
    queue.put(second, [0, 1])
    assert len(queue) == 3
    taken = queue.take(2)
    np.testing.assert_array_equal(taken.tokens, np.stack([first.tokens[0], second.tokens[0]]))
    assert len(queue) == 1
    with pytest.raises(ValueError, match="2 documents were asked for, 1 are waiting"):
        queue.take(2)
    assert jax.tree.leaves(taken)[0].shape[0] == 2

"""One small engine and ensemble for all tests of the hierarchy: two compilations, shared."""

import dataclasses

import jax
import numpy as np
import pytest

from localist_jax import config
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble, Record
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.run import fresh_state
from localist_jax.types import struct

VOCABULARY, T, B = 260, 24, 4
DOMAINS = {"first": (2, 22), "second": (22, 42), "third": (42, 60)}  # token ids; they share none


@pytest.fixture(scope="session")
def house_settings():
    return config.Config(
        data=config.Data(context=T, batch=B),
        model=config.Model(
            layers=2, width=16, heads=2, kv_heads=2, head_size=8, feed_forward=32, blocks=3, block_capacity=4,
            block_units=4, anchor_capacity=2, window=2, perception_window=3,
        ),
        optimizer=config.Optimizer(kind="adamw"), train=config.Train(steps=40), hierarchy=config.Hierarchy(every=0),
    )  # fmt: skip


@pytest.fixture(scope="session")
def engine(house_settings):
    return EnsembleEngine(
        Transformer(house_settings.model, VOCABULARY), house_settings, np.full(VOCABULARY, 3)
    )


@pytest.fixture(scope="session")
def base(engine, house_settings):
    return fresh_state(engine.model, house_settings, make_mesh(config.Mesh(), jax.devices()[:1]))


@pytest.fixture(scope="session")
def pair(base):
    """Two members that differ, and two free places."""
    ensemble = Ensemble.create(base, 4, VOCABULARY)
    moved = dataclasses.replace(base, params=jax.tree.map(lambda x: 0.9 * x, base.params))
    ensemble, at = ensemble.copied(0, Record("other", parent="base", born=3, cost_bits=5.0, saved_bits=50.0))
    return ensemble.with_state(at, moved)


def documents(domain, count, seed=0, length=18):
    """Token ids drawn from the words of a domain."""
    low, high = DOMAINS[domain]
    return list(np.random.default_rng([seed, low]).integers(low, high, (count, length)))


def batch_of(*domains, seed=0):
    return rows([documents(d, 1, seed + i)[0] for i, d in enumerate(domains)], T, 1, B)


def same(one, other):
    """Whether two trees are bit-identical."""

    def plain(leaf):
        return np.asarray(
            jax.random.key_data(leaf) if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        )

    return all(
        np.array_equal(plain(a), plain(b))
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@struct
class Bag:
    """A learner so simple that one knows what it must do: how often it lately saw each token."""

    params: jax.Array


class BagEngine:
    """Codes by smoothed frequencies; a step forgets a share of what was seen before."""

    def __init__(self, settings, forgets=0.1):
        self.settings, self.forgets = settings, forgets

    def losses(self, state, batch, dial):
        shares = (np.asarray(state.params) + 0.5) / (np.asarray(state.params).sum() + VOCABULARY / 2)
        return np.where(batch.scored, -np.log2(shares)[batch.targets], 0.0).astype(np.float32)

    def train(self, state, batch):
        seen = np.bincount(batch.targets[np.asarray(batch.scored)], minlength=VOCABULARY)
        return Bag(
            params=jax.numpy.asarray((1 - self.forgets) * np.asarray(state.params) + seen, jax.numpy.float32)
        )


@pytest.fixture(scope="session")
def bags():
    """An engine of bags, and an ensemble of one of them."""
    settings = config.Config(
        data=config.Data(context=T, batch=B),
        hierarchy=config.Hierarchy(every=4, start=8, survey=8, smallest=4, horizon=32, placebos=6),
    )
    ensemble = Ensemble(
        states=Bag(params=jax.numpy.zeros((4, VOCABULARY))), beta=jax.numpy.zeros((4, 1, 1)),
        signatures=np.zeros((4, VOCABULARY)), records=(Record("base"), None, None, None),
    )  # fmt: skip
    return BagEngine(settings), ensemble

"""The paged cache: positions get slots, nothing is lost, and closed pages are never read."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax import config
from localist_jax.locality import Dial
from localist_jax.model import Cache, Transformer, forward, generate
from localist_jax.model.cache import LONG_CONTEXT, page_size
from localist_jax.model.transformer import unrolled
from localist_jax.training.state import GATES, at_path, with_leaf


def book(cache, block, positions, segments):
    arrays = (jnp.asarray(x, jnp.int32) for x in (block, positions, segments))
    cache, slots = jax.jit(Cache.in_pages)(cache, *arrays)
    return cache, np.asarray(slots)


@pytest.fixture
def sizes():
    return config.Model(blocks=5, block_capacity=5)


def test_pages_are_pure_and_nothing_is_lost(sizes):
    rng, capacity, batch = np.random.default_rng(0), 100, 3
    cache = Cache.create(sizes, batch, capacity)
    block = rng.choice(5, (batch, capacity), p=[0.05, 0.5, 0.3, 0.1, 0.05])
    slots = []
    # A prompt, single steps, several tokens at once.
    for start, end in ((0, 40), (40, 41), (41, 42), (42, 75), (75, 100)):
        positions = np.tile(np.arange(start, end), (batch, 1))
        cache, booked = book(cache, block[:, start:end], positions, np.ones_like(positions))
        slots.append(booked)
    slots = np.concatenate(slots, 1)
    size = page_size(capacity, 5)
    for row in range(batch):
        assert len(set(slots[row])) == capacity
        np.testing.assert_array_equal(np.asarray(cache.block)[row, slots[row]], block[row])
        np.testing.assert_array_equal(np.asarray(cache.position)[row, slots[row]], np.arange(capacity))
        assert (np.asarray(cache.segment)[row] > 0).sum() == capacity
        pages = slots[row] // size
        assert all(len(set(block[row, pages == page])) == 1 for page in set(pages))
        wanted = sum(-(-count // size) for count in np.bincount(block[row], minlength=5))
        assert len(set(pages)) == wanted == int(cache.pages[row])


def test_padding_gets_no_slot(sizes):
    cache = Cache.create(sizes, 2, 32)
    segments = np.array([[1, 1, 0], [1, 0, 0]])
    cache, slots = book(cache, np.full((2, 3), 2), np.tile(np.arange(3), (2, 1)), segments)
    assert (slots[segments == 0] == cache.block.shape[1]).all()
    assert np.asarray(cache.filled)[:, 2].tolist() == [2, 1]
    assert (np.asarray(cache.segment) > 0).sum() == 3


def test_a_step_at_lambda_1_reads_open_pages_only(small, params, blocks):
    """Check that closed blocks are never read: their keys and values are NaN, which would spoil the logits."""
    one = dataclasses.replace(small, window=1)
    model = Transformer(one, 60)
    gates = np.zeros_like(np.asarray(at_path(params, GATES)))
    gates[..., np.arange(one.block_capacity), np.arange(one.block_capacity)] = (
        1  # each block attends to itself
    )
    params = with_leaf(params, GATES, jnp.asarray(gates))
    capacity, tokens = LONG_CONTEXT, jnp.asarray(np.random.default_rng(1).integers(2, 60, (1, 40)), jnp.int32)

    @functools.partial(jax.jit, static_argnums=2)
    def read(cache, tokens, start):
        n = tokens.shape[1]
        at = jnp.arange(start, start + n)[None]
        options = dict(positions=at, segments=jnp.ones((1, n), jnp.int32), cache=cache, stats="open")
        return forward(model, params, tokens, Dial(1.0), blocks, **options)

    before = read(Cache.create(one, 1, capacity), tokens, 0).cache
    next_token = jnp.full((1, 1), 7, jnp.int32)
    wanted = read(before, next_token, 40)
    block = int(wanted.blocks[0, 0])
    open_blocks = {0, block}
    page = np.asarray(before.block).reshape(1, -1, page_size(capacity, one.block_capacity))
    filled = np.asarray(before.segment).reshape(page.shape) > 0
    closed = (filled & ~np.isin(page, list(open_blocks))).any(-1, keepdims=True)
    assert closed.sum() >= 1
    poison = np.broadcast_to(closed, page.shape).reshape(1, -1)[None, :, :, None, None]
    spoiled = dataclasses.replace(
        before,
        localist=jax.tree.map(lambda x: jnp.where(poison, jnp.nan, x), before.localist),
    )
    np.testing.assert_array_equal(read(spoiled, next_token, 40).logits, wanted.logits)


@pytest.mark.parametrize("filings", [1, 2])
def test_single_tokens_read_layer_by_layer_give_what_the_scan_gives(small, params, tokens, blocks, filings):
    """Also for a request that has ended (segment 0), whose cache must stay as it is."""
    sizes, (B, T) = dataclasses.replace(small, filings=filings), tokens.shape
    if filings > 1:
        by_head = jnp.arange(small.kv_heads, dtype=jnp.float32) % 2
        attention = params["localist"]["attention"]
        by_layer = jnp.broadcast_to(by_head, (len(attention["gates"]), small.kv_heads))
        params = {
            **params,
            "localist": {**params["localist"], "attention": {**attention, "filing": by_layer}},
        }

    @functools.partial(jax.jit, static_argnums=0, static_argnames="opening")
    def read(model, params, cache, tokens, positions, segments, opening=False):
        places = dict(positions=positions, segments=segments)
        return forward(
            model, params, tokens, Dial(0.9), blocks, **places, cache=cache, stats="dense", opening=opening
        )

    def three_more(model, params, cache):
        for step, running in enumerate((1, 0, 0)):
            position, segment = jnp.full((B, 1), T + step), jnp.array([[1], [running]])
            out = read(model, params, cache, tokens[:, step : step + 1], position, segment)
            cache = out.cache
            of = slice(None) if running else slice(0, 1)
            yield out.logits[of], jax.tree.map(lambda x, of=of: x[:, of], out.stats), cache.segment

    model, whole = Transformer(sizes, 60), jnp.broadcast_to(jnp.arange(T), (B, T))
    opened = read(
        model, params, Cache.create(sizes, B, 16), tokens, whole, jnp.ones_like(whole), opening=True
    )
    stacked = list(three_more(model, params, opened.cache))
    alone = list(
        three_more(dataclasses.replace(model, unrolled=True), unrolled(params), opened.cache.unrolled())
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stacked, alone)


def test_what_is_measured_while_generating_is_a_choice(model, params, blocks):
    runs = {
        stats: generate(model, params, blocks, [[5, 6, 7]], Dial(1.0), context=16, max_new=4, stats=stats)[0]
        for stats in ("dense", "open", "none")
    }
    assert len({tuple(run.tokens) for run in runs.values()}) == 1
    assert [len(runs[s].price_bits) for s in runs] == [4, 0, 0]
    assert [len(runs[s].fidelity) for s in runs] == [4, 4, 0]

"""Features of a localised model: filing under the block before, a wider sink, dialled perception, deltas, masses."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.attention import attend
from localist_jax.locality import Dial, measures, reach
from localist_jax.model import Cache, Transformer
from localist_jax.model import forward as eager_forward
from localist_jax.training.state import DELTAS, FILING, GATES, at_path, filing_of, with_leaf

forward = jax.jit(eager_forward, static_argnums=0, static_argnames=("stats",))
FILED = np.array([[0.0, 1.0], [1.0, 0.0]])  # two localist layers, two key/value heads


@pytest.fixture(scope="module")
def localised(small) -> Transformer:
    shape = dataclasses.replace(
        small, block_units=0, filings=2, sink=2, router_bias=True, perception_dialled=True, delta_rank=3
    )
    return Transformer(shape, 60)


@pytest.fixture(scope="module")
def filed_params(localised, params, blocks, tokens):
    """Return random parameters: half of the gates closed, both filings in use, deltas that are not zero."""
    start = jax.jit(lambda key: nn.unbox(localised.init(key, tokens, Dial(0.0), blocks))["params"])
    tree = with_leaf(start(jax.random.key(3)), GATES, at_path(params, GATES))
    tree = with_leaf(tree, FILING, jnp.asarray(FILED, jnp.float32))
    for nth, (name,) in enumerate(DELTAS):
        path = ("localist", "attention", name, "up")
        leaf = at_path(tree, path)
        tree = with_leaf(tree, path, jax.random.normal(jax.random.key(nth), leaf.shape) * 0.1)
    bias = jax.random.normal(jax.random.key(9), tree["router"]["bias"].shape)
    return with_leaf(tree, ("router", "bias"), bias)


def attention_of(model, params, tokens, dial, blocks):
    """Return the attention of the localist layers, [L, B, N, T, S]."""
    out, sown = model.apply({"params": params}, tokens, dial, blocks, mutable=["intermediates"])
    return out, np.asarray(sown["intermediates"]["localist"]["attention"]["attention"][0]).swapaxes(2, 3)


def test_a_head_reads_keys_under_the_block_that_its_filing_says(localised, filed_params, blocks, tokens):
    out, alpha = attention_of(localised, filed_params, tokens, Dial(1.0), blocks)
    c, ids = localised.config, np.asarray(out.blocks)
    assert (ids[:, : c.sink] == 0).all()
    assert (ids[:, c.sink :] > 0).all()
    filed = np.asarray(out.filed)
    np.testing.assert_array_equal(filed[:, 0], ids)
    np.testing.assert_array_equal(filed[:, 1, c.sink + 1 :], ids[:, c.sink : -1])
    assert (filed[:, 1, : c.sink] == 0).all()
    assert (filed[:, 1, c.sink] > 0).all(), (
        "the key behind the sink lies under the router's block of the sink"
    )
    gates = np.array(at_path(filed_params, GATES))
    gates[..., 0] = 1
    closed = 0
    for layer, b, n, i in np.ndindex(alpha.shape[:4]):
        for j in range(i + 1):
            block = filed[b, int(FILED[layer, n // 2]), j]
            is_open = i - j < c.window or gates[layer, n, ids[b, i], block] > 0
            assert (alpha[layer, b, n, i, j] > 0) == is_open
            closed += not is_open
    assert closed > 100


def test_certificates_know_the_filing(localised, filed_params, blocks, tokens):
    """Check open pairs, open keys and the open share against the attention matrix."""
    out, alpha = attention_of(localised, filed_params, tokens, Dial(1.0), blocks)
    c, (B, T) = localised.config, tokens.shape
    places = jnp.broadcast_to(jnp.arange(T), (B, T)), jnp.ones((B, T), jnp.int32)
    gates, filing = at_path(filed_params, GATES), filing_of(filed_params, c)
    np.testing.assert_array_equal(filing, np.repeat(FILED, 2, 1))
    pairs = reach.open_pairs(gates, out.blocks, *places, c.window, out.filed, filing)
    np.testing.assert_array_equal(pairs, (alpha > 0).any(2))
    keys = measures.open_keys(gates, out.blocks, *places, c.window, out.filed, filing)
    np.testing.assert_array_equal(keys, (alpha > 0).sum(-1))
    gated, always, total = measures.pair_counts(out.blocks, *places, c.window, c.block_capacity, out.filed)
    share = measures.open_share(gates, gated, always, total, jnp.zeros(0), filing)
    assert float(share) == pytest.approx((alpha > 0).sum() / (2 * c.heads * float(total)))


@pytest.mark.parametrize("dial", [0.0, 0.9, 1.0])
def test_reading_piece_by_piece_through_the_cache_is_reading_at_once(
    localised, filed_params, blocks, tokens, dial
):
    wanted = forward(localised, filed_params, tokens, Dial(dial), blocks).logits
    (B, T), got = tokens.shape, []
    cache = Cache.create(localised.config, B, T)
    for start, end in ((0, 1), (1, 5), (5, 6), (6, 7), (7, T)):
        at = jnp.broadcast_to(jnp.arange(start, end), (B, end - start))
        options = {"positions": at, "segments": jnp.ones_like(at), "cache": cache}
        out = forward(localised, filed_params, tokens[:, start:end], Dial(dial), blocks, **options)
        cache = out.cache
        got.append(out.logits)
    np.testing.assert_allclose(jnp.concatenate(got, 1), wanted, atol=2e-5)


def test_at_dial_0_deltas_filing_and_windows_have_no_say(localised, filed_params, blocks, tokens):
    plain = Transformer(
        dataclasses.replace(localised.config, delta_rank=0, filings=1, perception_window=0), 60
    )
    attention = {
        name: x
        for name, x in filed_params["localist"]["attention"].items()
        if (name,) not in DELTAS and name != "filing"
    }
    params = {**filed_params, "localist": {**filed_params["localist"], "attention": attention}}
    one, other = (
        forward(model, p, tokens, Dial(0.0), blocks).logits
        for model, p in ((localised, filed_params), (plain, params))
    )
    np.testing.assert_array_equal(one, other)
    moved = forward(localised, filed_params, tokens, Dial(1.0), blocks).logits
    assert np.abs(np.asarray(moved - one)).max() > 1e-3


def test_deltas_weigh_the_dial(localised, filed_params, blocks, tokens):
    """Check that deltas change the logits at λ=1 only."""
    bare = filed_params
    for (name,) in DELTAS:
        path = ("localist", "attention", name, "up")
        bare = with_leaf(bare, path, 0 * at_path(bare, path))
    gap = [
        float(
            jnp.abs(
                forward(localised, filed_params, tokens, Dial(x), blocks).logits
                - forward(localised, bare, tokens, Dial(x), blocks).logits
            ).max()
        )
        for x in (0.0, 0.3, 1.0)
    ]
    assert gap[0] == 0
    assert gap[0] < gap[1] < gap[2]


def test_masses_are_the_gradient_of_the_log_sum_exp(localised, filed_params, blocks, tokens):
    """Check T17: the masses from one-hot values are ∂(Σ lse)/∂ ln ω at ω = 1, under each filing."""
    out, sown = localised.apply({"params": filed_params}, tokens, Dial(0.0), blocks, mutable=["mass"])
    mass = np.asarray(sown["mass"]["localist"]["attention"]["beyond"][0])
    _, alpha = attention_of(localised, filed_params, tokens, Dial(0.0), blocks)
    c, (_, T) = localised.config, tokens.shape
    far = (np.arange(T)[:, None] - np.arange(T)) >= c.window
    rows, filed = np.eye(c.block_capacity)[np.asarray(out.blocks)], np.asarray(out.filed)
    for f in range(c.filings):
        columns = np.eye(c.block_capacity)[filed[:, f]]
        wanted = np.einsum("BTk,LBNTS,TS,BSl->LNkl", rows, alpha, far, columns)
        np.testing.assert_allclose(mass[:, f], wanted, atol=2e-5)
    assert mass.sum() > 10
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.normal(size=(*tokens.shape, n, 8)), jnp.float32) for n in (4, 2))
    at = jnp.broadcast_to(jnp.arange(T), tokens.shape)
    places = {f"{side}_{name}": x for side in "qk" for name, x in (("pos", at), ("seg", at * 0 + 1))}
    ones = jnp.ones((1, 4, c.block_capacity, c.block_capacity))

    def total(odds):
        block = out.blocks
        call = dict(**places, q_block=block, k_block=block, odds=odds, relevant=odds > 0, window=c.window)
        return attend(q, k, k, **call, stats="lse")[1].lse.sum()

    eye = jnp.broadcast_to(jnp.eye(T)[:, None], (*tokens.shape, 2, T))
    alone = dict(
        **places, q_block=at * 0, k_block=at * 0, odds=ones[..., :1, :1], relevant=ones[..., :1, :1] > 0
    )
    weights = np.asarray(attend(q, k, eye, **alone)[0]).swapaxes(1, 2)
    counted = np.einsum("BTk,BNTS,TS,BSl->Nkl", rows, weights, far, rows)
    np.testing.assert_allclose(jax.grad(total)(ones)[0], counted, atol=1e-4)


def test_masses_at_a_dial_add_up_to_the_queries(localised, filed_params, blocks, tokens):
    out, sown = localised.apply({"params": filed_params}, tokens, Dial(1.0), blocks, mutable=["block_mass"])
    mass = np.asarray(sown["block_mass"]["localist"]["attention"]["all"][0])
    _, alpha = attention_of(localised, filed_params, tokens, Dial(1.0), blocks)
    rows = np.eye(localised.config.block_capacity)[np.asarray(out.blocks)]
    np.testing.assert_allclose(mass, np.einsum("BTk,LBNTS,BSl->LNkl", rows, alpha, rows), atol=1e-5)


def test_logits_are_read_where_they_are_wanted(localised, filed_params, blocks, tokens):
    whole = forward(localised, filed_params, tokens, Dial(1.0), blocks).logits
    for index in (np.array([[3], [7]]), np.array([[0, 5], [11, 2]])):
        some = forward(localised, filed_params, tokens, Dial(1.0), blocks, read_at=jnp.asarray(index)).logits
        np.testing.assert_allclose(
            some, np.take_along_axis(np.asarray(whole), index[..., None], 1), atol=1e-5
        )


def test_perception_follows_the_dial_only_where_it_is_asked_to(small, params, blocks, tokens):
    prices = []
    for dialled in (False, True):
        model = Transformer(dataclasses.replace(small, perception_dialled=dialled), 60)
        prices.append(
            [
                np.asarray(forward(model, params, tokens, Dial(x), blocks, stats="dense").stats.price_bits)[
                    0
                ].max()
                for x in (0.0, 1.0)
            ]
        )
    assert prices[0] == [0.0, 0.0]
    assert prices[1][0] == pytest.approx(0.0, abs=1e-6)
    assert prices[1][1] > 0.01

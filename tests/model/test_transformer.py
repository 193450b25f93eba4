"""The transformer: names, causality, effects of the dial, anchors, packing."""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer
from localist_jax.model import forward as eager_forward
from localist_jax.training.state import GATES, at_path, with_leaf

DIALS = [0.0, 0.9, 1.0]
forward = jax.jit(eager_forward, static_argnums=0, static_argnames=("stats", "noise"))


def logits_of(model, params, blocks, tokens, dial, **options):
    return forward(model, params, tokens, dial, blocks, **options).logits


@functools.partial(jax.jit, static_argnums=0)
def sown_by(model, params, *inputs):
    """Return the output with dense statistics, and the sown intermediates."""
    return model.apply({"params": params}, *inputs, stats="dense", mutable=["intermediates"])


def test_every_parameter_names_all_its_axes(model, blocks, tokens):
    boxed = jax.eval_shape(lambda: model.init(jax.random.key(0), tokens, Dial(0.0), blocks))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    assert leaves
    for leaf in leaves:
        assert isinstance(leaf, nn.LogicallyPartitioned)
        assert len(leaf.names) == leaf.value.ndim
        assert None not in leaf.names


@pytest.mark.parametrize("dial", DIALS)
def test_no_output_depends_on_a_later_token(model, params, blocks, tokens, dial):
    at, marker = 5, model.vocab_size - 1  # a token that occurs once
    marked = jnp.where(tokens == marker, 2, tokens).at[:, at].set(marker)
    weights = jax.random.normal(jax.random.key(4), (*tokens.shape, marker))

    def gradient(positions):
        def score(p):
            # The marker's output row is tied to its embedding, so it is left out.
            logits = logits_of(model, p, blocks, marked, Dial(dial))[..., :marker]
            return (weights * logits)[:, positions].sum()

        return jnp.abs(jax.grad(score)(params)["embedding"][marker]).max()

    parts = slice(None, at), slice(at, at + 1), slice(at + 1, None)
    before, there, after = jax.jit(lambda: [gradient(part) for part in parts])()
    assert before == 0
    assert there > 0
    assert after > 0


@pytest.mark.parametrize("dial", DIALS)
def test_packed_segments_do_not_see_each_other(model, params, blocks, tokens, dial):
    first, second = tokens[:1, :7], tokens[1:, :5]
    packed = jnp.concatenate([first, second], 1)
    positions = jnp.concatenate([jnp.arange(7), jnp.arange(5)])[None]
    segments = jnp.concatenate([jnp.full(7, 1), jnp.full(5, 2)])[None]
    together = logits_of(model, params, blocks, packed, Dial(dial), positions=positions, segments=segments)
    alone = [logits_of(model, params, blocks, part, Dial(dial)) for part in (first, second)]
    np.testing.assert_allclose(together, jnp.concatenate(alone, 1), atol=2e-5)


def test_at_zero_the_gates_do_not_matter(model, params, blocks, tokens):
    opened = with_leaf(params, GATES, jnp.ones_like(at_path(params, GATES)))
    closed, plain = (logits_of(model, p, blocks, tokens, Dial(0.0)) for p in (params, opened))
    np.testing.assert_allclose(closed, plain, atol=1e-6)


@pytest.mark.parametrize("perception", [0, 3])
def test_at_zero_localist_layers_are_under_a_plain_causal_mask(
    model, params, blocks, tokens, small, perception
):
    model = Transformer(dataclasses.replace(small, perception_window=perception), model.vocab_size)
    wide = dataclasses.replace(model.config, window=100)  # every causal pair always open
    plain = logits_of(Transformer(wide, model.vocab_size), params, blocks, tokens, Dial(1.0))
    np.testing.assert_allclose(logits_of(model, params, blocks, tokens, Dial(0.0)), plain, atol=1e-5)


def test_perception_looks_no_farther_than_its_window_and_has_no_price_at_any_dial(
    model, params, blocks, tokens, small
):
    for value in DIALS:
        out, sown = sown_by(model, params, tokens, Dial(value), blocks)
        attention = np.asarray(sown["intermediates"]["perception"]["attention"]["attention"][0])[
            0
        ]  # [B, T, N, S]
        gap = np.arange(tokens.shape[1])[:, None] - np.arange(tokens.shape[1])
        far = (gap >= small.perception_window) & (np.arange(tokens.shape[1]) > 0)  # the sink is always open
        assert (attention.swapaxes(2, 3)[:, far] == 0).all()
        assert (np.asarray(out.stats.price_bits)[: small.router_layer] == 0).all()
    assert (np.asarray(out.stats.price_bits)[small.router_layer :] > 0).any()


def test_the_dial_matters_where_gates_are_closed(model, params, blocks, tokens):
    low, high = (logits_of(model, params, blocks, tokens, Dial(x)) for x in (0.0, 1.0))
    assert float(jnp.abs(low - high).max()) > 1e-3


def test_twenty_settings_compile_once(model, params, blocks, tokens, small):
    L, N, B = small.layers, small.heads, tokens.shape[0]
    settings = [Dial(x) for x in np.linspace(0, 1, 10)]
    settings += [Dial.progressive(0.9, power, L) for power in (1, 2, 3)]
    settings += [Dial.regime(name, L) for name in ("audit", "regulated", "balanced")]
    settings += [Dial.per_head(np.linspace(0, 1, L * N).reshape(L, N)), Dial.per_layer([0.0, 0.5, 1.0])]
    settings += [Dial.for_requests([0.0, 1.0]), Dial.for_requests([Dial.per_layer([1, 0, 1]), 0.3])]
    assert len(settings) == 20

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(dial):
        return eager_forward(model, params, tokens, dial, blocks).logits

    chex.clear_trace_counter()
    outputs = [run(dial.broadcast(B, L, N)) for dial in settings]
    assert float(jnp.abs(outputs[0] - outputs[9]).max()) > 1e-3


def test_each_request_has_its_own_dial(model, params, blocks, tokens):
    together = logits_of(model, params, blocks, tokens, Dial.for_requests([0.0, 1.0]))
    for row, dial in enumerate((0.0, 1.0)):
        alone = logits_of(model, params, blocks, tokens[row : row + 1], Dial(dial))
        np.testing.assert_allclose(together[row : row + 1], alone, atol=2e-5)


def test_closed_pairs_have_no_attention_and_the_rows_still_sum_to_one(model, params, blocks, tokens, small):
    out, sown = sown_by(model, params, tokens, Dial(1.0), blocks)
    attention = np.asarray(sown["intermediates"]["localist"]["attention"]["attention"][0])  # [L, B, T, N, S]
    gates = np.asarray(at_path(params, GATES))
    ids = np.asarray(out.blocks)
    closed_pairs = 0
    for layer, batch, i, head in np.ndindex(attention.shape[:4]):
        for j in range(i + 1):
            row = attention[layer, batch, i, head]
            is_open = (
                ids[batch, j] == 0
                or i - j < small.window
                or gates[layer, head, ids[batch, i], ids[batch, j]] > 0
            )
            assert (row[j] > 0) == is_open
            closed_pairs += not is_open
    assert closed_pairs > 50
    np.testing.assert_allclose(attention.sum(-1), 1.0, atol=1e-5)


def test_only_active_blocks_are_used_and_block_0_is_the_sink(model, params, blocks, tokens, small):
    ids = np.asarray(forward(model, params, tokens, Dial(1.0), blocks).blocks)
    assert (ids[:, 0] == 0).all()
    assert ids[:, 1:].min() >= 1
    assert ids.max() < small.blocks


def test_the_background_block_may_be_chosen_when_configured(params, blocks, tokens, small):
    model = Transformer(dataclasses.replace(small, background=True), 60)
    towards = blocks.active & (jnp.arange(small.block_capacity) == 0)
    ids = forward(model, params, tokens, Dial(1.0), dataclasses.replace(blocks, active=towards)).blocks
    assert int(jnp.abs(ids).max()) == 0


def test_anchors_pin_tokens_to_a_block_without_recompiling(model, params, blocks, tokens):
    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(chosen: Blocks):
        return eager_forward(model, params, tokens, Dial(1.0), chosen).blocks

    chex.clear_trace_counter()
    word = int(tokens[0, 4])
    for block in (1, 2, 3, 4):
        ids = run(blocks.anchored(block, {word: 50.0}))
        assert int(ids[0, 4]) == block
    free = run(blocks)
    other = np.asarray(tokens != word)
    np.testing.assert_array_equal(np.asarray(ids)[other], np.asarray(free)[other])


def test_anchor_errors(blocks):
    with pytest.raises(ValueError, match="block 0"):
        blocks.anchored(0, {5: 1.0})
    with pytest.raises(ValueError, match="capacity is 4"):
        blocks.anchored(1, dict.fromkeys(range(5), 1.0))


def test_the_router_learns_from_the_loss_and_without_noise_there_is_no_straight_through_gradient(
    model, params, blocks, tokens
):
    def loss(p, noise):
        rngs = {"router": jax.random.key(3)} if noise else None
        return logits_of(model, p, blocks, tokens, Dial(0.5), noise=noise, rngs=rngs).var()

    gradient = jax.jit(jax.grad(loss), static_argnums=1)
    trained, silent = (gradient(params, noise)["router"]["kernel"] for noise in (1.0, 0.0))
    assert float(jnp.abs(trained).max()) > 0
    assert float(jnp.abs(silent).max()) == 0


def test_remat_changes_no_gradient(params, blocks, tokens, small):
    def gradient(config):
        model = Transformer(config, 60)
        return jax.jit(jax.grad(lambda p: logits_of(model, p, blocks, tokens, Dial(0.5)).var()))(params)

    chex.assert_trees_all_close(
        gradient(small), gradient(dataclasses.replace(small, remat=True)), rtol=1e-4, atol=1e-7
    )


def test_data_shards_change_nothing(params, blocks, tokens, small):
    one, two = (logits_of(Transformer(small, 60, n), params, blocks, tokens, Dial(0.5)) for n in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("dial", DIALS)
def test_statistics_cover_all_layers(model, params, blocks, tokens, small, dial):
    stats = forward(model, params, tokens, Dial(dial), blocks, stats="dense").stats
    assert stats.entropy_bits.shape == (small.layers, *tokens.shape[:1], small.heads, tokens.shape[1])
    assert float(stats.fidelity.max()) <= 1 + 1e-5
    assert float(stats.price_bits.min()) >= -1e-5
    if dial == 1.0:
        np.testing.assert_allclose(stats.fidelity, 1.0, atol=1e-5)
    if dial == 0.0:
        np.testing.assert_allclose(stats.price_bits, 0.0, atol=1e-5)


def test_float64_is_refused_where_it_would_silently_be_float32(params, blocks, tokens, small):
    wide = Transformer(dataclasses.replace(small, dtype="float64"), 60)
    with pytest.raises(ValueError, match="float64 needs JAX_ENABLE_X64=1"):
        forward(wide, params, tokens, Dial(0.0), blocks)

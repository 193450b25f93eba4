"""The sparse implementation against the definition: each way separately, and the choice between them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attend_suite import AttendSuite, Case, arrays, one_hot

from localist_jax.attention import attend, sparse, tiles
from localist_jax.attention.tiles import Marks

LONG = Case(B=1, T=600, K=6, window=4, dial="one", H=8, Hv=8, packed=True)


class TestInOrder(AttendSuite):
    """Positions of small problems always stay in order."""

    implementation = "sparse"


def where_blocks_cost(cost, size=None):
    """Return an engine with this cost of pure tiles, and optionally one size for all of them."""
    pure = (dataclasses.replace(x, cost=cost, size=size or x.size) for x in sparse.CPU.pure)
    return dataclasses.replace(sparse.CPU, pure=tuple(pure))


class TestByBlock(AttendSuite):
    """Positions are always sorted by block, in tiles with more queries than keys."""

    implementation = "sparse"

    @pytest.fixture(autouse=True)
    def _only_by_block(self, monkeypatch):
        monkeypatch.setattr(sparse, "MIN_PAIRS_BY_BLOCK", 0)
        monkeypatch.setattr(sparse, "CPU", where_blocks_cost(0.0, size=(32, 16, 4)))


def marks(call, side):
    return Marks(**{name: jnp.asarray(call[f"{side}_{name}"]) for name in ("block", "pos", "seg")})


def filed(call, groups):
    """Return the keys' marks [B, F, S], and the filing of each key/value head."""
    if "filing" in call:
        return marks(call, "k"), call["filing"]
    return jax.tree.map(lambda x: x[:, None], marks(call, "k")), np.zeros(groups, int)


def plans(call, qkv):
    q, k, _ = arrays(qkv)
    spec, keys = sparse.CallSpec(window=call["window"]), tiles.Filed(*filed(call, k.shape[2]))
    return {
        way: plan(spec, q, k, jnp.asarray(call["odds"]), marks(call, "q"), keys)
        for way, plan in sparse.PLANNERS.items()
    }


def open_pairs(call, pairs, groups=1):
    """Return which pairs are open, [B, N, T, S], by the definition."""
    keys, filing = filed(call, groups)
    heads = np.repeat(filing, call["odds"].shape[1] // groups)
    block, pos, seg = (np.asarray(x)[:, heads] for x in (keys.block, keys.pos, keys.seg))
    gap = call["q_pos"][:, None, :, None] - pos[:, :, None]
    seen = (call["q_seg"][:, None, :, None] == seg[:, :, None]) & (seg > 0)[:, :, None] & (gap >= 0)
    near, head = seen & (gap < call["window"]), np.arange(len(heads))[:, None, None]
    omega = call["odds"][0][head, call["q_block"][:, None, :, None], block[:, :, None]]
    far = seen & (gap >= call["window"]) & (omega > 0)
    return {"near": near, "far": far, "all": near | far}[pairs]


@pytest.mark.parametrize("way", list(sparse.PLANNERS))
@pytest.mark.parametrize("dial", ["zero", "one"])
@pytest.mark.parametrize("sizes", [{}, {"N": 4, "G": 2, "filings": 2}], ids=["one filing", "two filings"])
def test_every_open_pair_is_visited_once_and_pure_tiles_only_where_one_is_open(way, dial, sizes):
    case = Case(B=2, T=300, K=5, window=9, dial=dial, packed=True, **sizes)
    qkv, call = case.make()
    reached = np.zeros(open_pairs(call, "all", case.G).shape, int)
    for section in plans(call, qkv)[way].sections:
        wanted = open_pairs(call, section.pairs, case.G)
        work, (B, I, _) = section.listed(), section.q_layout.index.shape
        at_q, filled_q = (np.asarray(x) for x in (section.q_layout.index, section.q_layout.filled))
        block_q, block_k = (np.asarray(at.block)[..., 0] for at in (section.q_marks, section.k_marks))
        for row, (b, n, i) in enumerate(np.ndindex(B, section.heads, I)):
            g = n // (case.N // case.G)
            at_k, filled_k = (
                np.asarray(x[b, g] if x.ndim == 4 else x[b])
                for x in (section.k_layout.index, section.k_layout.filled)
            )
            for j in np.asarray(work.lists[row, : work.counts[row]]):
                pairs = np.ix_(at_q[b, i][filled_q[b, i]], at_k[j][filled_k[j]])
                reached[b, n][pairs] += wanted[b, n][pairs]
                if section.pairs == "far":  # tiles of closed pairs of blocks are skipped
                    block = block_k[b, g if block_k.shape[1] > 1 else 0, j]
                    assert call["odds"][0, n, block_q[b, i], block] > 0
    np.testing.assert_array_equal(reached, open_pairs(call, "all", case.G))


def test_layouts_lose_nothing():
    block = jnp.asarray(np.random.default_rng(0).integers(0, 7, (3, 50)))
    x = jnp.arange(150.0).reshape(3, 50, 1)
    for layout in (tiles.by_block(block, 7, 8), tiles.in_order(3, 50, 8)):
        np.testing.assert_array_equal(layout.join(layout.cut(x)), x)
    pure = tiles.by_block(block, 7, 8)
    cut, filled = np.asarray(pure.cut(block)), np.asarray(pure.filled)
    assert all(len(set(cut[at])) == 1 for at in np.ndindex(cut.shape[:2]) if filled[at].any())
    in_part = np.argwhere(filled.any(-1) & ~filled.all(-1))
    assert all(cut[b, at - 1, -1] != cut[b, at, -1] for b, at in in_part if at), "only a block's first tile"
    filing = jnp.asarray([1, 0])  # two heads with separate tiles
    keys = tiles.Filed(Marks(*[jnp.stack([block, block[:, ::-1]], 1)] * 3), filing)
    of_heads = tiles.by_block(keys.each().block, 7, 8).for_heads(keys)
    two = jnp.arange(300.0).reshape(3, 50, 2)
    np.testing.assert_array_equal(of_heads.join(of_heads.cut(two)), two)
    np.testing.assert_array_equal(of_heads.cut(two)[..., 1], pure.cut(two)[..., 1])
    order = np.asarray(pure.index)[filled].reshape(3, 50)
    assert all((np.diff(order[b][np.asarray(block)[b, order[b]] == 3]) > 0).all() for b in range(3))


@pytest.mark.parametrize("overlap", [0, 3, 8, 19, 60])
def test_tiles_that_overlap_hold_what_came_before_and_give_back_the_sum(overlap):
    """Check tiles that overlap several earlier ones, and a last tile that is not full."""
    x = jnp.arange(1.0, 101.0).reshape(2, 50, 1)
    layout = tiles.in_order(2, 50, 8, overlap)
    wanted = np.where(layout.filled, np.asarray(x[..., 0])[np.arange(2)[:, None, None], layout.index], 0)
    np.testing.assert_array_equal(layout.cut(x)[..., 0], wanted)
    times = np.zeros((2, 50))
    for b in range(2):
        np.add.at(times[b], np.asarray(layout.index[b])[np.asarray(layout.filled[b])], 1)
    np.testing.assert_array_equal(layout.join(layout.cut(x))[..., 0], times * np.asarray(x[..., 0]))


def test_the_way_with_less_to_do_is_taken():
    """Check the choice: half-open gates stay in order; one open block in twelve goes by block."""
    rng = np.random.default_rng(0)
    qkv, call = Case(B=1, T=2048, K=12, N=1, dial="one").make()
    cost = {}
    for name, gates in (("all", np.ones((1, 1, 12, 12))), ("own", np.eye(12)[None, None])):
        call["odds"] = gates
        call["q_block"] = call["k_block"] = rng.integers(0, 12, (1, 2048))
        cost[name] = {way: float(plan.cost) for way, plan in plans(call, qkv).items()}
    assert cost["all"]["in order"] < cost["all"]["by block"]
    assert cost["own"]["by block"] < 0.5 * cost["own"]["in order"]


def test_a_step_of_decoding_takes_few_open_pages_one_by_one_and_many_together(monkeypatch):
    """Check results with a ninth of the pages open, and with all."""
    monkeypatch.setattr(sparse, "MIN_KEYS_FOR_WIDE_PAGES", 512)
    T, K = 600, 9
    qkv, call = Case(B=2, T=T, K=K, dial="one", window=4).make()
    of_key = np.minimum(np.arange(T) // 64, K - 1)  # each page holds one block
    call["k_block"] = np.broadcast_to(of_key, (2, T))
    last = {name: call[name][:, -1:] for name in ("q_block", "q_pos", "q_seg")}
    q, k, v = qkv
    for gates, taken in ((np.eye(K), "page by page"), (np.ones((K, K)), "pages together")):
        gates = np.broadcast_to(gates, (1, q.shape[2], K, K)).copy()
        step = call | last | {"odds": gates, "relevant": gates > 0}
        cost = {way: float(plan.cost) for way, plan in plans(step, (q[:, -1:], k, v)).items()}
        assert min(("page by page", "pages together"), key=cost.get) == taken
        found, wanted = (
            attend(*arrays((q[:, -1:], k, v)), **arrays(step), implementation=name)[0]
            for name in ("sparse", "reference")
        )
        np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("order", ["in step", "shuffled", "with a gap"])
def test_the_band_is_only_taken_where_it_holds_the_window(order, monkeypatch):
    """Check keys whose positions do not increase along the row, which makes calls stay in order."""
    monkeypatch.setattr(sparse, "CPU", where_blocks_cost(1e-9))
    qkv, call = dataclasses.replace(LONG, packed=False).make()
    place = np.arange(LONG.T)
    if order == "shuffled":
        place = np.random.default_rng(1).permutation(LONG.T)
    call["q_pos"] = call["k_pos"] = place[None]
    if order == "with a gap":
        call["q_seg"] = call["k_seg"] = np.where((place > 300) & (place < 310), 0, 1)[None]
    assert bool(jnp.isfinite(plans(call, qkv)["by block"].cost)) == (order == "in step")
    found, wanted = (
        attend(*arrays(qkv), **arrays(call), implementation=name)[0] for name in ("sparse", "reference")
    )
    np.testing.assert_allclose(found, wanted, atol=2e-5)


@pytest.mark.parametrize("stats", ["none", "open"])
def test_closed_blocks_are_never_read(stats, monkeypatch):
    """Check that closed keys and values are never read: they are NaN, so reading one would spoil a row.

    (The window's own tiles hold neighbours that are masked; so the hidden block lies far from those who ask.)
    """
    monkeypatch.setattr(sparse, "CPU", where_blocks_cost(0.0))
    (q, k, v), call = dataclasses.replace(LONG, packed=False).make()
    block = np.where(call["q_block"] == 4, 5, call["q_block"])
    block[:, 96:160] = 4
    call["q_block"] = call["k_block"] = block
    call["odds"] = np.broadcast_to(np.eye(6), (1, 2, 6, 6)).copy()
    call["odds"][..., 0], call["window"] = 1, 1
    call["relevant"] = call["odds"] > 0
    hidden = (block == 4)[..., None, None]
    asking = call["q_pos"] >= 256
    clean, spoiled = (
        attend(*arrays((q, *kv)), **arrays(call), stats=stats, implementation="sparse")[0]
        for kv in ((k, v), (np.where(hidden, np.nan, k), np.where(hidden, np.nan, v)))
    )
    np.testing.assert_array_equal(np.asarray(clean)[asking], np.asarray(spoiled)[asking])
    assert np.isnan(np.asarray(spoiled)[block == 4]).any()


@pytest.mark.parametrize("dial", ["one", "between"])
def test_long_rows_agree_with_the_reference(dial):
    """Check both ways with many tiles and all gradients against the reference."""
    case = dataclasses.replace(LONG, dial=dial, N=4, G=2)
    qkv, call = case.make()
    route = jnp.asarray(one_hot(call["q_block"], case.K), jnp.float32)
    weight = jnp.asarray(np.random.default_rng(3).normal(size=(1, case.T, case.N, case.Hv)), jnp.float32)

    def score(implementation, q, k, v, odds, route):
        more = arrays({**call, "odds": odds})
        out, stats = attend(q, k, v, **more, route=route, stats="open", implementation=implementation)
        return (weight * out).sum() + stats.entropy_bits.sum() + stats.gated_mass.sum()

    inputs = (*arrays(qkv), jnp.asarray(call["odds"], jnp.float32), route)
    found, wanted = (
        jax.jit(jax.value_and_grad(lambda *x, name=name: score(name, *x), (0, 1, 2, 3, 4)))(*inputs)
        for name in ("sparse", "reference")
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_accelerators(platform):
    qkv, call = LONG.make()

    def score(q, k, v, odds):
        out, stats = attend(q, k, v, **arrays({**call, "odds": odds}), stats="open", implementation="sparse")
        return (out**2).sum().astype(jnp.float32) + stats.entropy_bits.sum()

    inputs = (*arrays(qkv, jnp.bfloat16), jnp.asarray(call["odds"], jnp.float32))
    lowered = jax.jit(jax.grad(score, (0, 1, 2, 3))).trace(*inputs).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    assert "stablehlo.while" in text
    assert f"{LONG.T}x{LONG.T}" not in text  # no array has T² elements

"""The tests that every implementation of `attend` must pass: agreement with a NumPy oracle in float64.

The oracle is written from the definition alone, one query at a time, and shares no code with the library.
An implementation is tested by a subclass of `AttendSuite` that names it.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.attention import attend

STATISTICS = ("lse", "entropy_bits", "fidelity", "gated_mass", "price_bits")


def oracle(
    q,
    k,
    v,
    *,
    q_block,
    k_block,
    q_pos,
    k_pos,
    q_seg,
    k_seg,
    odds,
    relevant,
    filing=None,
    route=None,
    window=1,
):
    """Return values and statistics by the definition; odds of 0 stay 0 whatever `route` says."""
    if filing is None:
        filing = np.zeros(k.shape[2], int)
        k_block, k_pos, k_seg = (x[:, None] for x in (k_block, k_pos, k_seg))
    filed = k_block, k_pos, k_seg
    (B, T, N, H), G = q.shape, k.shape[2]
    out = np.zeros((B, T, N, v.shape[-1]))
    stats = {name: np.zeros((B, N, T)) for name in STATISTICS}
    stats["lse"][:] = -np.inf
    for b, i, n in np.ndindex(B, T, N):
        g, a, r = n // (N // G), min(b, odds.shape[0] - 1), min(b, relevant.shape[0] - 1)
        k_block, k_pos, k_seg = (x[:, filing[g]] for x in filed)
        sees = (k_seg[b] == q_seg[b, i]) & (k_seg[b] > 0) & (k_pos[b] <= q_pos[b, i])
        if not sees.any():
            continue
        near = q_pos[b, i] - k_pos[b] < window
        if route is None:
            omega = odds[a, n][q_block[b, i], k_block[b]]
        else:
            omega = np.einsum("k,kl,jl->j", route[b, i], odds[a, n], route[b])
            omega = np.where(odds[a, n][q_block[b, i], k_block[b]] == 0, 0.0, omega)
        omega = np.where(near, 1.0, omega) * sees
        s = k[b, :, g] @ q[b, i, n] / np.sqrt(H)
        weight = np.where(sees, np.exp(s), 0.0)
        alpha = weight * omega / (weight * omega).sum()
        dense = weight / weight.sum()
        some = alpha > 0
        is_relevant = relevant[r, n][q_block[b, i], k_block[b]]
        out[b, i, n] = alpha @ v[b, :, g]
        stats["lse"][b, n, i] = np.log((weight * omega).sum())
        stats["entropy_bits"][b, n, i] = -(alpha[some] * np.log2(alpha[some])).sum()
        stats["fidelity"][b, n, i] = alpha[is_relevant | near].sum()
        stats["gated_mass"][b, n, i] = alpha[is_relevant & ~near & (k_block[b] > 0)].sum()
        stats["price_bits"][b, n, i] = (alpha[some] * np.log2(alpha[some] / dense[some])).sum()
    return out, stats


@dataclasses.dataclass(frozen=True)
class Case:
    """The sizes and options of one problem."""

    B: int = 2
    T: int = 12
    N: int = 2
    G: int = 1
    H: int = 4
    Hv: int = 4
    K: int = 4
    window: int = 1
    dial: str = "between"  # zero, between, one, or mixed over batch and heads
    packed: bool = False
    batched_odds: bool = False
    scale: float = 1.0
    filings: int = 1

    def make(self, seed=0):
        rng = np.random.default_rng(seed)
        B, T, N, K = self.B, self.T, self.N, self.K
        q, k = (self.scale * rng.normal(size=(B, T, n, self.H)) for n in (N, self.G))
        block = rng.integers(0, K, (B, T))
        position, segment = np.tile(np.arange(T), (B, 1)), np.ones((B, T), int)
        if self.packed:
            cut, pad = T // 3, T - T // 4
            position[:, cut:] -= cut
            segment[:, cut:], segment[:, pad:] = 2, 0
        gates = rng.uniform(size=(B if self.batched_odds else 1, N, K, K)) * rng.integers(0, 2, (N, K, K))
        gates[..., 0] = 1
        keep = {"zero": 1.0, "one": 0.0, "between": 0.3}.get(self.dial)
        if keep is None:  # 1−λ: from one head and request to the next
            keep = np.array([0.0, 1.0, 0.2])[np.arange(gates.shape[0] * N) % 3].reshape(-1, N, 1, 1)
        places = {
            f"{side}_{name}": x
            for side in "qk"
            for name, x in (("block", block), ("pos", position), ("seg", segment))
        }
        odds = (gates + (1 - gates) * keep).astype(np.float32).astype(np.float64)
        call = dict(**places, odds=odds, relevant=gates > 0, window=self.window)
        if self.filings > 1:  # under filing f, a key's block is that of the position f before it
            call["k_block"] = np.stack([np.roll(block, f, 1) for f in range(self.filings)], 1)
            for name, x in (("pos", position), ("seg", segment)):
                call[f"k_{name}"] = np.repeat(x[:, None], self.filings, 1)
            call["filing"] = (1 + np.arange(self.G)) % self.filings
        return (q, k, rng.normal(size=(B, T, self.G, self.Hv))), call


CASES = {
    "between": Case(),
    "distributed": Case(dial="zero"),
    "localist": Case(dial="one"),
    "mixed dials per request and head": Case(dial="mixed", batched_odds=True, B=3, N=4),
    "grouped queries": Case(N=6, G=2, dial="one"),
    "window": Case(window=4, dial="one"),
    "window over everything": Case(window=50, dial="one"),
    "packed": Case(packed=True, window=3, T=25),
    "packed, localist": Case(packed=True, dial="one", T=25),
    "one block": Case(K=1),
    "one position": Case(T=1, dial="one"),
    "wide values": Case(Hv=9),
    "large logits": Case(scale=6.0, dial="one"),
    "long": Case(T=150, K=7, window=8, dial="one", packed=True, B=1),
    "long, between": Case(T=150, K=7, window=8, B=1),
    "many blocks, distributed": Case(T=150, K=40, dial="zero", packed=True, B=1, N=4, G=2, filings=2),
    "filed": Case(N=4, G=2, filings=2, dial="one", window=3),
    "filed, between": Case(N=6, G=3, filings=2, T=25, packed=True),
    "filed, long": Case(T=150, K=7, N=4, G=2, filings=2, window=8, dial="one", packed=True),
}


def arrays(tree, dtype=jnp.float32):
    def convert(x):
        x = np.asarray(x)
        return jnp.asarray(x, dtype if x.dtype == np.float64 else jnp.int32 if x.dtype == np.int64 else None)

    return jax.tree.map(lambda x: x if isinstance(x, int | jax.Array) else convert(x), tree)


def one_hot(block, K):
    return np.eye(K)[block]


@partial(jax.jit, static_argnames=("suite", "implementation", "window", "stats"))
def compiled(*qkv, suite, **call):
    """Compile `attend` as one program, which takes a tenth of the time of separate operations.

    `suite` is the class that asks, which may have changed what the implementation does.
    """
    return attend(*qkv, **call)


class AttendSuite:
    """The shared suite: a subclass sets `implementation`."""

    implementation: str

    def attend(self, qkv, call, **options):
        q, k, v = arrays(qkv)
        odds = options.pop("odds", None)
        call = {**arrays({**call, "odds": call["odds"] if odds is None else odds}), **options}
        return compiled(q, k, v, **call, implementation=self.implementation, suite=type(self))

    @pytest.mark.parametrize("name", CASES)
    def test_values_and_statistics_are_those_of_the_definition(self, name):
        qkv, call = CASES[name].make()
        out, stats = self.attend(qkv, call, stats="dense")
        wanted, figures = oracle(*qkv, **call)
        np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=2e-5)
        for field in STATISTICS:
            np.testing.assert_allclose(
                getattr(stats, field), figures[field], rtol=1e-4, atol=5e-5, err_msg=field
            )

    @pytest.mark.parametrize("name", ["between", "packed, localist", "grouped queries"])
    def test_statistics_do_not_change_the_values(self, name):
        qkv, call = CASES[name].make()
        (plain, none), (opened, some), (dense, _) = (
            self.attend(qkv, call, stats=s) for s in ("none", "open", "dense")
        )
        assert none is None
        assert some.price_bits is None
        np.testing.assert_allclose(plain, opened, atol=1e-6)
        np.testing.assert_allclose(plain, dense, atol=1e-6)

    def test_rows_that_see_nothing_give_zeros_and_finite_gradients(self):
        qkv, call = CASES["packed"].make()
        padding = call["q_seg"] == 0
        assert padding.any()
        out, stats = self.attend(qkv, call, stats="dense")
        assert np.abs(np.asarray(out)[padding]).max() == 0
        assert np.isneginf(np.asarray(stats.lse).transpose(0, 2, 1)[padding]).all()

        def score(q, k, v, odds):
            out, stats = attend(
                q, k, v, **arrays({**call, "odds": odds}), stats="dense", implementation=self.implementation
            )
            return (out**2).sum() + stats.entropy_bits.sum() + stats.price_bits.sum()

        for gradient in jax.jit(jax.grad(score, (0, 1, 2, 3)))(*arrays((*qkv, call["odds"]))):
            assert np.isfinite(gradient).all()

    def test_closed_pairs_get_exactly_nothing(self):
        case = dataclasses.replace(CASES["localist"], Hv=12, G=2)
        (q, k, _), call = case.make()
        eye = np.broadcast_to(np.eye(case.T)[None, :, None], (case.B, case.T, case.G, case.T))  # out is alpha
        alpha = np.asarray(self.attend((q, k, eye), call)[0])
        closed = 0
        for b, i, n in np.ndindex(alpha.shape[:3]):
            for j in range(case.T):
                omega = call["odds"][0, n, call["q_block"][b, i], call["k_block"][b, j]]
                is_open = j <= i and (i - j < case.window or omega > 0)
                assert (alpha[b, i, n, j] > 0) == is_open
                closed += j <= i and not is_open
        assert closed > 20

    def test_the_derivative_at_closed_odds_is_exactly_zero(self):
        qkv, call = CASES["localist"].make()

        def score(odds):
            out, stats = attend(
                *arrays(qkv),
                **arrays({**call, "odds": odds}),
                stats="open",
                implementation=self.implementation,
            )
            return (out**2).sum() + stats.entropy_bits.sum() + stats.lse.sum()

        gradient = np.asarray(jax.jit(jax.grad(score))(arrays(call["odds"])))
        closed = call["odds"] == 0
        assert closed.sum() > 5
        assert np.abs(gradient[closed]).max() == 0
        assert np.abs(gradient[~closed]).max() > 0

    @pytest.mark.parametrize(
        "name",
        ["between", "localist", "packed, localist", "grouped queries", "window", "filed", "filed, between"],
    )
    def test_gradients_are_those_of_the_definition(self, name):
        """Check directional derivatives of values and statistics against central differences of the oracle."""
        case = CASES[name]
        qkv, call = case.make()
        rng = np.random.default_rng(1)
        weights = [rng.normal(size=(case.B, case.T, case.N, case.Hv))]
        weights += [rng.normal(size=(case.B, case.N, case.T)) for _ in range(5)]
        sees = np.broadcast_to((call["q_seg"] > 0)[:, None], weights[1].shape)

        def total(xp, out, figures):
            parts = [out, *(xp.where(sees, figures[name], 0.0) for name in STATISTICS)]
            return sum((w * x).sum() for w, x in zip(weights, parts, strict=True))

        def score(q, k, v, odds, route=None):
            more = arrays({**call, "odds": odds})
            out, stats = attend(
                q, k, v, **more, route=route, stats="dense", implementation=self.implementation
            )
            return total(jnp, out, {name: getattr(stats, name) for name in STATISTICS})

        def true_score(q, k, v, odds, route=None):
            odds = np.where(call["odds"] == 0, 0.0, odds)  # closed pairs stay closed
            return total(np, *oracle(q, k, v, **{**call, "odds": odds}, route=route))

        at = [*qkv, call["odds"], *([one_hot(call["q_block"], case.K)] if case.filings == 1 else [])]
        gradients = jax.jit(jax.grad(score, tuple(range(len(at)))))(*arrays(tuple(at)))
        step = 1e-5
        for argument, gradient in enumerate(gradients):
            direction = rng.normal(size=at[argument].shape)
            ends = [
                true_score(*[x + sign * step * direction if a == argument else x for a, x in enumerate(at)])
                for sign in (1, -1)
            ]
            if argument == 3:
                direction = np.where(call["odds"] == 0, 0.0, direction)
            found = (np.asarray(gradient, np.float64) * direction).sum()
            np.testing.assert_allclose(
                found, (ends[0] - ends[1]) / (2 * step), rtol=2e-3, atol=2e-3, err_msg=f"argument {argument}"
            )

    def test_inputs_have_the_same_gradients_when_the_odds_are_constants(self):
        qkv, call = CASES["localist"].make()
        weights = np.random.default_rng(1).normal(size=qkv[0].shape[:3])
        more = {name: x for name, x in arrays(call).items() if name != "odds"}

        def score(q, k, v, odds):
            out, stats = attend(q, k, v, **more, odds=odds, stats="open", implementation=self.implementation)
            return (out.sum(-1) * weights).sum() + stats.lse.sum()

        at = arrays((*qkv, call["odds"]))
        (*every, of_odds), few = (jax.jit(jax.grad(score, which))(*at) for which in ((0, 1, 2, 3), (0, 1, 2)))
        assert np.abs(of_odds).sum() > 0
        for one, other in zip(every, few, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)

    def test_cached_keys_and_a_request_per_row(self):
        """Check decoding: one query per request, each at its own position in a partly empty cache."""
        case = Case(B=3, N=4, G=2, dial="mixed", batched_odds=True, window=2)
        (q, k, v), call = case.make()
        at = np.array([3, 7, 11])
        last = np.arange(3), at
        filled = np.arange(12)[None] <= at[:, None]
        step = {**call, **{f"q_{n}": call[f"q_{n}"][last][:, None] for n in ("block", "pos", "seg")}}
        step["k_seg"] = filled.astype(int)
        step["k_block"] = np.where(filled, call["k_block"], 0)
        out, stats = self.attend((q[last][:, None], k, v), step, stats="dense")
        wanted, figures = oracle(q, k, v, **call)
        np.testing.assert_allclose(out[:, 0], wanted[last], rtol=1e-4, atol=2e-5)
        for field in STATISTICS:
            np.testing.assert_allclose(
                getattr(stats, field)[..., 0], figures[field][last[0], :, at], rtol=1e-4, atol=5e-5
            )

    def test_slots_may_hold_other_positions_under_each_filing(self):
        """Check a paged cache, in which a slot holds the position that the head's filing put there."""
        case = Case(B=2, T=20, N=4, G=2, K=4, filings=2, window=3, dial="one")
        (q, k, v), call = case.make()
        order = np.random.default_rng(2).permutation(case.T)
        moved = {**call, **{name: call[name].copy() for name in ("k_block", "k_pos", "k_seg")}}
        for name in ("k_block", "k_pos", "k_seg"):
            moved[name][:, 1] = call[name][:, 1][:, order]
        second = call["filing"] == 1
        k_moved, v_moved = (np.where(second[:, None], x[:, order], x) for x in (k, v))
        out, stats = self.attend((q, k_moved, v_moved), moved, stats="dense")
        wanted, figures = oracle(q, k, v, **call)
        np.testing.assert_allclose(out, wanted, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(stats.gated_mass, figures["gated_mass"], rtol=1e-4, atol=5e-5)

    def test_queries_may_have_rows_of_their_own(self):
        """Check odds with more rows than columns, as steering needs them."""
        case = Case(K=4)
        qkv, call = case.make()
        rows = np.concatenate([call["odds"], call["odds"][:, :, :1] * 0.5], 2)
        call["q_block"] = np.where(call["q_block"] == 2, 4, call["q_block"])
        call["relevant"], call["odds"] = rows > 0.2, rows
        out, _ = self.attend(qkv, call)
        np.testing.assert_allclose(out, oracle(*qkv, **call)[0], rtol=1e-4, atol=2e-5)

    def test_half_precision_inputs_are_accumulated_in_float32(self):
        qkv, call = Case(T=64, H=16, N=2, G=2, window=3, dial="one").make()
        half = arrays(qkv, jnp.bfloat16)
        out, stats = self.attend(half, call, stats="open")
        assert out.dtype == jnp.bfloat16
        assert stats.entropy_bits.dtype == jnp.float32
        wanted, figures = oracle(*(np.asarray(x, np.float64) for x in half), **call)
        np.testing.assert_allclose(np.asarray(out, np.float64), wanted, atol=2e-2)
        np.testing.assert_allclose(stats.entropy_bits, figures["entropy_bits"], atol=1e-2)

    def test_the_dial_is_traced(self):
        qkv, call = CASES["between"].make()
        run = jax.jit(lambda odds: self.attend(qkv, call, odds=odds)[0])
        outputs = [run(jnp.asarray(call["odds"], jnp.float32) ** power) for power in (0.0, 1.0, 3.0, np.inf)]
        assert run._cache_size() == 1
        assert float(jnp.abs(outputs[0] - outputs[-1]).max()) > 1e-3

    def test_batches_may_be_mapped(self):
        qkv, call = CASES["between"].make()
        stacked = jax.tree.map(lambda x: jnp.stack([x, 0.5 * x]), arrays(qkv))
        mapped = jax.vmap(lambda q, k, v: self.attend((q, k, v), call)[0])(*stacked)
        for row in range(2):
            alone = self.attend(jax.tree.map(lambda x: x[row], stacked), call)[0]  # noqa: B023
            np.testing.assert_allclose(mapped[row], alone, atol=1e-5)

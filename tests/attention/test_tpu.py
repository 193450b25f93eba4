"""The TPU kernel, interpreted, against the definition; `benchmarks.tpu_check` compiles it for TPUs.

Interpreted kernels take seconds to compile on a CPU. Each way runs the cases that reach different code in the
kernels; what only concerns the choice of a way, or statistics made outside the kernels, is left to `test_sparse`.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attend_suite import CASES, AttendSuite, arrays

from localist_jax.attention import attend, tpu
from localist_jax.attention import sparse as tiles_of

RUN = tpu.tpu


@partial(jax.jit, static_argnames=("settings", "window", "stats"))
def compiled(*qkv, settings, **call):
    """Compile `attend`; module settings are arguments, so that no program with old settings is reused."""
    return RUN(*qkv, **call)


def run(*qkv, **call):
    return compiled(*qkv, **call, settings=(tpu.ENGINE, tpu.MAX_LIST_ENTRIES, tiles_of.MIN_PAIRS_BY_BLOCK))


class Interpreted(AttendSuite):
    """Tiles so small that there are several of them."""

    implementation = "tpu"
    pure_cost = 3.0

    @pytest.fixture(autouse=True)
    def _small_tiles(self, monkeypatch):
        pure = (tiles_of.PureTiles((8, 8, 1), self.pure_cost),)
        sizes = dict(wide=(16, 32, 1), small=(8, 8, 1), band=(8, 16), pure=pure)
        monkeypatch.setattr(tpu, "ENGINE", dataclasses.replace(tpu.ENGINE, **sizes))
        monkeypatch.setattr(tpu, "tpu", run)

    # Too slow under interpretation, and the kernel runs the same code: another gradient, decoding, query rows.
    test_statistics_do_not_change_the_values = None
    test_the_derivative_at_closed_odds_is_exactly_zero = None
    test_cached_keys_and_a_request_per_row = None
    test_queries_may_have_rows_of_their_own = None
    test_the_dial_is_traced = None


class TestInOrder(Interpreted):
    """The kernels on tiles of mixed blocks."""

    @pytest.mark.parametrize(
        "name", ["mixed dials per request and head", "one position", "wide values", "large logits", "long"]
    )
    def test_values_and_statistics_are_those_of_the_definition(self, name):
        super().test_values_and_statistics_are_those_of_the_definition(name)

    @pytest.mark.parametrize("name", ["grouped queries", "window"])
    def test_gradients_are_those_of_the_definition(self, name):
        super().test_gradients_are_those_of_the_definition(name)

    def test_lists_longer_than_scalar_memory_run_in_parts(self, monkeypatch):
        qkv, call = CASES["long"].make()

        def both(*qkv):
            def score(*qkv):
                out, _ = attend(*qkv, **arrays(call), implementation="tpu")
                return (out**2).sum(), out

            return jax.value_and_grad(score, (0, 1, 2), has_aux=True)(*qkv)

        whole = both(*arrays(qkv))
        assert "scan" not in str(jax.make_jaxpr(lambda *qkv: both(*qkv))(*arrays(qkv)))
        monkeypatch.setattr(tpu, "MAX_LIST_ENTRIES", 30)
        assert "scan" in str(jax.make_jaxpr(lambda *qkv: both(*qkv))(*arrays(qkv)))
        for a, b in zip(*(jax.tree.leaves(x) for x in (whole, both(*arrays(qkv)))), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    def test_float64_is_refused(self):
        qkv, call = CASES["between"].make()
        with jax.enable_x64(True):
            qkv, call = arrays(qkv, jnp.float64), arrays(call)
            with pytest.raises(ValueError, match="float64"):
                attend(*qkv, **call, implementation="tpu")


class TestByBlock(Interpreted):
    """The kernels on pure tiles, with a band for the window."""

    pure_cost = 0.0

    @pytest.fixture(autouse=True)
    def _only_by_block(self, monkeypatch):
        monkeypatch.setattr(tiles_of, "MIN_PAIRS_BY_BLOCK", 0)

    @pytest.mark.parametrize("name", ["mixed dials per request and head", "long"])
    def test_values_and_statistics_are_those_of_the_definition(self, name):
        super().test_values_and_statistics_are_those_of_the_definition(name)

    @pytest.mark.parametrize("name", ["grouped queries"])
    def test_gradients_are_those_of_the_definition(self, name):
        super().test_gradients_are_those_of_the_definition(name)

    # `vmap` does not depend on tiles.
    test_batches_may_be_mapped = None


def test_a_float32_is_the_sum_of_its_parts():
    x = jnp.asarray(np.random.default_rng(0).normal(size=1000) * np.logspace(-20, 20, 1000), jnp.float32)
    high, middle, low = (np.asarray(part, np.float64) for part in jax.jit(tpu._parts)(x))
    assert (high + middle + low == np.asarray(x, np.float64)).all()
    assert np.abs(low).max() > 0

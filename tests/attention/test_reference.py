"""The reference implementation of `attend`, and the errors of the signature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attend_suite import CASES, STATISTICS, AttendSuite, Case, arrays, oracle

from localist_jax.attention import api, attend


class TestReference(AttendSuite):
    implementation = "reference"

    def test_double_precision_stays_double(self):
        qkv, call = CASES["between"].make()
        with jax.enable_x64(True):
            run = partial(attend, **arrays(call, jnp.float64), stats="dense", implementation="reference")
            out, stats = jax.jit(run)(*map(jnp.asarray, qkv))
            wanted, figures = oracle(*qkv, **call)
            np.testing.assert_allclose(out, wanted, rtol=1e-12, atol=1e-13)
            for field in STATISTICS:
                np.testing.assert_allclose(getattr(stats, field), figures[field], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "platform", "few", "name"),
    [
        (12, "cpu", api.FEW_LOGITS_ON_GPU, "reference"),
        (256, "cpu", api.FEW_LOGITS_ON_GPU, "sparse"),
        (256, "gpu", api.FEW_LOGITS_ON_GPU, "reference"),
        (256, "gpu", 256 * 256 - 1, "sparse"),
    ],
)
def test_the_default_depends_on_size_and_platform(length, platform, few, name, monkeypatch):
    monkeypatch.setattr(api, "platform", lambda mesh: platform)
    monkeypatch.setattr(api, "FEW_LOGITS_ON_GPU", few)
    qkv, call = Case(T=length, H=4, K=3, dial="one").make()

    def program(implementation):
        run = partial(attend, **arrays(call), implementation=implementation)
        return jax.jit(lambda *qkv: run(*qkv)).lower(*arrays(qkv)).as_text()

    assert {each for each in ("reference", "sparse") if program(each) == program(None)} == {name}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"implementation": "magic"}, "unknown implementation 'magic'; choose one of .*reference"),
        ({"window": 0}, "window must be at least 1"),
        ({"stats": "all"}, "stats must be one of none, lse, open, dense"),
        ({"odds": np.ones((1, 3, 4, 4))}, "odds have 3 heads, the queries 2"),
        ({"route": np.ones((2, 12, 3))}, "route needs"),
    ],
)
def test_calls_that_do_not_fit_are_refused_in_one_line(change, words):
    qkv, call = CASES["between"].make()
    options = {**arrays({k: v for k, v in {**call, **change}.items() if not isinstance(v, str)})}
    options |= {k: v for k, v in change.items() if isinstance(v, str)}
    with pytest.raises((ValueError, TypeError), match=words) as error:
        attend.__wrapped__(*arrays(qkv), **options) if hasattr(attend, "__wrapped__") else attend(
            *arrays(qkv), **options
        )
    assert "\n" not in str(error.value)


def test_heads_must_divide():
    (q, _, _), call = Case(N=3).make()
    _, k, v = Case(N=2, G=2).make()[0]
    with pytest.raises(ValueError, match="3 query heads do not divide into 2"):
        attend(*arrays((q, k, v)), **arrays(call))

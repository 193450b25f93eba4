"""The GPU kernels: arithmetic against the definition, data movement interpreted, and lowering for a GPU.

On a machine with a GPU the first tests run the kernels themselves.
"""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attend_suite import Case, arrays, one_hot
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AbstractDevice, AbstractMesh

from localist_jax.attention import attend
from localist_jax.attention.hopper import lists as hopper
from localist_jax.attention.hopper import program
from localist_jax.attention.hopper.steps import Settings

CASES = {
    "localist, grouped queries": Case(B=1, T=260, N=4, G=2, H=8, Hv=8, dial="one"),
    "between, with a window": Case(B=1, T=200, H=8, Hv=16, window=5),
    "localist, packed, with a window": Case(B=1, T=300, H=8, Hv=8, window=5, packed=True, dial="one"),
    "distributed": Case(B=1, T=256, H=8, Hv=8, dial="zero"),
}
CHANNELS = 64  # channels in a row of shared memory
ROUNDED = 7e-3  # error of bfloat16, relative to the norm of a result


@partial(jax.jit, static_argnames=("implementation", "window"))
def values(q, k, v, w, route, implementation, **call):
    """Return values, statistics and gradients of ⟨w, values⟩."""

    def score(q, k, v, odds, route):
        out, _ = attend(q, k, v, **{**call, "odds": odds}, route=route, implementation=implementation)
        return (out.astype(jnp.float32) * w).sum()

    out, stats = attend(q, k, v, **call, stats="open", implementation=implementation)
    return out, stats, jax.grad(score, (0, 1, 2, 3, 4))(q, k, v, call["odds"], route)


@pytest.mark.parametrize("name", CASES)
def test_values_statistics_and_gradients_are_those_of_the_definition(name):
    qkv, call = CASES[name].make()
    q, k, v = arrays(qkv, jnp.bfloat16)
    w = jnp.asarray(np.random.default_rng(1).normal(size=(*q.shape[:3], v.shape[-1])), jnp.float32)
    call, route = arrays(call), jnp.asarray(one_hot(call["q_block"], call["odds"].shape[-1]), jnp.float32)
    found = values(q, k, v, w, route, "gpu", **call)
    exact = values(*(x.astype(jnp.float32) for x in (q, k, v)), w, route, "reference", **call)
    for path, x in jax.tree_util.tree_leaves_with_path(found):
        true = np.asarray(dict(jax.tree_util.tree_leaves_with_path(exact))[path], np.float64)
        x, seen = np.asarray(x, np.float64), np.isfinite(true)
        assert (np.isfinite(x) == seen).all(), path
        assert np.linalg.norm(x[seen] - true[seen]) <= ROUNDED * np.linalg.norm(true[seen]) + 1e-3, path


def test_statistics_have_gradients_too():
    qkv, call = Case(B=1, T=140, H=8, Hv=8, dial="one").make()
    (q, k, v), call = arrays(qkv, jnp.bfloat16), arrays(call)

    @partial(jax.jit, static_argnames="implementation")
    def gradient(q, k, v, implementation):
        def entropy(q, k):
            _, stats = attend(q, k, v, **call, stats="open", implementation=implementation)
            return stats.entropy_bits.sum()

        return jax.grad(entropy, (0, 1))(q, k)

    exact = gradient(*(x.astype(jnp.float32) for x in (q, k, v)), "reference")
    for x, true in zip(gradient(q, k, v, "gpu"), exact, strict=True):
        assert np.linalg.norm(np.asarray(x, np.float64) - true) <= ROUNDED * np.linalg.norm(true)


def interpreter():
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams(detect_races=True)
    from jax._src.pallas.mosaic_gpu.interpret import params  # where JAX keeps it before 0.12

    return params.InterpretGPUParams(detect_races=True)


@pytest.mark.parametrize(("rows", "programs"), [(9, 1), (14, 2)])
def test_tiles_reach_the_rows_that_list_them(rows, programs, monkeypatch):
    """Interpret a step without tensor cores: several rows per program, rings that wrap around, empty rows."""
    monkeypatch.setattr(program.plgpu, "kernel", partial(plgpu.kernel, interpret=interpreter()))
    monkeypatch.setattr(program, "_processors", lambda: programs)
    rng = np.random.default_rng(0)
    counts = np.sort(rng.integers(0, 7, rows))[::-1].astype(np.int32)
    counts[-3:] = 0
    entries = rng.integers(0, rows, (rows, 6)).astype(np.int32)
    q, k = rng.integers(-3, 4, (2, 1, rows, hopper.TILE, 1, CHANNELS))
    pos = rng.integers(0, 99, (rows, hopper.TILE)).astype(np.float32)

    def step(s, r, at, state):
        at.take_turns()
        at.take_turns()
        new = state + r.k[...][: hopper.ROWS].astype(jnp.float32) * r.q[...].astype(jnp.float32)
        plgpu.commit_smem()  # threads read it here, not tensor cores, so the next fetch must wait
        return new

    order = np.arange(rows, dtype=np.int32)
    lists = hopper.Lists(*map(jnp.asarray, (order, counts, order, entries)), bias=None)
    call = program.GpuKernel(
        "sum",
        Settings("far", 1, 1.0, False, False, False, emulated=False),
        lambda s, r: jnp.zeros((hopper.ROWS, CHANNELS), jnp.float32),
        step,
        lambda s, r, state: {"out": state, "pos": r.pos[...]},
        {"out": "q"},
        {"pos": ()},
        (1, 1, rows),
        (1, 1, rows),
        turns=True,
    )
    found = call(
        lists,
        {"q": jnp.asarray(q, jnp.bfloat16), "pos": jnp.asarray(pos)},
        {"k": jnp.asarray(k, jnp.bfloat16)},
    )
    upper = np.tile(k[0, :, : hopper.ROWS, 0], (1, hopper.GROUPS, 1))
    listed = np.arange(6) < counts[:, None]
    sums = (upper[entries] * listed[..., None, None]).sum(1) * q[0, :, :, 0]
    np.testing.assert_array_equal(np.asarray(found["out"], np.float64)[0, :, :, 0], sums)
    np.testing.assert_array_equal(found["pos"], pos)


@pytest.mark.parametrize("size", [64, 128])
def test_they_lower_for_a_gpu_that_is_not_there(size):
    qkv, call = Case(B=1, T=512, N=2, H=size, Hv=size, K=16, window=8).make()
    (q, k, v), call = arrays(qkv, jnp.bfloat16), arrays(call)
    route = jnp.asarray(one_hot(call["q_block"], 16), jnp.float32)
    w, window = jnp.ones((1, 512, 2, size)), call.pop("window")
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    assert "abstract_device" in inspect.signature(AbstractMesh).parameters
    with jax.sharding.use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=device)):
        run = jax.jit(partial(values, implementation="gpu", window=window))
        text = run.trace(q, k, v, w, route, **call).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("mosaic_gpu") > 10


def test_it_says_what_it_does_not_take():
    qkv, call = Case(B=1, T=8).make()
    with pytest.raises(
        ValueError, match="takes bfloat16, heads of at most 128 and at most 64 blocks, got float32"
    ):
        attend(*arrays(qkv), **arrays(call), implementation="gpu")

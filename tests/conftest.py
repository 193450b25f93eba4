"""Shared by all tests: run-time checks of shapes and types, and one small model."""

import os
from importlib import metadata
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: no costly optimisation, the old fusion emitters (a training step compiles in
# a third of the time; from 0.11 on there are no old ones, and an unknown flag ends the process), and every program is
# compiled once for all workers, child processes and later runs. Set before JAX is imported.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    + " --xla_cpu_use_fusion_emitters=false" * metadata.version("jaxlib").startswith("0.10."),
)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

from jaxtyping import install_import_hook

# Public signatures are checked at run time here, and only here.
with install_import_hook(
    ["localist_jax.locality", "localist_jax.attention", "localist_jax.recruitment", "localist_jax.bits"],
    "beartype.beartype",
):
    pass

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from localist_jax import config
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer

VOCABULARY = 60


MOST_MAPS = 20_000  # of the 65,530 that Linux grants a process by default; XLA takes some for every program


@pytest.fixture(scope="module", autouse=True)
def _forget_programs():
    """Lets compiled programs go before the process has more memory maps than the system grants, which is fatal."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="session")
def small() -> config.Model:
    """Three layers, grouped queries, both windows, spare capacity: everything is in use."""
    return config.Model(
        layers=3, width=32, heads=4, kv_heads=2, head_size=8, feed_forward=48, router_layer=1,
        blocks=5, block_capacity=6, block_units=8, anchor_capacity=4, window=2, perception_window=3,
    )  # fmt: skip


@pytest.fixture(scope="session")
def model(small) -> Transformer:
    return Transformer(small, VOCABULARY)


@pytest.fixture(scope="session")
def blocks(small) -> Blocks:
    return Blocks.create(small.blocks, small.block_capacity, small.anchor_capacity)


@pytest.fixture(scope="session")
def tokens() -> jax.Array:
    """Two rows of twelve tokens behind BOS."""
    return jax.random.randint(jax.random.key(0), (2, 12), 2, VOCABULARY).at[:, 0].set(1)


@pytest.fixture(scope="session")
def params(model, blocks, tokens):
    """Random parameters with half of the gates closed."""
    tree = jax.jit(lambda key: nn.unbox(model.init(key, tokens, Dial(0.0), blocks))["params"])(
        jax.random.key(1)
    )
    gates = tree["localist"]["attention"]["gates"]
    half = jax.random.bernoulli(jax.random.key(2), 0.5, gates.shape).astype(jnp.float32)
    return {
        **tree,
        "localist": {**tree["localist"], "attention": {**tree["localist"]["attention"], "gates": half}},
    }


@pytest.fixture(scope="session")
def tiny_settings() -> config.Config:
    """A run of seconds on generated text, with every part in use."""
    return config.Config(
        data=config.Data(corpus="synthetic", vocab_size=512, context=32, batch=4, valid_rows=8),
        model=config.Model(
            layers=3, width=32, heads=2, kv_heads=2, head_size=16, feed_forward=64, blocks=6, block_capacity=8,
            block_units=8, window=4, perception_window=8,
        ),
        gates=config.Gates(open_share_target=0.4, flat_window=10),
        train=config.Train(steps=12, log_every=1, eval_every=6, save_every=4),
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_run(tiny_settings, tmp_path_factory):
    """That run: trained, measured, reported."""
    from localist_jax.report.job import run_job
    from localist_jax.training.run import Run

    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    run_job(tiny_settings, workdir, command="pytest <tiny>")
    return Run.open(workdir)

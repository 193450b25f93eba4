"""A child process with eight simulated devices: specialists train in parallel; prints what it saw as JSON.

python on_eight_devices.py SETTINGS_JSON
"""

import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import config
from localist_jax.data import Batch
from localist_jax.hierarchy.parallel import make_parallel_step, mesh_of, placed
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.run import fresh_state
from localist_jax.training.step import make_train_step

VOCABULARY, M = 60, 8
COLLECTIVE = re.compile(
    r"\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)"
)


def bare(tree):
    return [
        np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
        for x in jax.tree.leaves(tree)
    ]


def main(settings: config.Config):
    T, B = settings.data.context, settings.data.batch
    model, sizes = Transformer(settings.model, VOCABULARY), np.full(VOCABULARY, 3)
    state = fresh_state(model, settings, make_mesh(config.Mesh(), jax.devices()[:1]))
    states = jax.tree.map(lambda x: jnp.stack([x] * M), state)
    tokens = np.random.default_rng(0).integers(2, VOCABULARY, (M, B, T)).astype(np.int32)
    ones = np.ones_like(tokens)
    batches = Batch(
        tokens, np.roll(tokens, -1, 2), ones, np.broadcast_to(np.arange(T, dtype=np.int32), tokens.shape)
    )
    learns = np.arange(M) != 3

    mesh = mesh_of(M)
    arguments = placed((states, batches, learns), mesh)
    compiled = make_parallel_step(model, settings, sizes, mesh).lower(*arguments).compile()
    after = compiled(compiled(*arguments), *arguments[1:])  # the first step only warms up, at a rate of 0
    step = jax.jit(make_train_step(model, settings, sizes))
    fifth = jax.tree.map(lambda x: x[5], batches)
    alone, _ = step(step(state, fifth)[0], fifth)
    kernel = after.params["router"]["kernel"]
    seen = {
        "devices": len(jax.devices()),
        "collectives": sorted(set(COLLECTIVE.findall(compiled.as_text()))),
        "a sharded sum has some": bool(COLLECTIVE.findall(
            jax.jit(lambda x: x.sum()).lower(placed(jnp.ones((M, 2)), mesh)).compile().as_text()
        )),
        "slices": sorted((shard.index[0].start, shard.device.id) for shard in kernel.addressable_shards),
        "who does not learn is bit-identical": all(
            np.array_equal(new[3], old) for new, old in zip(bare(after), bare(state), strict=True)
        ),
        "moved": [not np.array_equal(np.asarray(kernel)[i], np.asarray(state.params["router"]["kernel"]))
                  for i in range(M)],
        "as alone": max(
            float(np.abs(new[5].astype(float) - old.astype(float)).max())
            for new, old in zip(bare(after), bare(alone), strict=True)
        ),
    }  # fmt: skip
    print(json.dumps(seen))


if __name__ == "__main__":
    main(config.resolve(json.loads(sys.argv[1])))

"""A child process with eight simulated devices: trains on several meshes and prints measurements as JSON.

python on_eight_devices.py WORKDIR SETTINGS_JSON
"""

import dataclasses
import json
import math
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import numpy as np

from localist_jax import config
from localist_jax.data import prepare, train_batches
from localist_jax.locality import Dial
from localist_jax.model import Transformer, generate
from localist_jax.parallel import mesh as meshes
from localist_jax.parallel import sharding
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import abstract_state, fresh_state
from localist_jax.training.step import make_train_step

STEPS = 5
MESHES = {
    "1": config.Mesh(data=1),
    "all": config.Mesh(slice=2, data=1, fsdp=2, tensor=2),
}


def mesh_of(name: str) -> jax.sharding.Mesh:
    sizes = dataclasses.asdict(MESHES[name])
    return meshes.make_mesh(MESHES[name], jax.devices()[: math.prod(sizes.values())])


def main(workdir: Path, settings: config.Config):
    prepared = prepare(settings.data, workdir / "cache")
    seen = {"losses": {}, "shards": {}, "devices": len(jax.devices())}
    states, models = {}, {}
    for name in MESHES:
        mesh = mesh_of(name)
        shards = sharding.shards("batch", mesh)
        model = models[name] = Transformer(settings.model, prepared.tokenizer.vocab_size, shards, mesh)
        state = fresh_state(model, settings, mesh)
        step = jax.jit(make_train_step(model, settings, prepared.tokenizer.byte_lengths), donate_argnums=0)
        batches = train_batches(prepared.train, settings.data.batch, seed=0)
        losses = []
        for _ in range(STEPS):
            state, metrics = step(state, jax.device_put(next(batches), sharding.batch_sharding(mesh)))
            losses.append(float(metrics["bits_per_token"]))
        seen["losses"][name] = losses
        leaves = jax.tree_util.tree_leaves_with_path(state.params)
        seen["shards"][name] = {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf.size
            // leaf.addressable_shards[0].data.size
            for path, leaf in leaves
        }
        states[name] = state

    # A checkpoint saved on eight devices is read on one, and one of one device on eight.
    for saved, read in (("all", "1"), ("1", "all")):
        with Checkpoints(workdir / saved, keep=1) as checkpoints:
            checkpoints.save(STEPS, states[saved], manifest={}, cursor={})
        mesh = mesh_of(read)
        with Checkpoints(workdir / saved) as checkpoints:
            found, _ = checkpoints.restore(abstract_state(models[read], settings, mesh))
        pairs = zip(jax.tree.leaves(found.params), jax.tree.leaves(states[saved].params), strict=True)
        seen[f"{saved} read on {read}"] = all(np.array_equal(a, b) for a, b in pairs)
        seen[f"shardings of {read}"] = all(
            a.sharding.is_equivalent_to(b.sharding, a.ndim)
            for a, b in zip(jax.tree.leaves(found.params), jax.tree.leaves(states[read].params), strict=True)
        )

    # The same parameters, whole on one device and sharded over eight, generate the same text.
    where = jax.tree.map(lambda leaf: leaf.sharding, states["all"].params)
    texts = []
    for params, name in ((states["1"].params, "1"), (jax.device_put(states["1"].params, where), "all")):
        blocks = jax.device_get(states["1"].blocks)
        texts.append(
            generate(
                models[name], params, blocks, [[5, 6], [7]], Dial(0.9), context=32, max_new=6, temperature=0
            )
        )
    seen["generated"] = [[g.tokens for g in text] for text in texts]
    print(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]), config.resolve(json.loads(sys.argv[2])))

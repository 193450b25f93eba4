"""A child process of test_specialists.py: two specialists on four devices each, in one program."""

import json
import os
import sys

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np

from experiments.compile_for import page, programs
from localist_jax import config
from localist_jax.data import Batch
from localist_jax.parallel import ahead, sharding
from localist_jax.parallel import mesh as meshes
from localist_jax.training.run import fresh_state


def main(settings: config.Config):
    mesh = meshes.make_mesh(settings.mesh, ahead.devices("cpu:8"))
    shapes = programs.Shapes.of(settings, mesh)
    lowered = programs.train(shapes)
    step = lowered.lowered.compile()
    figures = page.figures(shapes, "cpu:8", lowered, ahead.compile_(lowered.lowered))
    between = [
        one
        for one in ahead.compile_(lowered.lowered).program.collectives
        if len({i // 4 for i in one.ids}) > 1
    ]

    d = settings.data
    rows = np.random.default_rng(0).integers(2, d.vocab_size, (2, d.batch, d.context)).astype(np.int32)
    places = np.broadcast_to(np.arange(d.context, dtype=np.int32), rows.shape)
    batch = Batch(rows, np.roll(rows, -1, 2), np.ones_like(rows), places)
    states = [fresh_state(shapes.model, settings.replace(train={"seed": i}), mesh) for i in range(3)]
    inputs = sharding.stacked((shapes.state, Batch(*[shapes.array((d.batch, d.context), "batch")] * 4)), mesh)

    def put(tree, like):
        return jax.tree.map(lambda x, y: jax.device_put(x, y.sharding), tree, like)

    def run(first, second):
        both = jax.tree.map(lambda a, b: jnp.stack([a, b]), states[first], states[second])
        state, metrics = step(put(both, inputs[0]), put(batch, inputs[1]))
        gates = np.asarray(state.params["localist"]["attention"]["query"])
        return np.asarray(metrics["bits_per_token"]).tolist(), gates

    (losses, one), (others, other) = run(0, 1), run(0, 2)
    print(
        json.dumps(
            {
                "figures": figures,
                "between": len(between),
                "losses": [losses, others],
                "first is the same": bool(np.array_equal(one[0], other[0])),
                "second is the same": bool(np.array_equal(one[1], other[1])),
            }
        )
    )


if __name__ == "__main__":
    main(config.resolve(json.loads(sys.argv[1])))

"""A child process of test_sharded.py: attention split over 4 × 2 devices against one device."""

import json
import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from attend_suite import Case, arrays, one_hot
from jax.sharding import NamedSharding, PartitionSpec

from localist_jax import config
from localist_jax.attention import attend
from localist_jax.parallel.mesh import make_mesh

CASE = Case(B=4, T=192, N=4, G=2, H=8, Hv=8, K=5, window=3, dial="one", packed=True)


def main():
    mesh = make_mesh(config.Mesh(data=4, tensor=2))
    qkv, call = CASE.make()
    qkv, call = arrays(qkv), arrays(call)
    route = jnp.asarray(one_hot(np.asarray(call["q_block"]), CASE.K), jnp.float32)

    def score(q, k, v, odds, route, mesh):
        more = {**call, "odds": odds, "route": route}
        out, stats = attend(q, k, v, **more, stats="dense", implementation="sparse", mesh=mesh)
        return (out**2).sum() + stats.entropy_bits.sum() + stats.price_bits.sum()

    inputs = (*qkv, call["odds"], route)
    wanted = jax.jit(jax.value_and_grad(lambda *x: score(*x, None), (0, 1, 2, 3, 4)))(*inputs)
    heads, rows = PartitionSpec("data", None, "tensor"), PartitionSpec("data")
    shards = [NamedSharding(mesh, s) for s in (heads, heads, heads, PartitionSpec(None, "tensor"), rows)]
    split = jax.jit(jax.value_and_grad(lambda *x: score(*x, mesh), (0, 1, 2, 3, 4)), in_shardings=shards)
    compiled = split.lower(*inputs).compile()
    found = compiled(*jax.device_put(inputs, tuple(shards)))
    gaps = [
        float(jnp.abs(a - b).max() / jnp.abs(b).max())
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    ]
    text = compiled.as_text()
    collectives = {name: text.count(f" {name}(") for name in ("all-gather", "all-to-all", "all-reduce")}
    print(json.dumps({"devices": len(jax.devices()), "gaps": gaps, "collectives": collectives}))


if __name__ == "__main__":
    main()

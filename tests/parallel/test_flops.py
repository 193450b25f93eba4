"""Matrix products counted from jaxprs against counts by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from localist_jax import config
from localist_jax.parallel.flops import matrix_flops
from localist_jax.parallel.mesh import make_mesh

A, B = jnp.ones((4, 6)), jnp.ones((6, 5))
PRODUCT = 2 * 4 * 6 * 5


def mapped(a, b):
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    every = PartitionSpec()
    return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(every, every), out_specs=every)(a, b)


@pytest.mark.parametrize(
    ("function", "times"),
    [
        (jnp.matmul, 1),
        (jax.jit(jnp.matmul), 1),
        (lambda a, b: jax.lax.map(lambda _: a @ b, jnp.arange(7)), 7),
        (
            lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b + a @ b, lambda: a @ b),
            2,
        ),  # the more expensive branch
        (jax.grad(lambda a, b: (a @ b).sum(), (0, 1)), 3),
        (
            jax.grad(jax.checkpoint(lambda a, b: jnp.sin(a @ b).sum()), (0, 1)),
            4,
        ),  # recomputed in the backward pass
        (lambda a, b: jnp.einsum("ij,jk->ki", a, b), 1),
        (mapped, 1),
        (lambda a, b: jax.lax.ragged_dot(a, jnp.stack([b, b, b]), jnp.array([1, 2, 1])), 1),
        (lambda a, b: jnp.sin(a), 0),
    ],
)
def test_products_are_counted(function, times):
    assert matrix_flops(jax.make_jaxpr(function)(A, B)) == times * PRODUCT

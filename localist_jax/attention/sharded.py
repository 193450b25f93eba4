"""Attention on a mesh: each device computes its own requests and heads, without communication."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from localist_jax.attention.stats import AttentionStats
from localist_jax.parallel.sharding import mesh_axes, on_each

OPEN_STATISTICS = ("entropy_bits", "fidelity", "gated_mass")


def attend_on_mesh(mesh: Mesh, implementation: Callable, q, k, v, call: dict[str, Any]):
    """Run an implementation of `attend` with batch and key/value heads split over a mesh.

    Without this the compiler would gather keys and values for the loops over tiles. A dimension that its mesh axis
    does not divide is not split: every device then computes all of it.
    """
    batch = mesh_axes("batch", mesh, q.shape[0]) or None
    heads = mesh_axes("kv_heads", mesh, k.shape[2]) or None
    arrays = {name: x for name, x in call.items() if isinstance(x, jax.Array)}
    settings = {name: x for name, x in call.items() if name not in arrays}
    rows, by_head = PartitionSpec(batch, None, heads), PartitionSpec(batch, heads)
    specs = {name: PartitionSpec(batch) for name in arrays}
    specs["filing"] = PartitionSpec(heads)
    for name in ("odds", "relevant"):
        specs[name] = by_head if arrays[name].shape[0] > 1 else PartitionSpec(None, heads)
    stats_specs = None
    if settings["stats"] != "none":
        more = {} if settings["stats"] == "lse" else dict.fromkeys(OPEN_STATISTICS, by_head)
        price = by_head if settings["stats"] == "dense" else None
        stats_specs = AttentionStats(lse=by_head, **more, price_bits=price)
    run = on_each(
        lambda q, k, v, arrays: partial(implementation, **settings)(q, k, v, **arrays),
        mesh,
        (rows, rows, rows, specs),
        (rows, stats_specs),
    )
    return run(q, k, v, arrays)

"""Coordination of many processes: start-up, the part of a batch that each reads, and joint decisions."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from localist_jax.errors import StoppedRun, message
from localist_jax.parallel import sharding
from localist_jax.types import PyTree

Decision = TypeVar("Decision")
EXPLICIT_HOSTS = re.compile(r"(?P<address>[^,]+:\d+),(?P<count>\d+),(?P<index>\d+)")


def start(hosts: str) -> None:
    """Join the other processes of a job; must be called before anything asks JAX for its devices.

    Args:
      hosts: "" for a single process; "auto" to let JAX detect the cluster (Cloud TPU pods, Slurm with `srun`, Open MPI,
        Kubernetes); or "ADDRESS:PORT,COUNT,INDEX": the address of process 0, the number of processes, and the index
        of this one.

    Raises:
      ValueError: if `hosts` has another form, the index is out of range, or JAX finds no cluster.
    """
    if not hosts:
        return
    if hosts == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f"--hosts=auto: JAX found no cluster ({error}); give --hosts=ADDRESS:PORT,COUNT,INDEX"
            ) from error
        return
    match = EXPLICIT_HOSTS.fullmatch(hosts)
    if match is None:
        raise ValueError(f"--hosts: expected auto or ADDRESS:PORT,COUNT,INDEX, got {hosts!r}")
    count, index = int(match["count"]), int(match["index"])
    if index >= count:
        raise ValueError(f"--hosts: expected an index in 0 … {count - 1}, got {index}")
    jax.distributed.initialize(match["address"], count, index)


def is_first() -> bool:
    """Return whether this is process 0, the only one that writes logs and records."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Wait until all processes have reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


class HostsDiffer(StoppedRun):
    """Processes of one job have different inputs, or one of them has an invalid input."""

    status = 2


def compare(**facts: Any) -> None:
    """Check that all processes have the same facts; every process must call it.

    Args:
      facts: values by name that JSON can hold: settings, versions, digests of data.

    Raises:
      HostsDiffer: if they differ; the message names the first field that does, and is the same in every process.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(facts, sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if len({row.tobytes() for row in np.asarray(multihost_utils.process_allgather(digest))}) == 1:
        return
    known = [dict(_leaves(json.loads(told), "")) for told in _gathered(text)]
    for field in dict.fromkeys(field for facts in known for field in facts):
        values = [facts.get(field) for facts in known]
        odd = next((i for i, value in enumerate(values) if value != values[0]), None)
        if odd is not None:
            raise HostsDiffer(
                f"{field}: process {odd} has {values[odd]!r}, process 0 has {values[0]!r}; "
                "give all processes the same value, and start the job again"
            )


def together(make: Callable[[], Decision]) -> Decision:
    """Return `make()`; if it raises an error that a user can fix in any process, all processes stop.

    Otherwise the remaining processes would wait for it for ever.

    Raises:
      HostsDiffer: the error of the first process that has one.
    """
    if jax.process_count() == 1:
        return make()
    error, made = "", None
    try:
        made = make()
    except (ValueError, OSError, RecursionError, OverflowError) as caught:
        error = message(caught)
    bad = [(i, told) for i, told in enumerate(_gathered(error)) if told]
    if bad:
        raise HostsDiffer(f"process {bad[0][0]}: {bad[0][1]}")
    return made  # type: ignore[return-value]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _gathered(text: str) -> list[str]:
    """Return the texts of all processes, in order of process."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).ravel()
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes.tolist(), strict=True)]


def share(rows: NamedSharding, batch: int) -> tuple[int, int]:
    """Return which part of every batch this process has to read, as (part, parts) for `data.train_batches`.

    Processes whose devices hold the same rows read the same part.

    Args:
      rows: sharding of a batch, from `sharding.batch_sharding`.
      batch: number of rows over all processes.

    Raises:
      ValueError: if the batch does not divide over the shards, or the rows of this process are not one equal part.
    """
    parts = sharding.shards("batch", rows.mesh)
    if batch % parts:
        raise ValueError(
            f"config.data.batch: expected a multiple of {parts}, the shards of a batch by config.mesh, got {batch}"
        )
    indices = rows.addressable_devices_indices_map((batch,)).values()
    mine = {part[0].indices(batch)[:2] for part in indices if part is not None}
    first, last = min(start for start, _ in mine), max(stop for _, stop in mine)
    size = sum(stop - start for start, stop in mine)
    if last - first != size or first % size or batch % size:
        raise ValueError(
            f"config.mesh: process {jax.process_index()} would need the rows {sorted(mine)} of each batch, which "
            "are not one equal part of it; give the axes that split batches (slice, data, fsdp) sizes that fill whole "
            "processes"
        )
    return first // size, batch // size


def place(local: PyTree, rows: NamedSharding, batch: int) -> PyTree:
    """Turn the part of a batch that this process read into global arrays on the devices of all processes.

    Args:
      local: NumPy arrays [share of B, …].
      rows: the sharding of the batch.
      batch: B.
    """
    if rows.is_fully_addressable:
        return jax.device_put(local, rows)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(rows, x, (batch, *x.shape[1:])), local
    )


def spread(tree: PyTree, where: NamedSharding) -> PyTree:
    """Place arrays that are equal in all processes, or replicated global arrays, as global arrays with a sharding."""

    def put(x):
        known = np.asarray(x)
        return jax.make_array_from_callback(known.shape, where, lambda part: known[part].copy())

    return jax.device_put(tree, where) if where.is_fully_addressable else jax.tree.map(put, tree)


def everywhere(mesh: Mesh) -> NamedSharding:
    """Return the sharding that replicates an array on every device of a mesh."""
    return NamedSharding(mesh, PartitionSpec())


def whole(tree: PyTree) -> PyTree:
    """Return global arrays as complete NumPy arrays in every process; every process must call it."""

    def read(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(read, tree)


def agreed(decide: Callable[[], Decision]) -> Decision:
    """Return what process 0 decides; the other processes wait for it.

    Numbers computed by each host may differ in the last bit, and a decision that only some hosts make would leave the
    others waiting for ever.

    Args:
      decide: called by process 0 alone, so it must not compute with global arrays; its result must be picklable.
    """
    if jax.process_count() == 1:
        return decide()
    said = pickle.dumps(decide()) if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    told = np.zeros(
        1 << size.bit_length(), np.uint8
    )  # rounded up to powers of 2, since each size is compiled
    told[: len(said)] = np.frombuffer(said, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(told))[:size].tobytes())

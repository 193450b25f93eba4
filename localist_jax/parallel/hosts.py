"""Many processes as one: start-up, what each process reads of a batch, and how they agree on what they decide."""

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
BY_HAND = re.compile(r"(?P<address>[^,]+:\d+),(?P<count>\d+),(?P<index>\d+)")


def start(hosts: str) -> None:
    """Joins the other processes of a job; call it before anything asks JAX for its devices.

    Args:
      hosts: "" for one process alone; "auto" to ask the cluster, as JAX can on Cloud TPU pods, under Slurm (`srun`),
        Open MPI and Kubernetes; or "ADDRESS:PORT,COUNT,INDEX" by hand: where process 0 listens, how many
        processes there are, and which one this is.

    Raises:
      ValueError: another text, an index out of range, or no cluster that JAX knows.
    """
    if not hosts:
        return
    if hosts == "auto":
        try:
            jax.distributed.initialize()
        except ValueError as error:
            raise ValueError(
                f"--hosts=auto: no cluster was found here ({error}); name it: --hosts=ADDRESS:PORT,COUNT,INDEX"
            ) from error
        return
    found = BY_HAND.fullmatch(hosts)
    if found is None:
        raise ValueError(f"--hosts: expected auto or ADDRESS:PORT,COUNT,INDEX, got {hosts!r}")
    count, index = int(found["count"]), int(found["index"])
    if index >= count:
        raise ValueError(f"--hosts: expected an index in 0 … {count - 1}, got {index}")
    jax.distributed.initialize(found["address"], count, index)


def is_first() -> bool:
    """Whether this process speaks for all: it alone writes logs and records."""
    return jax.process_index() == 0


def meet(where: str) -> None:
    """Waits until all processes have come to the same place."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


class HostsDiffer(StoppedRun):
    """Processes of one job that were given different things, or of which one was given something bad."""

    status = 2


def compare(**facts: Any) -> None:
    """Makes sure that all processes know the same; all must call it, before anything is built on these facts.

    Args:
      facts: by name, ready for JSON: settings, versions, digests of data.

    Raises:
      HostsDiffer: they do not; the message names the first field that differs, and is the same in every process.
    """
    if jax.process_count() == 1:
        return
    text = json.dumps(facts, sort_keys=True)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    if len({row.tobytes() for row in np.asarray(multihost_utils.process_allgather(digest))}) == 1:
        return
    known = [dict(_leaves(json.loads(told), "")) for told in _told(text)]
    for field in dict.fromkeys(field for facts in known for field in facts):
        values = [facts.get(field) for facts in known]
        odd = next((i for i, value in enumerate(values) if value != values[0]), None)
        if odd is not None:
            raise HostsDiffer(
                f"{field}: process {odd} has {values[odd]!r}, process 0 has {values[0]!r}; "
                "give all processes the same, and start the job again"
            )


def together(make: Callable[[], Decision]) -> Decision:
    """What `make` returns here; if it raises a ValueError or OSError in any process, all stop.

    One that is left alone would wait for the others for ever, or they for it.

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
    bad = [(i, told) for i, told in enumerate(_told(error)) if told]
    if bad:
        raise HostsDiffer(f"process {bad[0][0]}: {bad[0][1]}")
    return made  # type: ignore[return-value]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _told(text: str) -> list[str]:
    """The texts of all processes, in their order."""
    data = np.frombuffer(text.encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(data)))).ravel()
    padded = np.zeros(max(1, int(sizes.max())), np.uint8)
    padded[: len(data)] = data
    rows = np.asarray(multihost_utils.process_allgather(padded))
    return [row[:size].tobytes().decode() for row, size in zip(rows, sizes.tolist(), strict=True)]


def share(rows: NamedSharding, batch: int) -> tuple[int, int]:
    """Which part of every batch this process has to read: (part, parts), for `data.train_batches`.

    Processes whose devices hold the same rows read the same part.

    Args:
      rows: of a batch, as `sharding.batch_sharding` gives it.
      batch: rows over all processes.

    Raises:
      ValueError: a batch that does not divide, or rows of a process that are no such part.
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
            f"config.mesh: process {jax.process_index()} would need the rows {sorted(mine)} of each batch, which are "
            "no even part of it; give the axes that split batches (slice, data, fsdp) sizes that fill whole processes"
        )
    return first // size, batch // size


def place(local: PyTree, rows: NamedSharding, batch: int) -> PyTree:
    """The part of a batch that this process read, as global arrays on the devices of all processes.

    Args:
      local: NumPy arrays [share of B, …].
      rows: their sharding.
      batch: B.
    """
    if rows.is_fully_addressable:
        return jax.device_put(local, rows)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(rows, x, (batch, *x.shape[1:])), local
    )


def spread(tree: PyTree, where: NamedSharding) -> PyTree:
    """Arrays that are the same in all processes (or global ones that each device has whole), as global arrays there."""

    def put(x):
        known = np.asarray(x)
        return jax.make_array_from_callback(known.shape, where, lambda part: known[part].copy())

    return jax.device_put(tree, where) if where.is_fully_addressable else jax.tree.map(put, tree)


def everywhere(mesh: Mesh) -> NamedSharding:
    """The sharding of what each device of a mesh has whole."""
    return NamedSharding(mesh, PartitionSpec())


def whole(tree: PyTree) -> PyTree:
    """Global arrays as NumPy's, whole in every process; all must ask."""

    def read(x):
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return np.asarray(x)
        return np.asarray(multihost_utils.process_allgather(x, tiled=True))

    return jax.tree.map(read, tree)


def agreed(decide: Callable[[], Decision]) -> Decision:
    """What process 0 decides; the others wait for it.

    Numbers that hosts compute by themselves may differ in the last bit from processor to processor, and a decision
    that only some of them make would leave the others waiting for ever.

    Args:
      decide: run by process 0 alone, so it may not compute with global arrays; its result can be pickled.
    """
    if jax.process_count() == 1:
        return decide()
    said = pickle.dumps(decide()) if is_first() else b""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
    told = np.zeros(1 << size.bit_length(), np.uint8)  # few sizes: each is compiled for
    told[: len(said)] = np.frombuffer(said, np.uint8)
    return pickle.loads(np.asarray(multihost_utils.broadcast_one_to_all(told))[:size].tobytes())

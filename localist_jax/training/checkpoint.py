"""Checkpoints: atomic, asynchronous, strict, and with a manifest that is read first.

Each step is one Orbax checkpoint of items that are committed together: the state, a manifest (format, step, versions,
configuration, topology, data cursor, table of leaves, fingerprints) and the memory of hooks that have any. The manifest
is read first and compared, leaf by leaf, with the wanted state; only then are arrays restored, each directly to its
sharding, and their fingerprints compared. Growth comes after restoring, never during it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import logging
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from localist_jax.errors import message
from localist_jax.training.fingerprint import fingerprints
from localist_jax.types import PyTree

FORMAT = 2
READABLE_FORMATS = (1, 2)  # 1 had no fingerprints
UNWRITABLE = ("No space left on device", "Disk quota exceeded", "File too large", "Read-only file system")
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint")

# The settings that decide a leaf's size, by a part of its path.
HINTS = {
    "gates": "set config.model.block_capacity, heads and layers as in the checkpoint, or grow it",
    "units": "set config.model.block_capacity and block_units as in the checkpoint, or grow it",
    "blocks": "set config.model.block_capacity and anchor_capacity as in the checkpoint, or grow it",
    "pairs": "set config.model.block_capacity as in the checkpoint, or grow it",
    "embedding": "set config.data.vocab_size and config.model.width as in the checkpoint",
    "params/head": "set config.model.tied as in the checkpoint",
}


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, or has another topology."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      directory: folder with one folder per step; created by the first save.
      keep: number of checkpoints to keep; None: read only.
    """

    def __init__(self, directory: str | Path, keep: int | None = None):
        self.directory = Path(directory).absolute()
        self._keep = keep
        self._manager: ocp.CheckpointManager | None = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self) -> ocp.CheckpointManager:
        if self._manager is None:
            if self._keep is None and not self.directory.is_dir():
                raise CheckpointError(
                    f"{self.directory}: no checkpoints here; train first (`localist train`)"
                )
            # Orbax logs every file, and the traceback of errors that it also raises.
            logging.getLogger("absl").setLevel(logging.CRITICAL)
            with _quiet():  # it warns that a read-only manager does not write
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=self._keep,
                    create=self._keep is not None,
                    cleanup_tmp_directories=self._keep is not None,
                    read_only=self._keep is None,
                )
                self._manager = ocp.CheckpointManager(
                    self.directory, options=options, item_names=("state", "manifest", "memory")
                )
        return self._manager

    def steps(self) -> list[int]:
        """Return the steps with a complete checkpoint, in ascending order."""
        return sorted(self._open().all_steps())

    def latest(self) -> int | None:
        """Return the last step with a complete checkpoint; None if there is none."""
        return self._open().latest_step()

    def save(
        self,
        step: int,
        state: PyTree,
        *,
        manifest: dict[str, Any],
        cursor: bytes | dict,
        memory: list[PyTree] | None = None,
    ) -> None:
        """Start saving, and return once the state is copied, so that training may donate it.

        Args:
          step: number of steps done.
          state: pytree of arrays and typed keys.
          manifest: configuration and topology, as JSON can hold them.
          cursor: data cursor, `get_state()` of the iterator.
          memory: memory of hooks; readers of the state ignore it.
        """
        about = {
            "format": FORMAT,
            "step": step,
            "versions": {name: metadata.version(name) for name in LIBRARIES},
            **manifest,
            "cursor": _pack_cursor(cursor),
            "leaves": _leaf_table(state),
        }
        arrays, memory = jax.tree.map(_key_to_data, (state, memory or []))
        about["fingerprints"] = fingerprints({"state": arrays, "memory": memory})
        about["digest"] = _digest(about)
        items = {"state": ocp.args.StandardSave(arrays), "manifest": ocp.args.JsonSave(about)}
        if memory:
            items["memory"] = ocp.args.StandardSave(memory)
        with self._failure_as_error():
            self._open().save(step, args=ocp.args.Composite(**items), force=True)

    def wait(self) -> None:
        """Wait until the last save is on disk.

        Raises:
          CheckpointError: if it could not be written.
        """
        if self._manager is not None:
            with self._failure_as_error():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait for the last save, then release the folder.

        Raises:
          CheckpointError: if the last save could not be written.
        """
        manager, self._manager = self._manager, None
        if manager is not None:
            with self._failure_as_error():
                manager.close()

    def manifest(self, step: int | None = None) -> dict[str, Any]:
        """Return the manifest of the checkpoint at `step` (default: the last).

        Raises:
          CheckpointError: if there is no such checkpoint, or it is damaged or of a newer format.
        """
        step = self._existing(step)
        with self._damage_as_error(step):
            items = ocp.args.Composite(manifest=ocp.args.JsonRestore())
            about = self._open().restore(step, args=items)["manifest"]
        if about.get("format") not in READABLE_FORMATS:
            raise CheckpointError(
                f"checkpoint {step}: format {about.get('format')}, this version reads {FORMAT}; "
                "open it with the version that wrote it"
            )
        if about["format"] >= 2 and about.pop("digest", None) != _digest(about):
            raise self._damaged(step, "the manifest differs from what was saved")
        return about

    def restore(self, wanted: PyTree, step: int | None = None) -> tuple[PyTree, Any]:
        """Restore the state at `step` (default: the last) and its data cursor.

        Args:
          wanted: the abstract state: shape, dtype and sharding of every leaf.
          step: number of steps done.

        Raises:
          CheckpointError: if there is no such checkpoint, or it is damaged or of another topology (names the first
            leaf that differs).
        """
        step = self._existing(step)
        about = self.manifest(step)
        _compare(about["leaves"], _leaf_table(wanted), step)
        with self._damage_as_error(step):
            items = ocp.args.Composite(state=ocp.args.StandardRestore(jax.tree.map(_key_shape, wanted)))
            arrays = self._open().restore(step, args=items)["state"]
        self._verify(step, {"state": arrays}, about)
        state = jax.tree.map(lambda like, array: _data_to_key(like, array), wanted, arrays)
        return state, _unpack_cursor(about["cursor"])

    def cursor(self, step: int) -> Any:
        """Return the data cursor of the checkpoint at `step`."""
        return _unpack_cursor(self.manifest(step)["cursor"])

    def restore_memory(self, wanted: list[PyTree], step: int) -> list[PyTree]:
        """Restore the memory of hooks at `step`; `wanted` gives its shapes.

        Raises:
          CheckpointError: if the checkpoint has none, or one of other shapes.
        """
        with self._damage_as_error(step):
            items = ocp.args.Composite(memory=ocp.args.StandardRestore(jax.tree.map(_key_to_data, wanted)))
            memory = self._open().restore(step, args=items)["memory"]
        self._verify(step, {"memory": memory}, self.manifest(step))
        return jax.tree.map(_data_to_key, wanted, memory)

    def _verify(self, step: int, arrays: PyTree, about: dict[str, Any]) -> None:
        if about["format"] < 2:
            return
        for path, sums in fingerprints(arrays).items():
            if about["fingerprints"][path] != sums:
                raise self._damaged(step, f"{path} differs from what was saved")

    def _existing(self, step: int | None) -> int:
        steps = self.steps()
        if not steps:
            raise CheckpointError(
                f"{self.directory}: no complete checkpoint here; train first (`localist train`)"
            )
        if step is not None and step not in steps:
            raise CheckpointError(
                f"{self.directory}: no checkpoint {step}; there are {', '.join(map(str, steps))}"
            )
        return steps[-1] if step is None else step

    @contextlib.contextmanager
    def _failure_as_error(self):
        try:
            yield
        except (
            Exception
        ) as error:  # errors of a save in the background, of many types, come up at the next call
            if isinstance(error, CheckpointError):
                raise
            text = message(error)
            known = next((e for e in UNWRITABLE if e in text), text[:200])
            raise CheckpointError(
                f"{self.directory}: a checkpoint could not be written ({known}); earlier ones are complete: free some "
                "space, or repair the folder, and start the run again to continue from the last"
            ) from error

    @contextlib.contextmanager
    def _damage_as_error(self, step: int):
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:  # Orbax and TensorStore raise many types; all mean that files are damaged
            reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
            raise self._damaged(step, reason) from error

    def _damaged(self, step: int, reason: str) -> CheckpointError:
        earlier = [s for s in self.steps() if s < step]
        remedy = f"delete it to continue from {earlier[-1]}" if earlier else "there is no earlier one"
        return CheckpointError(f"checkpoint {step} in {self.directory} is damaged ({reason}); {remedy}")


@contextlib.contextmanager
def _quiet():
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_to_data(leaf):
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _key_shape(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    if not _is_key(leaf):
        return leaf
    data = jax.eval_shape(jax.random.key_data, leaf)
    return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=leaf.sharding)


def _data_to_key(like, array):
    return jax.random.wrap_key_data(array) if _is_key(like) else array


def _leaf_table(state: PyTree) -> dict[str, list]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): [list(leaf.shape), str(leaf.dtype)]
        for path, leaf in leaves
    }


def _compare(saved: dict[str, list], wanted: dict[str, list], step: int) -> None:
    for path in wanted.keys() | saved.keys():
        if path not in saved or path not in wanted:
            differs = "lacks" if path not in saved else "has an extra"
            raise CheckpointError(
                f"checkpoint {step} {differs} leaf {path}; it was saved by another architecture: "
                "use its own configuration (config.json beside it), or another --workdir"
            )
    for path, (shape, dtype) in wanted.items():
        if saved[path] != [shape, dtype]:
            hint = next(
                (text for part, text in HINTS.items() if part in path), "use the checkpoint's configuration"
            )
            raise CheckpointError(
                f"checkpoint {step}: {path} is {saved[path][1]}{saved[path][0]}, but the configuration asks for "
                f"{dtype}{shape}; {hint}, or use another --workdir"
            )


def _digest(about: dict[str, Any]) -> str:
    """Return the digest of a manifest, which must not contain one."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _pack_cursor(cursor: bytes | dict) -> Any:
    return {"base64": base64.b64encode(cursor).decode()} if isinstance(cursor, bytes) else cursor


def _unpack_cursor(stored: Any) -> Any:
    return base64.b64decode(stored["base64"]) if set(stored) == {"base64"} else stored

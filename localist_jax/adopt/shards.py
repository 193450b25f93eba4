"""Safetensors files of a checkpoint, read strip by strip and written one shard at a time; never pickle."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from localist_jax.adopt.tensors import COMPUTED, EMBEDDING, HEAD, Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
ADAPTER = "adapter_config.json"
PART = re.compile(r"model-\d+(-of-\d+)?\.safetensors")
SHARD_BYTES = 2_000_000_000
STRIP_BYTES = 8_000_000  # of a tensor, read at a time: whole rows, at least one


class Shards:
    """The tensors of a checkpoint folder, checked by name, shape and dtype before any is read.

    Raises (on entering):
      ValueError: no safetensors here, those of two saves, a file that is missing, damaged or cut short, or a tensor
        that is missing, unknown, of another shape, or of a dtype that is not float32, bfloat16 or float16.
    """

    def __init__(self, folder: Path, wanted: list[Tensor]):
        self._folder, self._wanted = folder, wanted
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}
        self._stored: dict[str, str] = {}  # name of a tensor in its file, where it is another

    def __enter__(self) -> Shards:
        try:
            self._open()
            self.dtype = self._check()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[tuple[Tensor, int, np.ndarray]]:
        """Every wanted tensor strip by strip: the tensor, the strip's first row, its rows; hold one at a time."""
        for tensor in self._wanted:
            values = self._slice(tensor.name)
            for start, end in strips(tensor.shape):
                try:
                    strip = values[start:end]
                except SafetensorError as error:
                    raise ValueError(
                        f"{self._folder}: {tensor.name} cannot be read ({_short(error)})"
                    ) from error
                yield tensor, start, strip
                del strip

    def _open(self) -> None:
        for name, names in _files(self._folder).items():
            path = self._folder / name
            if not path.is_file():
                raise ValueError(f"{path}: missing, though {INDEX} names it; download it again")
            try:
                file = self._stack.enter_context(safe_open(path, framework="np"))
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path}: damaged or cut short ({_short(error)}); download it again"
                ) from error
            held = set(file.keys())
            if names is not None and held != names:
                odd = sorted(held ^ names)[0]
                where = "lacks" if odd in names else "holds, unknown to the index,"
                raise ValueError(f"{path}: {where} {odd}; file and {INDEX} are not of one checkpoint")
            twice = sorted(held & self._file_of.keys())
            if twice:
                raise ValueError(f"{path}: {twice[0]} stands in two files")
            self._file_of |= dict.fromkeys(held, file)

    def _check(self) -> str:
        wanted = {tensor.name: tensor for tensor in self._wanted}
        if HEAD not in wanted and HEAD in self._file_of and EMBEDDING not in self._file_of:
            self._stored[EMBEDDING] = HEAD  # tied, and written out once, under the other name
            self._file_of[EMBEDDING] = self._file_of.pop(HEAD)
        missing = [name for name in wanted if name not in self._file_of]
        if missing:
            raise ValueError(f"{self._folder}: lacks {some(missing)}; config.json asks for it")
        extra = [x for x in self._file_of if x not in wanted and not COMPUTED.fullmatch(x)]
        if extra == [HEAD]:  # tied, and written out all the same
            self._same(HEAD, EMBEDDING)
        elif extra:
            raise ValueError(f"{self._folder}: holds {some(extra)}, which this model has no place for")
        seen: dict[str, str] = {}
        for name, tensor in wanted.items():
            about = self._slice(name)
            shape, dtype = tuple(about.get_shape()), about.get_dtype()
            if shape != tensor.shape:
                raise ValueError(
                    f"{self._folder}: {name}: config.json makes it {list(tensor.shape)}, the file holds {list(shape)}"
                )
            if dtype not in DTYPES:
                raise ValueError(f"{self._folder}: {name}: expected F32, BF16 or F16, got {dtype}")
            seen.setdefault(dtype, name)
        return DTYPES[next(iter(seen))] if len(seen) == 1 else "float32"

    def _slice(self, name: str) -> Any:
        return self._file_of[name].get_slice(self._stored.get(name, name))

    def _same(self, name: str, other: str) -> None:
        one, two = (self._slice(x) for x in (name, other))
        same = one.get_shape() == two.get_shape() and all(
            np.array_equal(one[start:end], two[start:end]) for start, end in strips(one.get_shape())
        )
        if not same:
            raise ValueError(
                f"{self._folder}: {name} differs from {other}, but config.json says tie_word_embeddings"
            )


def strips(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each strip of a tensor; as if all were float32."""
    rows, of_row = shape[0], 4 * math.prod(shape[1:])
    step = max(1, STRIP_BYTES // of_row)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))


def _files(folder: Path) -> dict[str, set[str] | None]:
    """File names, and the tensors that the index puts in each (None without an index).

    Two saves in one folder are refused: neither file tells which of them is meant.
    """
    if (folder / ADAPTER).is_file():
        raise ValueError(
            f"{folder}: {ADAPTER}: expected whole weights, got an adapter beside them; merge it into the weights, "
            "or remove it"
        )
    files = _named(folder)
    parts = [path.name for path in folder.glob("model*.safetensors") if PART.fullmatch(path.name)]
    other = sorted({*parts, *([SINGLE] if (folder / SINGLE).is_file() else [])} - files.keys())
    if other and all((folder / name).is_file() for name in files):
        read = INDEX if (folder / INDEX).is_file() else SINGLE
        raise ValueError(
            f"{folder}: {other[0]} and {read} are of two saves, and one of them is out of date; remove the files of "
            "the save that is not meant"
        )
    return files


def _named(folder: Path) -> dict[str, set[str] | None]:
    if (folder / INDEX).is_file():
        try:
            table = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
            files: dict[str, set[str] | None] = {name: set() for name in table.values()}
            for tensor, name in table.items():
                files[name].add(tensor)  # type: ignore[union-attr]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{folder / INDEX}: not an index with a weight_map; copy it again") from error
        for name in files:
            if Path(name).name != name:
                raise ValueError(f"{folder / INDEX}: names {name!r}, which is not a file of this folder")
        return files
    if (folder / SINGLE).is_file():
        return {SINGLE: None}
    pickled = [p.name for p in folder.glob("*.bin")] + [p.name for p in folder.glob("*.pth")]
    why = f"; {pickled[0]} is a pickle, which is never read: convert it to safetensors" if pickled else ""
    raise ValueError(f"{folder}: neither {SINGLE} nor {INDEX} is here{why}")


def write(folder: Path, named: Iterable[tuple[str, np.ndarray]], shard_bytes: int = SHARD_BYTES) -> int:
    """Writes tensors in files of at most `shard_bytes` (or one tensor); holds one file's at a time.

    Returns:
      Bytes of all tensors.
    """
    shards: list[list[str]] = []
    held: dict[str, np.ndarray] = {}
    total = size = 0

    def flush() -> None:
        save_file(held, folder / f"shard-{len(shards)}", metadata={"format": "pt"})
        shards.append(list(held))
        held.clear()

    for name, values in named:
        if held and size + values.nbytes > shard_bytes:
            flush()
            size = 0
        held[name] = values
        size, total = size + values.nbytes, total + values.nbytes
    flush()
    weight_map: dict[str, str] = {}
    for i, names in enumerate(shards):
        final = SINGLE if len(shards) == 1 else f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        (folder / f"shard-{i}").replace(folder / final)
        weight_map |= dict.fromkeys(names, final)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return total


def some(names: list[str]) -> str:
    """The first name, and how many more there are."""
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120]

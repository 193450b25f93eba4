"""GGUF files: what they say of themselves, and their tensors, dequantised strip by strip.

A file holds metadata (key → value), then a table of tensors, then the tensors. Quantised ones are rows of blocks; the
package `gguf` turns blocks into float32. Rows of the llama architecture's queries and keys stand in another order
there (rotary channels h and h + H/2 side by side) and are put back.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from localist_jax import config
from localist_jax.adopt.shards import some, strips
from localist_jax.adopt.tensors import Tensor

SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
STRING, ARRAY = 8, 9
VERSIONS = (2, 3)
ALIGNMENT = 32  # of the tensors, where the file does not say
DEEPEST = 4  # of arrays within arrays
READABLE = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
)  # fmt: skip
EXACT = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PERMUTED = ("llama", "smollm3")  # architectures whose rotary pairs stand side by side
NAMES = {  # of one layer: our name ← the file's
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
EMBEDDING, HEAD, ROPE_FACTORS = "token_embd.weight", "output.weight", "rope_freqs.weight"
WHOLE = {
    "model.embed_tokens.weight": EMBEDDING,
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": HEAD,
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file.

    Attributes:
      shape: [out, in], or [channels].
      kind: name of its type, such as Q4_1.
      start, end: bytes of the file.
    """

    shape: tuple[int, ...]
    kind: str
    start: int
    end: int


class GGUF:
    """A GGUF file: its metadata and its table of tensors; tensors are read when they are asked for.

    Attributes:
      path: of the file.
      metadata: values by key; arrays are lists.
      tensors: entries by name.

    Raises:
      ValueError: not such a file, another version, damaged, cut short, or one part of many.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"{self.path}: no such file")
        self._data = np.zeros(0, np.uint8)
        if self.path.stat().st_size:
            self._data = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        if bytes(self._data[:4]) != b"GGUF":
            raise ValueError(f"{self.path}: not a GGUF file (it does not begin with GGUF); download it again")
        self._at = 4
        try:
            version = self._scalar("I")
            if version not in VERSIONS:
                swapped = version and not version & 0xFFFF
                said = "of a big-endian machine" if swapped else f"of version {version}"
                raise ValueError(f"expected GGUF version 2 or 3, little-endian; this one is {said}")
            count, keys = self._scalar("Q"), self._scalar("Q")
            self.metadata = {self._string(): self._value(self._scalar("I")) for _ in range(keys)}
            table = [self._described() for _ in range(count)]
            self.tensors = self._placed(table)
        except (struct.error, ValueError, TypeError, OverflowError, MemoryError) as error:
            raise ValueError(
                f"{self.path}: {' '.join(str(error).split())[:200]}; download it again, or convert it anew"
            ) from error
        if self.metadata.get("split.count", 1) > 1:
            raise ValueError(
                f"{self.path}: split.count is {self.metadata['split.count']}: one part of a split file; "
                "join the parts with `llama-gguf-split --merge`"
            )

    def rows(self, name: str, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Rows of a tensor as float32: [rows, in], or [channels] where it has one axis only."""
        entry = self.tensors[name]
        kind = GGMLQuantizationType[entry.kind]
        stored = self._data[entry.start : entry.end]
        if len(entry.shape) == 1:
            return quants.dequantize(stored, kind)[rows]
        return quants.dequantize(np.ascontiguousarray(stored.reshape(entry.shape[0], -1)[rows]), kind)

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._bytes(struct.calcsize(f"<{code}")))[0]

    def _bytes(self, count: int) -> bytes:
        if count > self._data.size - self._at:
            raise ValueError("damaged or cut short in its metadata")
        start, self._at = self._at, self._at + count
        return self._data[start : self._at].tobytes()

    def _string(self) -> str:
        return self._bytes(self._scalar("Q")).decode("utf-8", "replace")

    def _value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self._string()
        if kind in SCALARS:
            return self._scalar(SCALARS[kind])
        if kind != ARRAY or depth == DEEPEST:
            raise ValueError(f"metadata of unknown type {kind}: damaged, or too new")
        inner, count = self._scalar("I"), self._scalar("Q")
        if inner in SCALARS:
            code = np.dtype(SCALARS[inner]).newbyteorder("<")
            return np.frombuffer(self._bytes(count * code.itemsize), code).tolist()
        if count > self._data.size - self._at:  # each takes a byte at the least
            raise ValueError("damaged or cut short in its metadata")
        return [self._value(inner, depth + 1) for _ in range(count)]

    def _described(self) -> tuple[str, tuple[int, ...], int, int]:
        name, axes = self._string(), self._scalar("I")
        if not 1 <= axes <= 4:
            raise ValueError(f"{name}: expected 1 to 4 axes, got {axes}: damaged")
        shape = tuple(self._scalar("Q") for _ in range(axes))[::-1]
        return name, shape, self._scalar("I"), self._scalar("Q")

    def _placed(self, table: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, Entry]:
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment: expected at least 1, got {alignment!r}")
        begin = -(-self._at // alignment) * alignment
        entries: dict[str, Entry] = {}
        for name, shape, number, offset in table:
            if name in entries:
                raise ValueError(f"{name} stands in it twice")
            try:
                kind = GGMLQuantizationType(number)
            except ValueError:
                raise ValueError(f"{name}: unknown tensor type {number}") from None
            size = 1
            for length in shape:
                size *= length
            block, stored = GGML_QUANT_SIZES[kind]
            if not size or shape[-1] % block:
                raise ValueError(f"{name}: rows of {shape[-1]} values are not blocks of {block}: damaged")
            start = begin + offset
            end = start + size // block * stored
            if end > self._data.size:
                raise ValueError(
                    f"cut short: {name} ends at byte {end}, the file has {self._data.size} bytes"
                )
            entries[name] = Entry(shape, kind.name, start, end)
        return entries


class Weights:
    """The tensors of a GGUF file under the names of a checkpoint folder; used as `shards.Shards` is.

    Raises (on entering):
      ValueError: a tensor that is missing, unknown, of another shape, or of a type that is not read.
    """

    def __init__(self, path: Path, wanted: list[Tensor], model: config.Model):
        self._path, self._wanted, self._model = path, wanted, model

    def __enter__(self) -> Weights:
        self._file = GGUF(self._path)
        self._permuted = self._file.metadata.get("general.architecture") in PERMUTED
        self.dtype = self._check()
        return self

    def __exit__(self, *_: object) -> None:
        del self._file

    def __iter__(self) -> Iterator[tuple[Tensor, int, np.ndarray]]:
        """Every wanted tensor strip by strip: the tensor, the strip's first row, its rows; hold one at a time."""
        for tensor in self._wanted:
            order = self._order(tensor)
            for start, end in strips(tensor.shape):
                rows = slice(start, end) if order is None else order[start:end]
                strip = self._file.rows(name_in_file(tensor.name), rows)
                if not np.isfinite(strip).all():
                    raise ValueError(f"{self._path}: {name_in_file(tensor.name)}: not finite; damaged")
                yield tensor, start, strip
                del strip

    def _order(self, tensor: Tensor) -> np.ndarray | None:
        """Rows of the file in our order; None where it is the same."""
        turned = tensor.path[-1] in ("query", "key")
        if not (self._permuted and turned):
            return None
        H = self._model.head_size
        return np.arange(tensor.shape[0]).reshape(-1, H // 2, 2).swapaxes(1, 2).reshape(-1)

    def _check(self) -> str:
        held = self._file.tensors
        wanted = {name_in_file(tensor.name): tensor for tensor in self._wanted}
        missing = [name for name in wanted if name not in held]
        if missing:
            raise ValueError(f"{self._path}: lacks {some(missing)}; its metadata asks for it")
        extra = [name for name in held if name not in wanted and name != ROPE_FACTORS]
        if extra:
            raise ValueError(f"{self._path}: holds {some(extra)}, which this model has no place for")
        for name, tensor in wanted.items():
            entry = held[name]
            if entry.shape != tensor.shape:
                raise ValueError(
                    f"{self._path}: {name}: its metadata makes it {list(tensor.shape)}, "
                    f"the file holds {list(entry.shape)}"
                )
            if entry.kind not in READABLE:
                raise ValueError(
                    f"{self._path}: {name}: expected one of {', '.join(READABLE)}, got {entry.kind}; not supported"
                )
        kinds = {held[name].kind for name in wanted}
        return EXACT.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def name_in_file(name: str) -> str:
    """The name in a GGUF file of a tensor of a checkpoint folder.

    >>> name_in_file("model.layers.3.self_attn.q_proj.weight")
    'blk.3.attn_q.weight'
    """
    if name in WHOLE:
        return WHOLE[name]
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    part, _, suffix = rest.rpartition(".")
    return f"blk.{layer}.{NAMES[part]}.{suffix}"

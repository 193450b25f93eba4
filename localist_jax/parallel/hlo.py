"""Parse the text of a compiled program: its collective communication and its memory traffic.

XLA's own `cost_analysis` counts the body of a loop once. Here every instruction counts as often as it runs; the text
gives the trip counts of loops.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "f8e4m3fn": 1, "f8e5m2": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8,
}  # fmt: skip
ARRAY = re.compile(r"\b(" + "|".join(BYTES) + r")\[([\d,]*)\](\{[^}]*\})?")
HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
LINE = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = (.*?) ([a-z][\w\-]*)\(([^)]*)\)(.*)$")
CALLED = re.compile(r"(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
FREE = {  # operations that move no data, or whose called computations move it
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "opt-barrier", "iota",
}  # fmt: skip
FUSED_SCATTER = "all-reduce-scatter"  # TPUs: an all-reduce of which each device keeps its part
ON_CHIP = "S(1)"  # a buffer in a TPU's vector memory


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective operation of the program, per device.

    Attributes:
      kind: one of `KINDS`.
      bytes: size of its result (of its operand, for a reduce-scatter).
      group: number of devices that take part together.
      times: how often it runs in one call of the program.
      ids: devices of its first group, as the program numbers them.
      where: the JAX operation that it comes from.
    """

    kind: str
    bytes: int
    group: int
    times: int
    ids: tuple[int, ...]
    where: str

    @property
    def wire(self) -> float:
        """Bytes that each device has to send in one call of the program, with a ring algorithm."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1.0}.get(self.kind, share)
        return self.bytes * factor * self.times


@dataclasses.dataclass(frozen=True)
class HloProgram:
    """The work of one device in one call of a program.

    Attributes:
      collectives: its collective operations, each once.
      memory_bytes: bytes that its instructions read from and write to main memory.
    """

    collectives: tuple[Collective, ...]
    memory_bytes: float


@dataclasses.dataclass(frozen=True)
class _Line:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    rest: str
    root: bool


def read(text: str) -> HloProgram:
    """Parse the text that `compiled.as_text()` returns."""
    computations, entry = _computations(text)
    times: dict[str, int] = {}
    _count_runs(computations, entry, 1, times)
    inner = {name for lines in computations.values() for line in lines for name in _inlined(line)}
    collectives: dict[str, Collective] = {}
    moved = 0.0
    for name, runs in times.items():
        types = {line.name: line.type for line in computations[name]}
        for line in computations[name]:
            if (one := _collective(line, types, runs, FUSED_SCATTER in name)) is not None:
                # An operation that is split over other instructions has the same channel in each of them.
                channel = re.search(r"channel_id=(\d+)", line.rest)
                key = channel[1] if channel else f"{name}/{line.name}"
                if (
                    key not in collectives
                    or one.bytes * one.times > collectives[key].bytes * collectives[key].times
                ):
                    collectives[key] = one
            if name not in inner:
                moved += runs * _moved(line, types, computations)
    return HloProgram(tuple(collectives.values()), moved)


def _computations(text: str) -> tuple[dict[str, list[_Line]], str]:
    computations: dict[str, list[_Line]] = {}
    entry, current = "", None
    for raw in text.splitlines():
        if current is None:
            if head := HEAD.match(raw):
                current = head[1]
                computations[current] = []
                entry = current if raw.startswith("ENTRY") else entry
        elif raw.startswith("}"):
            current = None
        elif line := LINE.match(raw):
            root, name, kind, op, operands, rest = line.groups()
            # The operand of a parameter is its number, that of a constant its value.
            literal = op in ("parameter", "constant")
            names = (operands,) if literal else tuple(re.findall(r"%([\w.\-]+)", operands))
            computations[current].append(_Line(name, kind, op, names, rest, root is not None))
    return computations, entry


def _count_runs(computations, name: str, runs: int, times: dict[str, int]) -> None:
    """Set how often each computation runs: the maximum over its callers."""
    times[name] = max(times.get(name, 0), runs)
    for line in computations.get(name, ()):
        trips = _trips(line, computations) if line.op == "while" else 1
        for called in _called(line):
            if called in computations and runs * trips > times.get(called, 0):
                _count_runs(computations, called, runs * trips, times)


def _trips(line: _Line, computations) -> int:
    """Return the trip count of a loop: from the text, or the only bound in its condition; 1 if neither is known."""
    if known := TRIPS.search(line.rest):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line.rest)
    bounds = [
        int(one.operands[0])
        for one in computations.get(condition[1] if condition else "", ())
        if one.op == "constant" and one.operands[0].isdigit()
    ]
    return bounds[0] if len(bounds) == 1 else 1


def _called(line: _Line) -> Iterator[str]:
    yield from CALLED.findall(line.rest)
    for names in BRANCHES.findall(line.rest):
        yield from re.findall(r"%?([\w.\-]+)", names)


def _inlined(line: _Line) -> Iterator[str]:
    """Yield called computations whose instructions do not access memory separately."""
    if line.op not in ("while", "conditional", "call", "async-start"):
        yield from _called(line)


def size_of(kind: str, everywhere: bool = True) -> int:
    """Return the bytes of the arrays of a type; arrays on the chip count only if `everywhere`."""
    total = 0
    for element, shape, layout in ARRAY.findall(kind):
        if everywhere or ON_CHIP not in layout:
            total += BYTES[element] * math.prod(int(n) for n in shape.split(",") if n)
    return total


def _collective(line: _Line, types: dict[str, str], runs: int, scattered: bool) -> Collective | None:
    kind = "reduce-scatter" if scattered and line.op == "all-reduce" else line.op.removesuffix("-start")
    if kind not in KINDS:
        return None
    operands = sum(size_of(types.get(name, "")) for name in line.operands)
    result = size_of(line.type)
    if line.op.endswith("-start"):  # its result includes its operands
        result = max(result - operands, 0) or operands
    ids, group = _group(line.rest)
    source = re.search(r'op_name="([^"]*)"', line.rest)
    where = source[1] if source else ""
    return Collective(kind, operands if kind == "reduce-scatter" else result, group, runs, ids, where)


def _group(rest: str) -> tuple[tuple[int, ...], int]:
    """Return the first group of devices, and its size."""
    if pairs := re.search(r"source_target_pairs=\{\{(\d+),(\d+)", rest):
        return (int(pairs[1]), int(pairs[2])), 2
    if explicit := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        ids = tuple(int(n) for n in explicit[1].split(","))
        return ids, len(ids)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        grid = _grid(iota[2], iota[3]).reshape(_numbers(iota[1]))
        return tuple(grid[0].tolist()), grid.shape[1]
    named = re.search(r"replica_groups=mesh\[([^\]]*)\].*?\{([^}]*)\}", rest)
    if named is None:
        return (), 1
    sizes = {name: int(n) for name, n in re.findall(r"'(\w+)'=(\d+)", named[1])}
    axes = re.findall(r"'(\w+)'", named[2])
    order = re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?", rest)
    grid = _grid(order[1], order[2]) if order else np.arange(math.prod(sizes.values()))
    grid = grid.reshape(tuple(sizes.values()))
    first = grid[tuple(slice(None) if name in axes else 0 for name in sizes)].reshape(-1)
    return tuple(first.tolist()), first.size


def _grid(shape: str, order: str | None) -> np.ndarray:
    sizes = _numbers(shape)
    grid = np.arange(math.prod(sizes)).reshape(sizes)
    return grid.transpose(_numbers(order)) if order else grid


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(","))


def _moved(line: _Line, types: dict[str, str], computations) -> float:
    """Return the bytes that an instruction reads and writes in main memory; a slice counts only its own bytes."""
    if line.op in FREE or line.op.endswith("-done") or line.op in KINDS:
        return 0.0
    result = size_of(line.type, everywhere=False)
    reads = [size_of(types.get(name, ""), everywhere=False) for name in line.operands]
    if line.op in ("dynamic-slice", "gather"):
        return 2.0 * result
    if line.op in ("dynamic-update-slice", "scatter"):
        return 2.0 * sum(reads[1:])
    if line.op == "fusion" and (called := CALLED.search(line.rest)) and called[1] in computations:
        return _fused(computations[called[1]], result, reads)
    return result + sum(reads)


def _fused(body: list[_Line], result: float, reads: list[int]) -> float:
    parameters = {line.name: int(line.operands[0]) for line in body if line.op == "parameter"}
    types = {line.name: line.type for line in body}
    total, written = 0.0, float(result)
    for name, i in parameters.items():
        users = [line for line in body if name in line.operands]
        whole = reads[i] if i < len(reads) else 0
        sliced = [line for line in users if line.op in ("dynamic-slice", "gather")]
        updated = [u for u in users if u.op == "dynamic-update-slice" and u.operands[0] == name]
        if users and len(sliced) == len(users):
            total += min(whole, sum(size_of(line.type) for line in sliced))
        elif users and len(updated) == len(users):
            written = max(0.0, written - whole)  # updated in place: only the update is written
            total += sum(size_of(types.get(u.operands[1], "")) for u in updated)
        else:
            total += whole
    return total + written

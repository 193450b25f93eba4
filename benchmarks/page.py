"""Figures, targets and tables made from the attention benchmark's timings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from localist_jax.report.study import table

WAYS = {"fwd": "forward", "fwdbwd": "forward and backward"}
LONG_ENOUGH = 2048  # tokens from which the targets hold
FASTER_THAN_JAXNN, SLOWER_THAN_SDPA, OF_DENSITY, OVERHEAD, EXPONENT, TRAINS_IN = (
    4.0,
    1.5,
    0.6,
    0.15,
    1.1,
    24.0,
)
SOFT_OF_CUDNN, OVER_IDEAL = 0.7, 1.5  # on GPUs: speed at λ=0.9 forward, time at λ=1 over density × dense
FULL_BLOCKS = (4, 8, 16)  # 1/density whose blocks hold at least 512 of 8,192 tokens
NOT_MEASURED = "not measured"


@dataclasses.dataclass(frozen=True)
class Found:
    """The findings of a `benchmarks.attention.Bench`, and PyTorch's version or why it is missing."""

    backend: str
    timings: Mapping[str, Any]
    refused: Mapping[str, Any]
    memory: Mapping[str, Any]
    flex: Mapping[str, Any]
    torch: str | None
    limits: tuple[float, int]
    blocks: int
    density_tokens: int
    operations: float  # of a call of tiles' products
    tiles: str  # who takes which, in words
    shape: str  # of heads, in words

    def seconds(self, part: str, name: str) -> dict[int, float]:
        """Median by size."""
        return {size: one["median"] for size, one in self.timings.get(part, {}).get(name, {}).items()}

    def ratio(self, part: str, above: str, below: str) -> dict[int, float]:
        """Median over median, where both were measured."""
        a, b = self.seconds(part, above), self.seconds(part, below)
        return {size: a[size] / b[size] for size in a if size in b}

    def bytes(self, part: str, name: str) -> dict[int, int]:
        """Memory by size."""
        return self.memory.get(part, {}).get(name, {})

    def cell(self, part: str, name: str, size: int, unit: float = 1e-3) -> str:
        """Median ± half the range of the middle half of the repetitions, or why there is none."""
        one = self.timings.get(part, {}).get(name, {}).get(size)
        if one is None:
            return self.refused.get(part, {}).get(name, {}).get(size, "")
        middle, half = one["median"] / unit, (one["high"] - one["low"]) / 2 / unit
        digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
        return f"{middle:,.{digits}f} ± {half:,.{digits}f}"


def exponent(by_size: Mapping[int, float], start: int) -> float | None:
    """p of the power law c·T^p that fits best, from `start` on; None from fewer than two sizes.

    >>> exponent({1: 9.0, 2: 2.0, 4: 8.0}, start=2)
    2.0
    """
    sizes = [size for size in sorted(by_size) if size >= start]
    if len(sizes) < 2:
        return None
    return round(float(np.polyfit(np.log(sizes), np.log([by_size[size] for size in sizes]), 1)[0]), 3)


def figures_of(found: Found) -> dict[str, Any]:
    """Figures by name; a ratio stands by the size it was measured at."""
    b = found.backend
    values: dict[str, Any] = {}
    for way in WAYS:
        values[f"{b}_dense_over_jaxnn_{way}"] = found.ratio("dense", f"jaxnn_{way}", f"dial0_{way}")
        values[f"{b}_dense_over_torch_sdpa_{way}"] = found.ratio("dense", f"dial0_{way}", f"sdpa_{way}")
        values[f"stats_overhead_{way}"] = {
            dial: {T: x - 1 for T, x in found.ratio("dense", f"{dial}_{way}_open", f"{dial}_{way}").items()}
            for dial in ("dial0", "dial1")
        }
        values[f"{b}_dense_over_cudnn_{way}"] = found.ratio("dense", f"dial0_{way}", f"cudnn_{way}")
        values[f"{b}_cudnn_over_soft_{way}"] = found.ratio("dense", f"cudnn_{way}", f"dial0.9_{way}")
        for who in ("attend", "jaxnn"):
            memory = found.bytes("dense", f"{'dial0' if who == 'attend' else who}_{way}")
            values[f"memory_exponent_{who}_{way}"] = exponent(memory, LONG_ENOUGH)
    for way in WAYS:
        times = found.seconds("density", f"attend_{way}")
        tail = "" if way == "fwdbwd" else "_fwd"
        if times:
            values["density_tokens"] = found.density_tokens
        for d in sorted(set(times) - {1}):
            values[f"{b}_lambda1_speedup_density_{d}{tail}"] = times[1] / times[d]
        for d, x in found.ratio("density", f"flex_{way}", f"attend_{way}").items():
            values[f"{b}_flex_over_lambda1_density_{d}{'' if way == 'fwd' else '_fwdbwd'}"] = x
    for tile, by_size in found.timings.get("products", {}).items():
        values[f"product_rate_{tile}"] = next(found.operations / one["median"] for one in by_size.values())
    for way in WAYS:
        for T, seconds in found.seconds("long", f"attend_{way}").items():
            values["long_tokens"] = T
            values[f"long_{way}_seconds"] = seconds
            values[f"long_{way}_memory_gib"] = found.bytes("long", f"attend_{way}")[T] / 2**30
    for name in found.timings.get("decode", {}):
        values[f"decode_{name}_seconds"] = found.seconds("decode", name)
    if "decode" in found.timings:
        values["decode_dial1_over_dial0"] = found.ratio("decode", "dial1", "dial0")
        values["decode_dial0_over_jaxnn"] = found.ratio("decode", "dial0", "jaxnn")
    values = {name: x for name, x in values.items() if x not in (None, {})}
    more = {"refused": found.refused, "memory_bytes": found.memory, "flex_positions": found.flex}
    return {**values, "torch": found.torch, "timings": found.timings, **more}


def targets(values: Mapping[str, Any], backend: str) -> list[list[str]]:
    """Rows of (target, reached, yes or no)."""
    rows: list[list[str]] = []

    def row(target: str, numbers: Sequence[float], form: str, good) -> None:
        if not numbers:
            rows.append([target, NOT_MEASURED, ""])
            return
        reached = " … ".join(dict.fromkeys((format(min(numbers), form), format(max(numbers), form))))
        rows.append([target, reached, "yes" if all(map(good, numbers)) else "**no**"])

    if backend == "gpu":
        _gpu_targets(values, row)
    else:
        _cpu_targets(values, backend, row)
    for way, words in WAYS.items():
        overheads = values.get(f"stats_overhead_{way}", {})
        row(
            f"{words}: statistics cost at most {OVERHEAD:.0%}, λ=0 and λ=1, T ≥ 2,048",
            [x for by_size in overheads.values() for x in _long_enough(by_size)], ".0%", lambda x: x <= OVERHEAD,
        )  # fmt: skip
    for way, words in WAYS.items():
        name = f"memory_exponent_attend_{way}"
        row(
            f"{words}: memory linear in T (exponent at most {EXPONENT:g})",
            [values[name]] if name in values else [], ".2f", lambda x: x <= EXPONENT,
        )  # fmt: skip
    long = values.get("long_tokens") == 65536 and "long_fwdbwd_memory_gib" in values
    row(
        f"attention over 65,536 tokens at density 1/64 trains in {TRAINS_IN:g} GiB",
        [values["long_fwdbwd_memory_gib"]] if long else [], ".2f", lambda x: x <= TRAINS_IN,
    )  # fmt: skip
    return rows


def _cpu_targets(values: Mapping[str, Any], backend: str, row) -> None:
    for way, words in WAYS.items():
        row(
            f"{words}, dense: jax.nn takes at least {FASTER_THAN_JAXNN:g} times our time, T ≥ 2,048",
            _long_enough(values.get(f"{backend}_dense_over_jaxnn_{way}", {})), ".2f",
            lambda x: x >= FASTER_THAN_JAXNN,
        )  # fmt: skip
    for way, words in WAYS.items():
        row(
            f"{words}, dense: we take at most {SLOWER_THAN_SDPA:g} times PyTorch SDPA's time, T ≥ 2,048",
            _long_enough(values.get(f"{backend}_dense_over_torch_sdpa_{way}", {})), ".2f",
            lambda x: x <= SLOWER_THAN_SDPA,
        )  # fmt: skip
    full = values.get("density_tokens") == 8192
    for d in FULL_BLOCKS:
        name = f"{backend}_lambda1_speedup_density_{d}"
        row(
            f"λ=1 at density 1/{d}: at least {OF_DENSITY * d:.1f} times as fast as λ=0, forward and backward",
            [values[name]] if name in values and full else [], ".2f", lambda x, d=d: x >= OF_DENSITY * d,
        )  # fmt: skip


def _gpu_targets(values: Mapping[str, Any], row) -> None:
    for way, words in WAYS.items():
        row(
            f"{words}, λ=0: we take no longer than cuDNN, T ≥ 2,048",
            _long_enough(values.get(f"gpu_dense_over_cudnn_{way}", {})), ".2f", lambda x: x <= 1,
        )  # fmt: skip
    row(
        f"forward, λ=0.9: at least {SOFT_OF_CUDNN:g} times as fast as cuDNN's dense attention, T ≥ 2,048",
        _long_enough(values.get("gpu_cudnn_over_soft_fwd", {})), ".2f", lambda x: x >= SOFT_OF_CUDNN,
    )  # fmt: skip
    for way, words in WAYS.items():
        tail = "_fwd" if way == "fwd" else ""
        by_density = _by_density(values, "gpu_lambda1_speedup_density_", tail)
        row(
            f"{words}, λ=1: at most {OVER_IDEAL:g} × density × the time of λ=0, sorting included",
            [d / x for d, x in by_density.items()], ".2f", lambda x: x <= OVER_IDEAL,
        )  # fmt: skip
        by_density = _by_density(values, "gpu_flex_over_lambda1_density_", "" if way == "fwd" else "_fwdbwd")
        row(
            f"{words}, λ=1 at density up to 1/4: FlexAttention takes longer than we do",
            [x for d, x in by_density.items() if d >= 4], ".2f", lambda x: x > 1,
        )  # fmt: skip


def _by_density(values: Mapping[str, Any], prefix: str, tail: str) -> dict[int, float]:
    """Figures of that name by 1/density."""
    names = {d: f"{prefix}{d}{tail}" for d in range(2, 129)}
    return {d: values[name] for d, name in names.items() if name in values}


def _long_enough(by_size: Mapping[int, float]) -> list[float]:
    return [x for T, x in by_size.items() if T >= LONG_ENOUGH]


def body(found: Found) -> str:
    """The page, Markdown."""
    values = figures_of(found)
    rows = targets(values, found.backend)
    missed = sum(row[2] == "**no**" for row in rows)
    unknown = sum(row[1] == NOT_MEASURED for row in rows)
    parts = [
        "How fast is dialled attention, and how much memory does it take, beside `jax.nn.dot_product_attention` and "
        "PyTorch's `scaled_dot_product_attention` (SDPA) and FlexAttention? And what does closing blocks save?",
        _table(["target", "reached", "met"], rows),
        f"{len(rows) - missed - unknown} of {len(rows)} targets are met, {missed} missed, {unknown} not measured. "
        "A range goes over the sizes it was measured at.",
        f"All calls: {found.shape}. Times are medians ± half the range of the middle half "
        "of the repetitions, in milliseconds unless said otherwise; contenders take turns. Backward gives gradients in "
        "q, k, v and, for ours, the odds. Blocks are random, as routing by content gives, with an always-open sink. "
        f"PyTorch: {found.torch}; it ran in a process of its own, on all cores.",
    ]
    if found.backend != "gpu":
        parts.append("For a GPU see attention_gpu.md, if there is one.")
    parts += [*_dense(found, values), *_density(found, values), *_long(values), *_decode(found)]
    return "\n\n".join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(head, rows).strip()


def _dense(found: Found, values: Mapping[str, Any]) -> list[str]:
    if "dense" not in found.timings:
        return []
    d, (longest, largest) = found.blocks, found.limits
    sizes = sorted(found.seconds("dense", "dial0_fwd") | found.seconds("dense", "dial1_fwd"))
    parts = ["## Against the number of tokens", "{dense}"]
    for way, words in WAYS.items():
        columns = {
            "λ=0": "dial0", "λ=0.9": "dial0.9", f"λ=1 at 1/{d}": "dial1", "reference": "reference",
            "jax.nn": "jaxnn", "cuDNN": "cudnn", "SDPA": "sdpa", f"Flex at 1/{d}": "flex",
        }  # fmt: skip
        measured = found.timings["dense"].keys() | found.refused.get("dense", {}).keys()
        columns = {head: name for head, name in columns.items() if f"{name}_{way}" in measured}
        peer = "cuDNN" if found.backend == "gpu" else "jax.nn"
        slower = found.ratio("dense", f"{'cudnn' if peer == 'cuDNN' else 'jaxnn'}_{way}", f"dial0_{way}")
        faster = values.get(f"{found.backend}_dense_over_torch_sdpa_{way}", {})
        rows = [
            [f"{T:,}", *(found.cell("dense", f"{name}_{way}", T) for name in columns.values())]
            + [f"{by_size[T]:.2f}" if T in by_size else "" for by_size in (slower, faster)]
            for T in sizes
        ]
        head = ["T", *columns, f"{peer} / ours", "ours / SDPA"]
        parts += [f"{words.capitalize()}, ms:", _table(head, rows)]
    parts.append(
        f"{peer} / ours: more than 1 means that ours at λ=0 is faster; ours / SDPA: less than 1 means it. A path stops "
        f"where one call would take more than {longest:g} s (foreseen as four times that of half the length) or "
        f"{largest >> 30} GiB by XLA's count. λ=0.9, the statistics and the reference stop earlier, where they have "
        f"nothing more to tell."
    )
    parts.append(_flex_note(found))
    rows = []
    for T in sizes:
        by_column = [
            values.get(f"stats_overhead_{way}", {}).get(dial, {}).get(T)
            for way in WAYS
            for dial in ("dial0", "dial1")
        ]
        if any(x is not None for x in by_column):
            rows.append([f"{T:,}", *("" if x is None else f"{x:+.0%}" for x in by_column)])
    head = ["T", *(f"{words}, {dial}" for words in WAYS.values() for dial in ("λ=0", "λ=1"))]
    if rows:
        parts += ["What the open statistics add to the time:", _table(head, rows)]
    fits = ", ".join(
        f"{'ours' if who == 'attend' else 'jax.nn'} {words} {values[name]:.2f}"
        for who in ("attend", "jaxnn")
        for way, words in WAYS.items()
        if (name := f"memory_exponent_{who}_{way}") in values
    )
    parts.append(
        "Memory is XLA's count of temporaries and results, the same at every dial; PyTorch's was not measured."
        + (f" Exponents fitted from T=2,048 on: {fits}." if fits else "")
    )
    return parts


def _flex_note(found: Found) -> str:
    if not found.flex:
        return "FlexAttention was not measured."
    listed = "; ".join(
        f"{T} " + ", ".join(f"1/{d} {way}" for d, way in by_density.items())
        for T, by_density in found.flex.items()
    )
    return (
        "FlexAttention is compiled (it has no backward on CPU). Its mask opens the same pairs. "
        "It was tried with positions in order and sorted by block, and timed in the faster order "
        f"({listed}); making the mask and sorting are not part of its time. Sorted, the window scatters over many of "
        "its tiles; we attend to the window in a pass of its own."
    )


def _density(found: Found, values: Mapping[str, Any]) -> list[str]:
    if "density" not in found.timings:
        return []
    rows = []
    for d in sorted(found.seconds("density", "attend_fwd")):
        speedups = [values.get(f"{found.backend}_lambda1_speedup_density_{d}{tail}") for tail in ("_fwd", "")]
        flex = values.get(f"{found.backend}_flex_over_lambda1_density_{d}")
        rows.append(
            ["1 (λ=0)" if d == 1 else f"1/{d}"]
            + [found.cell("density", f"attend_{way}", d) for way in WAYS]
            + ["" if x is None else f"{x:.2f}" for x in speedups]
            + [found.cell("density", "flex_fwd", d), "" if flex is None else f"{flex:.2f}"]
        )
        if "flex_fwdbwd" in found.timings["density"]:
            flex = values.get(f"{found.backend}_flex_over_lambda1_density_{d}_fwdbwd")
            rows[-1] += [found.cell("density", "flex_fwdbwd", d), "" if flex is None else f"{flex:.2f}"]
    head = ["density", "forward", "forward and backward", "speed-up, forward", "speed-up, both"]
    head += ["Flex, forward", "Flex / ours", "Flex, both", "Flex / ours"][: len(rows[0]) - len(head)]
    return [
        "## Against density",
        "{density}",
        f"λ=1 over {found.density_tokens:,} tokens with as many equally likely blocks as the density says, ms:",
        _table(head, rows),
        "Speed-up is the time of λ=0 over that of λ=1; Flex / ours: more than 1 means that ours is faster.",
        *_products(found),
    ]


def _products(found: Found) -> list[str]:
    by_tile = found.timings.get("products", {})
    if not by_tile:
        return []
    rates = {
        name: found.operations / one["median"] / 1e9
        for name, by_size in sorted(by_tile.items(), key=lambda item: max(item[1]))
        for one in by_size.values()
    }
    return [
        "Why λ=1 gains less than it leaves out: its tiles hold one block, which fills one of them in part; the sink "
        "has a tile of its own in every list; cutting and joining tiles and the pass over the window do not shrink "
        "with the pairs. And blocks of few tokens take small tiles, whose products XLA runs more slowly. The same "
        "amount of products alone, by queries and keys of a tile, billions of operations per second:",
        _table(["tile", *rates], [["rate", *(f"{rate:.0f}" for rate in rates.values())]]),
        found.tiles,
    ]


def _long(values: Mapping[str, Any]) -> list[str]:
    if "long_fwdbwd_seconds" not in values:
        return []
    return [
        f"**Long**: {values['long_tokens']:,} tokens at the lowest density: {values['long_fwd_seconds']:.2f} s and "
        f"{values['long_fwd_memory_gib']:.2f} GiB forward, {values['long_fwdbwd_seconds']:.2f} s and "
        f"{values['long_fwdbwd_memory_gib']:.2f} GiB forward and backward. This is one call of attention, its inputs "
        "not counted, not a whole model."
    ]


def _decode(found: Found) -> list[str]:
    if "decode" not in found.timings:
        return []
    columns = {"λ=0": "dial0", f"λ=1 at 1/{found.blocks}": "dial1", "jax.nn": "jaxnn", "SDPA": "sdpa"}
    sizes = sorted(found.seconds("decode", "dial0"))
    rows = [[f"{S:,}", *(found.cell("decode", name, S, 1e-6) for name in columns.values())] for S in sizes]
    return [
        "## Decoding",
        "{decode}",
        "One query against a cache, µs per token. Ours finds the keys on pages by block, where the model's cache "
        "keeps them, and is the implementation that `attend` picks for the size; jax.nn and SDPA see every key.",
        _table(["keys", *columns], rows),
    ]

"""The results of compiling for a topology: figures, a few lines for people, and the study's page."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import jax

from experiments.compile_for.programs import PROGRAMS, Lowered, Shapes
from localist_jax.parallel import ahead
from localist_jax.report import study

STUDY = "compile_for"
Figures = dict[str, Any]


def figures(shapes: Shapes, topology: str, lowered: Lowered, compiled: ahead.Compiled) -> Figures:
    """All figures of one program; bytes and flops are per device and call, times seconds.

    Args:
      shapes: what was lowered.
      topology: whose chips.
      lowered, compiled: the program.
    """
    chip = ahead.CHIPS.get(topology.partition(":")[0])
    count = shapes.mesh.size
    found: Figures = {
        "fits": compiled.fits,
        "error": compiled.error,
        "devices": count,
        "mesh": dict(shapes.mesh.shape),
        "parameters": shapes.parameters,
        "seconds": round(compiled.seconds, 1),
        "tokens": lowered.tokens,
        "flops": lowered.flops / count,
        "model_flops": lowered.model_flops / count,
    }
    if not compiled.fits or compiled.program is None:
        return found | {"over_bytes": compiled.over, "advice": advice(shapes, compiled, chip)}
    wire: Counter[str] = Counter()  # bytes
    far = 0.0  # over the data-centre network
    inside = count // shapes.mesh.shape["slice"]
    for one in compiled.program.collectives:
        wire[one.kind] += round(one.wire)
        far += one.wire if len({device // inside for device in one.ids}) > 1 else 0.0
    found |= {
        "bytes_per_device": compiled.memory,
        "argument_bytes": compiled.arguments,
        "temporary_bytes": compiled.temporaries,
        "memory_traffic_bytes": compiled.program.memory_bytes,
        "collective_bytes": dict(sorted(wire.items())),
        "collectives": len(compiled.program.collectives),
        "network_bytes": far,
        "intensity": lowered.flops / count / max(compiled.program.memory_bytes, 1.0),
    }
    return found | ({} if chip is None else bounds(found, chip))


def bounds(found: Figures, chip: ahead.Chip) -> Figures:
    """Return what the chip's published figures allow at best: everything overlaps, and nothing moves that need not.

    Memory is charged with the state and inputs alone, which every call must read or write: what the instructions move
    is an estimate and no bound.
    """
    near = sum(found["collective_bytes"].values()) - found["network_bytes"]
    times = {
        "compute": found["flops"] / chip.flops,
        "memory": found["argument_bytes"] / chip.bandwidth,
        "links": near / chip.links,
        "network": found["network_bytes"] / chip.network,
    }
    longest = max(times.values())
    return {
        "capacity_bytes": chip.memory,
        "seconds_at_least": times,
        "tokens_per_second_at_most": found["tokens"] / longest if longest else 0.0,
        "utilisation_at_most": found["model_flops"] / chip.flops / longest if longest else 0.0,
    }


def advice(shapes: Shapes, compiled: ahead.Compiled, chip: ahead.Chip | None) -> str:
    """Return what to change so that a program fits."""
    if not compiled.over or chip is None:
        return "this is no lack of memory: see the error"
    c, mesh = shapes.settings, shapes.mesh.shape
    state = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(shapes.state)
    )
    if state > 0.8 * chip.memory:
        return (
            f"the state alone takes {state / ahead.GIB:.1f} GiB of each device: raise config.mesh.fsdp (now "
            f"{mesh['fsdp']}) or take more chips"
        )
    ways = [] if c.model.remat else ["set config.model.remat"]
    rows = c.data.batch // max(1, mesh["slice"] * mesh["data"] * mesh["fsdp"])
    if rows > 1:
        ways.append(f"lower config.data.batch (now {rows} rows a device)")
    ways.append(f"raise config.mesh.tensor (now {mesh['tensor']})")
    return "activations take too much: " + ", or ".join(ways)


def told(key: str, found: Figures) -> str:
    """A few lines for people."""
    head = f"{key}: {found['devices']} devices, compiled in {found['seconds']:.0f} s"
    if not found["fits"]:
        over = f" by {found['over_bytes'] / ahead.GIB:.2f} GiB" if found["over_bytes"] else ""
        return f"{head}\n  does not fit{over}: {found['advice']}\n  {found['error']}"
    lines = [head]
    room = f" of {found['capacity_bytes'] / ahead.GIB:.0f}" if "capacity_bytes" in found else ""
    total, given = (found[name] / ahead.GIB for name in ("bytes_per_device", "argument_bytes"))
    rest = total - given
    lines.append(
        f"  memory {total:.2f} GiB{room} a device (state and inputs {given:.2f}, temporaries {rest:.2f})"
    )
    sent = ", ".join(f"{kind} {total / ahead.GB:.2f} GB" for kind, total in found["collective_bytes"].items())
    lines.append(
        f"  {found['flops'] / 1e12:.2f} Tflop, {found['memory_traffic_bytes'] / ahead.GB:.1f} GB through memory: "
        f"{found['intensity']:.0f} flop a byte; sent: {sent or 'nothing'}"
    )
    if "seconds_at_least" in found:
        times = ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in found["seconds_at_least"].items())
        speed = found["tokens_per_second_at_most"]
        lines.append(f"  at least {times}" + (f"; at most {speed:,.0f} tokens/s" if found["tokens"] else ""))
    return "\n".join(lines)


def write(folder: Path, found: dict[str, Figures], command: str) -> Path:
    """Adds figures to the study, and writes its page anew."""
    path = folder / f"{STUDY}.json"
    before: Figures = {"figures": {}, "command": ""}
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
    everything = {**before["figures"], **found}
    for key, one in everything.items():  # those of earlier calls by what is published now
        chip = ahead.CHIPS.get(key.split()[1].rpartition("×")[2].partition(":")[0])
        if one["fits"] and chip is not None:
            one |= bounds(one, chip)
    commands = [line for line in before["command"].splitlines() if line != command]
    return study.write(
        folder, STUDY, title="Compiled for pods, without one", body=body(everything),
        command="\n".join([*commands, command]), seeds=(), figures=dict(sorted(everything.items())), pictures={},
    )  # fmt: skip


def body(everything: dict[str, Figures]) -> str:
    """The page."""
    rows, sent, slow = [], [], []
    for key, one in sorted(everything.items()):
        if not one["fits"]:
            over = one["over_bytes"] / ahead.GIB
            rows.append([key, str(one["devices"]), f"no: {over:.2f} GiB over", *["–"] * 6])
            continue
        rows.append([key, str(one["devices"]), "yes", *_memory(one)])
        sent.append([key, str(one["collectives"]), *_sent(one)])
        if times := one.get("seconds_at_least"):
            share = f"{one['utilisation_at_most']:.2f}" if one["tokens"] else "–"
            slow.append([key, *(f"{1e3 * t:.1f}" for t in times.values()), share])
    missing = ", ".join(key for key in WANTED if key not in everything)
    gap = f"\nNot compiled yet, and so not known to fit: {missing}.\n" if missing else ""
    return TEXT.format(
        fits=study.table(FITS, rows) + gap,
        sent=study.table(("program", "operations", *(f"{k}, GB" for k in SENT), "network, GB"), sent),
        slow=study.table(("ms at least for", *BOUNDS, "utilisation at most"), slow),
        chips=study.table(PUBLISHED, [[name, *_published(chip)] for name, chip in ahead.CHIPS.items()]),
    )


def _memory(one: Figures) -> list[str]:
    bound = one.get("tokens_per_second_at_most")
    return [
        f"{one['bytes_per_device'] / ahead.GIB:.2f}",
        f"{one['argument_bytes'] / ahead.GIB:.2f}",
        f"{one['flops'] / 1e12:.2f}",
        f"{one['memory_traffic_bytes'] / ahead.GB:.1f}",
        f"{one['intensity']:.0f}",
        f"{bound:,.0f}" if bound else "–",
    ]


def _sent(one: Figures) -> list[str]:
    kinds = one["collective_bytes"]
    return [f"{x / ahead.GB:.3f}" for x in (*(kinds.get(kind, 0) for kind in SENT), one["network_bytes"])]


def _published(chip: ahead.Chip) -> list[str]:
    memory = f"{chip.memory / ahead.GIB:.0f}"
    rates = (chip.bandwidth, chip.links, chip.network)
    return [f"{chip.flops / 1e12:.0f}", memory, *(f"{rate / ahead.GB:.4g}" for rate in rates)]


WANTED = [
    f"{config} {topology} {program}"
    for config, topologies in (
        ("pod_1b", ("v5e:16x16", "v5p:4x8x8", "v6e:16x16", "2×v5e:16x16")),
        ("pod_8b", ("v5e:16x16", "v5p:4x8x8")),
    )
    for topology in topologies
    for program in PROGRAMS
]
FITS = (
    "configuration, topology, program", "chips", "fits", "GiB a chip", "of it state and inputs", "Tflop a chip",
    "GB through memory", "flop a byte", "tokens/s at most",
)  # fmt: skip
BOUNDS = ("compute", "memory", "links", "network")
PUBLISHED = ("chip", "bf16 Tflop/s", "HBM, GiB", "HBM, GB/s", "links, GB/s", "network, GB/s")
SENT = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
TEXT = """Do the configurations for pods compile for the chips that they are meant for, do they fit, and what bounds
their speed? libtpu compiled every program below from shapes alone, on a machine without a TPU. Nothing ran: memory and
collectives are the compiler's, times are what published bandwidths allow at best.

{fits}
Figures are per chip and call, *tokens/s* of all chips. Each specialist LLM has its share of the chips, and all of them
run as one program in which nothing is told from one to another. *train* is a whole step with its optimizer; *generate*
makes one token for each request of a batch that has read a full context; *grow* doubles the capacity for blocks and
copies one block into the new room. *Tflop* are those of matrix products, recomputation included, counted from the
traced program; attention's are added by hand, as dense as λ=0 makes it. *GB through memory* is an estimate: operands
and results of the compiled instructions that are not on the chip, loops as often as they run; *flop a byte* is by it.

What each chip sends, by kind of collective, in a ring:

{sent}
The least time that each part needs by itself, memory for reading and writing the state and inputs once, and the
model's flops (6 per token and parameter that it meets, and attention's) over what the chip could do in the longest:

{slow}
Published of each chip (links: all of them, one way):

{chips}
What this doesn't show: speed. Parts that overlap badly, small messages and the network's latency make a step
slower than these bounds; [scaling.md](scaling.md) names the assumptions."""

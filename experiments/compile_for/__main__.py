"""Compile a configuration for a pod, on a machine without one.

    pip install -e '.[tpu]'   # the compiler of TPUs; half a gigabyte
    python -m experiments.compile_for --config=experiments/configs/pod_1b.py --topology=v5e:16x16
    python -m experiments.compile_for --config=experiments/configs/quickstart.py:tiny --topology=cpu:8

Topologies are named as libtpu does: v5e:16x16 is a v5e-256, v5p:4x8x8 a v5p-512 (512 cores, 256 chips). Prints, for
each program, memory per device and whether it fits, what it computes, moves and tells other devices, and a bound on
its speed. The exit status is 1 if something does not fit. `--out` keeps the figures, beside those of earlier calls.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from experiments.compile_for import page, programs
from localist_jax import config
from localist_jax.errors import one_line
from localist_jax.parallel import ahead
from localist_jax.parallel import mesh as meshes

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, with an optional :variant.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "Such as v5e:16x16, v5p:4x8x8, v6e:16x16 or cpu:8.")
_SLICES = flags.DEFINE_integer("slices", 1, "Slices of that topology, joined by the data-centre network.")
_PROGRAMS = flags.DEFINE_list("programs", list(programs.PROGRAMS), "Which to compile.")
_OUT = flags.DEFINE_string("out", "", "Folder of the study; empty: figures are only printed.")


def run(settings: config.Config, name: str, topology: str, slices: int, wanted: list[str]) -> dict:
    """Figures of each program, by "name topology program"."""
    if unknown := set(wanted) - set(programs.PROGRAMS):
        known = ", ".join(programs.PROGRAMS)
        raise ValueError(f"--programs: unknown {', '.join(sorted(unknown))}; known: {known}")
    mesh = meshes.make_mesh(settings.mesh, ahead.devices(topology, slices))
    shapes = programs.Shapes.of(settings, mesh)
    where = topology if slices == 1 else f"{slices}×{topology}"
    found = {}
    for program in wanted:
        lowered = programs.PROGRAMS[program](shapes)
        compiled = ahead.compile_(lowered.lowered)
        key = f"{name} {where} {program}"
        found[key] = page.figures(shapes, topology, lowered, compiled)
        print(page.told(key, found[key]), flush=True)
    return found


def _simulate(topology: str) -> None:
    """Before JAX wakes up: enough simulated devices, or the compiler of TPUs without a TPU."""
    kind, _, shape = topology.partition(":")
    if kind == "cpu":
        count = f"--xla_force_host_platform_device_count={shape}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}"
    else:
        os.environ.update(ahead.BUILT_FOR_TPU)
        jax.config.update("jax_enable_compilation_cache", False)  # its keys know nothing of the target
    jax.config.update("jax_platforms", "cpu")


def _main(_: list[str]) -> None:
    with one_line(OSError, TypeError):
        for flag in ("config", "topology"):
            if flags.FLAGS[flag].value is None:
                raise ValueError(f"compile_for: --{flag} is missing")
        topology, where = str(_TOPOLOGY.value), _CONFIG.value
        _simulate(topology)
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        name = Path(path.split(":")[0]).stem + "".join(f":{x}" for x in path.split(":")[1:])
        found = run(config.resolve(where.to_dict()), name, topology, _SLICES.value, _PROGRAMS.value)
        if _OUT.value:
            command = shlex.join(["python", "-m", "experiments.compile_for", *sys.argv[1:]])
            print(page.write(Path(_OUT.value), found, command))
    raise SystemExit(0 if all(one["fits"] for one in found.values()) else 1)


def main() -> None:
    """Entry point."""
    logging.set_verbosity(logging.WARNING)
    app.run(_main)


if __name__ == "__main__":
    main()

"""Whether a killed run goes on as if nothing had been: its curve beside that of a run left alone, number by number.

    python -m benchmarks.restart WORKDIR

trains a tiny model on generated text in WORKDIR, or resumes what is there. `measure` starts it three times: one run to
its end, and another that is killed (SIGKILL) between two checkpoints, then started again.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from localist_jax import config
from localist_jax.parallel.compilation import keep_programs
from localist_jax.training.journal import read
from localist_jax.training.loop import train

TIMING = ("time", "tokens_per_second")
STEPS, SAVES = 60, 20
PATIENCE = 600  # seconds


def settings() -> config.Config:
    """Seconds of training."""
    return config.Config(
        data=config.Data(corpus="synthetic", vocab_size=512, context=64, batch=4, valid_rows=8),
        model=config.Model(
            layers=3, width=32, heads=2, kv_heads=2, head_size=16, feed_forward=64, blocks=6, block_capacity=8,
            block_units=8, window=4, perception_window=8,
        ),
        train=config.Train(steps=STEPS, log_every=1, eval_every=STEPS, save_every=SAVES),
    )  # fmt: skip


def measure() -> dict[str, Any]:
    """The largest difference between the curves, in any logged number, and where the run was killed."""
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = Path(folder, "whole"), Path(folder, "killed")
        _start(whole).wait(PATIENCE)
        child = _start(killed)
        begun = time.monotonic()
        # Some steps beyond a checkpoint that is whole on disk: what they logged is thrown away and done again.
        while child.poll() is None and (not _saved(killed) or _step(killed) < _saved(killed) + 3):
            if time.monotonic() - begun > PATIENCE:
                break
            time.sleep(0.005)
        child.kill()
        child.wait()
        reached, kept = _step(killed), _saved(killed)
        if not 0 < kept < reached < STEPS:
            raise RuntimeError(
                f"restart: killed at step {reached} with checkpoint {kept}: too early, or too late"
            )
        _start(killed).wait(PATIENCE)
        curves = [
            [{k: v for k, v in r.items() if k not in TIMING} for r in read(f / "metrics.jsonl")]
            for f in (whole, killed)
        ]
    if [(r["step"], r["kind"]) for r in curves[0]] != [(r["step"], r["kind"]) for r in curves[1]]:
        raise RuntimeError("restart: the two curves have not the same points")
    differences = [
        abs(one[name] - other[name])
        for one, other in zip(*curves, strict=True)
        for name in one
        if isinstance(one[name], float)
    ]
    return {
        "restart_exact": float(max(differences) == 0.0),
        "restart_largest_difference": max(differences),
        "restart_killed_at": reached,
        "restart_resumed_from": kept,
        "restart_numbers": len(differences),
    }


def _start(workdir: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.restart", str(workdir)],
        cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


def _step(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return max((r["step"] for r in read(path)), default=0) if path.exists() else 0


def _saved(workdir: Path) -> int:
    """The last checkpoint that is whole: others have no mere number for a name."""
    folder = workdir / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


if __name__ == "__main__":
    keep_programs()
    train(settings(), Path(sys.argv[1]))

"""The persistent compilation cache: programs compiled once are read from disk by later runs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep_programs() -> None:
    """Keeps compiled programs under $XDG_CACHE_HOME (~/.cache), unless JAX was told where, or not to.

    `JAX_COMPILATION_CACHE_DIR` names another folder (on pods, a bucket that all hosts read), and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches it off. Programs for CPUs depend on the processor, so each kind has
    a folder of its own: homes are shared between machines.
    """
    if getattr(jax.config, "jax_compilation_cache_dir", None) is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "localist_jax" / "programs" / _processor()))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    flags = (
        next((x for x in info.read_text().splitlines() if x.startswith(("flags", "Features"))), "")
        if info.exists()
        else ""
    )
    return f"{platform.machine()}-{hashlib.sha256(flags.encode()).hexdigest()[:8]}"

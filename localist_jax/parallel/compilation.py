"""The persistent compilation cache: programs compiled once are read from disk by later runs."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax


def keep_programs() -> None:
    """Cache compiled programs under $XDG_CACHE_HOME (~/.cache), unless JAX was configured otherwise.

    `JAX_COMPILATION_CACHE_DIR` names another folder (on pods, a bucket that all hosts read), and
    `JAX_ENABLE_COMPILATION_CACHE=false` switches the cache off. Programs for CPUs depend on the processor, and home
    folders may be shared between machines, so each kind of processor has its own folder.
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

"""Rules that enter a running model: read, verified, compiled, enforced, priced and audited."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localist_jax.rules.language import RuleError, RuleSet
    from localist_jax.rules.reading import parse, read
    from localist_jax.rules.verification import verify

__all__ = ["RuleError", "RuleSet", "parse", "read", "verify"]
_MODULES = {
    "RuleError": "language",
    "RuleSet": "language",
    "parse": "reading",
    "read": "reading",
    "verify": "verification",
}


def __getattr__(name: str) -> Any:
    """Import on first use: the solver and the grammar engine take longer to load than the command line."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

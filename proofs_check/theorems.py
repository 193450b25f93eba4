"""The theorems by name: `t03_….py` holds T3, `t07b_….py` holds T7'. A module is read when it is asked for."""

import importlib
import pkgutil
import re

import proofs_check
from proofs_check.theorem import Theorem


def _by_name() -> dict[str, str]:
    found = {}
    for module in sorted(m.name for m in pkgutil.iter_modules(proofs_check.__path__)):
        if match := re.match(r"t(\d\d)(b?)_", module):
            found[f"T{int(match[1])}" + ("'" if match[2] else "")] = module
    order = sorted(found, key=lambda name: (int(name[1:].rstrip("'")), name))
    return {name: found[name] for name in order}


MODULES = _by_name()


def load(name: str) -> Theorem:
    """The theorem of that name, such as "T7'".

    Raises:
      ValueError: no such theorem.
    """
    if name not in MODULES:
        raise ValueError(f"proofs_check: no theorem {name!r}; choose from {', '.join(MODULES)}")
    return importlib.import_module(f"proofs_check.{MODULES[name]}").THEOREM

"""The house rules that a program can check: arrows between packages, sizes, first lines, examples."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import localist_jax

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "localist_jax").rglob("*.py"))
LONGEST = 450  # lines

# What each part may import from the house; a part may always import itself. Lower rooms know no upper ones.
FOUNDATION = {"types", "bits", "config", "errors", "ranges"}
ARROWS = {
    "types": set(),
    "bits": {"types"},
    "config": {"ranges"},
    "ranges": set(),
    "errors": set(),
    "locality": FOUNDATION,
    "attention": FOUNDATION | {"locality", "parallel"},
    "model": FOUNDATION | {"locality", "attention", "parallel"},
    "data": FOUNDATION,
    "parallel": FOUNDATION,
    "recruitment": FOUNDATION | {"locality", "model", "data", "parallel", "training"},
    "training": FOUNDATION | {"locality", "model", "data", "parallel"},
    "hierarchy": FOUNDATION | {"locality", "model", "data", "parallel", "training", "recruitment"},
    "report": FOUNDATION
    | {"locality", "model", "data", "parallel", "training", "recruitment", "rules", "hierarchy"},
    "adopt": FOUNDATION | {"locality", "model", "data", "parallel", "training"},
    "rules": FOUNDATION | {"locality", "model", "training", "recruitment"},
    "__main__": FOUNDATION
    | {"locality", "parallel", "training", "recruitment", "report", "adopt", "rules", "hierarchy"},
    "__init__": set(),
}


def part_of(path):
    first = path.relative_to(ROOT / "localist_jax").parts[0]
    return first.removesuffix(".py")


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "localist_jax":
            tail = node.module.split(".")[1:]
            yield from [tail[0]] if tail else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("localist_jax."))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path):
    part = part_of(path)
    beyond = set(imported(path)) - ARROWS[part] - {part}
    assert not beyond, f"{part} must not know {', '.join(sorted(beyond))}"


TOPS = ("experiments", "benchmarks", "proofs_check")
ALL = [*SOURCES, *(p for top in TOPS for p in sorted((ROOT / top).rglob("*.py")))]


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_short_and_say_what_they_are(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), "a file begins with what it is"


MODULES = [
    m.name for m in pkgutil.walk_packages(localist_jax.__path__, "localist_jax.") if "__main__" not in m.name
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_are_true(name):
    assert doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS).failed == 0

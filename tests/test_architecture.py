"""House rules that a program can check: imports between packages and files, sizes, class names, examples."""

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

# The parts of the project that each part may import, besides itself. Lower parts never import upper ones.
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
    "recruitment": FOUNDATION | {"locality", "model", "data", "parallel", "training", "adopt"},
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


def module_of(path):
    """Return the dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_files(path, modules):
    """Return the modules among `modules` that a file imports, at its top or inside a function."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            inner = (f"{node.module}.{alias.name}" for alias in node.names)
            names |= {name if name in modules else node.module for name in inner}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & modules


def circle(graph):
    """Return a circle of a graph (node → nodes) as a list that ends where it begins; None if there is none."""
    done = set()

    def search(node, path):
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        circles = (search(after, [*path, node]) for after in sorted(graph[node]))
        first = next((one for one in circles if one), None)
        done.add(node)
        return first

    return next((one for one in (search(node, []) for node in sorted(graph)) if one), None)


def test_files_import_each_other_in_no_circle():
    files = {module_of(path): path for path in SOURCES}
    graph = {name: imported_files(path, set(files)) - {name} for name, path in files.items()}
    assert graph["localist_jax.attention.api"] >= {"localist_jax.attention.stats"}
    assert circle(graph) is None


def test_a_circle_is_found():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


CORE = {"attention", "locality", "model", "training", "parallel", "config", "ranges"}


def test_a_class_name_of_the_core_names_one_class():
    places = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(path)
    assert "Dial" in places
    twice = [
        name
        for name, paths in places.items()
        if len(paths) > 1 and any(part_of(path) in CORE for path in paths)
    ]
    assert not twice


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

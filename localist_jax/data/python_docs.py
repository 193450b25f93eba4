"""The embedded corpus: what the running Python says about itself.

The topics of `help()` and the docstrings of the standard library are a few MB of real technical
prose that need neither a download nor a licence of their own. They differ between Python versions,
so figures on this corpus name the version beside them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

SKIPPED_FOLDERS = frozenset(
    {"__pycache__", "encodings", "idlelib", "lib2to3", "pydoc_data", "turtledemo"}  # tables and programs
    | {"dist-packages", "site-packages"}  # not the standard library
    | {"test", "tests"}
)
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@functools.cache
def documents() -> tuple[str, ...]:
    """One document per `help()` topic and one per documented standard-library module.

    The order depends only on names. Sources are parsed, never imported; a docstring that several
    objects share is kept where it comes first.

    Raises:
      ImportError: this Python was installed without its help topics.
    """
    from pydoc_data.topics import topics

    seen: set[str] = set()
    modules = (_module_document(path, name, seen) for path, name in _module_sources())
    first = dict.fromkeys(topics[name] for name in sorted(topics))  # a few topics have the same text
    return (*first, *filter(None, modules))


def _module_sources() -> Iterator[tuple[Path, str]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - SKIPPED_FOLDERS)  # pruned here: site-packages may be huge
        for file in sorted(file for file in files if file.endswith(".py")):
            path = Path(folder, file)
            yield path, ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _module_document(path: Path, name: str, seen: set[str]) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old escapes in other people's sources
        try:
            tree = ast.parse(path.read_bytes())
        except SyntaxError:  # a template or a file for another Python: it documents nothing
            return ""
    return "\n\n".join(_entries(tree, name, "", seen))


def _entries(node: Documented, name: str, signature: str, seen: set[str]) -> Iterator[str]:
    """The entry of an object, then those of its members: name and signature, indented docstring."""
    text = ast.get_docstring(node, clean=False)
    if text is not None and (text := inspect.cleandoc(text)) and text not in seen:
        seen.add(text)
        body = text if isinstance(node, ast.Module) else _indent(text)
        yield f"{name}{signature}\n{body}"
    for member in node.body:
        if isinstance(member, ast.ClassDef):
            bases = ", ".join(map(ast.unparse, member.bases))
            yield from _entries(member, f"{name}.{member.name}", bases and f"({bases})", seen)
        elif isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(member, False):
            yield from _entries(member, f"{name}.{member.name}", f"({ast.unparse(member.args)})", seen)


def _indent(text: str) -> str:
    return "\n".join(f"    {line}" if line else "" for line in text.split("\n"))

"""Pages that are made from the code: the API reference and the configuration reference.

Sphinx loads this file as an extension and calls `setup`. The pages go to `docs/generated/`, which git ignores. The
build stops if a public symbol has no docstring.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import localist_jax
from localist_jax import config, ranges

FOLDER = Path(__file__).with_name("generated")
KINDS = (classmethod, staticmethod, property, functools.cached_property)
API = """The reference is made from docstrings. Most programs need only :mod:`localist_jax.locality`,
:mod:`localist_jax.adopt`, :mod:`localist_jax.rules` and :class:`localist_jax.training.run.Run`.
Axis letters are those of :mod:`localist_jax.types`.
"""
CONFIGURATION = """This page is made from `localist_jax/config.py`, where every setting is declared once.

Change a setting in a configuration file (`c.train.steps = 500`) or on the command line (`--config.train.steps=500`),
with `localist train` as with `python -m experiments.launch`. A value outside the allowed range is refused with a
message that names the setting, and an unknown name is answered with the nearest known one.
"""


def modules() -> list[ModuleType]:
    """Import every public module of the package, in alphabetical order."""
    names = [found.name for found in pkgutil.walk_packages(localist_jax.__path__, "localist_jax.")]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return [importlib.import_module(name) for name in sorted(public)]


def symbols(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Yield name and object of each public class, function and method that a module defines."""
    for name, value in _defined_here(vars(module), module):
        yield name, value
        if inspect.isclass(value):
            for member, inner in _defined_here(vars(value), module):
                yield f"{name}.{member}", inner


def _defined_here(namespace: Mapping[str, Any], module: ModuleType) -> Iterator[tuple[str, Any]]:
    for name, value in namespace.items():
        unwrapped = value.fget if isinstance(value, property) else getattr(value, "func", value)
        defined = getattr(unwrapped, "__module__", "") == module.__name__
        if defined and not name.startswith("_") and (callable(unwrapped) or isinstance(value, KINDS)):
            yield name, value


def undocumented() -> list[str]:
    """Return the full names of public modules, classes, functions and methods that have no docstring."""
    missing = [module.__name__ for module in modules() if not module.__doc__]
    for module in modules():
        missing += [f"{module.__name__}.{name}" for name, value in symbols(module) if not _described(value)]
    return missing


def _described(value: Any) -> bool:
    doc = value.__doc__ or ""
    made_by_dataclasses = inspect.isclass(value) and doc.startswith(f"{value.__name__}(")
    return bool(doc) and not made_by_dataclasses


def api_pages() -> dict[str, str]:
    """Return the pages of the API reference by name: an index, and a page for each package."""
    pages: dict[str, list[ModuleType]] = {}
    for module in modules():
        inside = module.__name__.split(".")[1]
        package = inside if hasattr(sys.modules[f"localist_jax.{inside}"], "__path__") else "package"
        pages.setdefault(package, []).append(module)
    order = sorted(pages, key=lambda package: (package != "package", package))
    index = [_heading("API reference", "="), API]
    for package in order:
        index += [f"* :mod:`{module.__name__}`: {_summary(module)}" for module in pages[package]]
    index += ["", ".. toctree::", "   :hidden:", "", *(f"   {package}" for package in order)]
    written = {"api.rst": "\n".join(index) + "\n"}
    for package, members in pages.items():
        title = "localist_jax" if package == "package" else f"localist_jax.{package}"
        body = [_heading(title, "=")]
        for module in members:
            if module.__name__ != title:
                body.append(_heading(module.__name__.removeprefix("localist_jax."), "-"))
            body += [
                f".. automodule:: {module.__name__}",
                "   :members:" * (not hasattr(module, "__all__")),
                "",
            ]
        written[f"{package}.rst"] = "\n".join(body)
    return written


def _summary(module: ModuleType) -> str:
    return _inline(" ".join((module.__doc__ or "").split("\n\n")[0].split()))


def _heading(text: str, underline: str) -> str:
    return f"{text}\n{underline * len(text)}\n"


def configuration_page() -> str:
    """Return the reference of all settings: defaults, ranges and meanings, as `config.py` declares them."""
    lines = ["# Configuration reference", "", CONFIGURATION]
    for section in dataclasses.fields(config.Config):
        lines += _section(section.name, section.default)
    return "\n".join(lines) + "\n"


def _section(path: str, section: Any) -> list[str]:
    lines = [f"## {path}", "", type(section).__doc__ or "", ""]
    lines += ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    for name, range_ in ranges.described(section):
        value = getattr(section, name)
        allowed = "any text" if isinstance(value, str) else "True or False" if isinstance(value, bool) else ""
        if range_.choices or range_.is_number:
            allowed = str(range_)
        cells = (f"`{path}.{name}`", f"`{value!r}`", allowed, range_.about)
        escaped = (cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells)
        lines.append(f"| {' | '.join(escaped)} |")
    lines.append("")
    for field in dataclasses.fields(section):
        if dataclasses.is_dataclass(getattr(section, field.name)):
            lines += _section(f"{path}.{field.name}", getattr(section, field.name))
    return lines


def write() -> None:
    """Write all generated pages; leave a page that has not changed alone.

    Raises:
      ValueError: a public symbol has no docstring.
    """
    if missing := undocumented():
        raise ValueError(f"these public symbols need a docstring: {', '.join(missing)}")
    FOLDER.mkdir(exist_ok=True)
    pages = {**api_pages(), "configuration.md": configuration_page()}
    for path in FOLDER.iterdir():
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = FOLDER / name
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def to_rst(lines: list[str]) -> None:
    r"""Rewrite a docstring of the project, in place, where its light markup differs from reStructuredText.

    A paragraph indented by four spaces is code, a bar is a bar, and a letter may follow a closing backtick.

    >>> lines = ["Write |`s`|:", "", "    a | b"]
    >>> to_rst(lines)
    >>> lines
    ['Write \\|`s`\\ \\|:', '', '::', '', '    a | b']
    """
    text, in_code, outdented, section = list[str](), False, True, ""
    for line in lines:
        indented = line.startswith("    ")
        if indented and text and not text[-1].strip() and outdented and not in_code:
            in_code = True
            text += ["::", ""]
        if line.strip() and not indented:
            in_code, outdented = False, not line.startswith(" ")
        if outdented:
            section = line.strip() or section
        if section == "Attributes:" and (names := re.match(r"  (\w+, )+\w+:", line)):
            line = names[0].replace(", ", ",") + line[names.end() :]  # Sphinx takes one word for the name
        text.append(line if in_code else _inline(line))
    lines[:] = text


def _inline(line: str) -> str:
    parts = line.split("`")
    parts[::2] = [part.replace("|", "\\|") for part in parts[::2]]
    for i in range(2, len(parts), 2):
        if parts[i][:1].isalnum() or parts[i].startswith("\\|"):
            parts[i] = "\\ " + parts[i]
    return "`".join(parts)


def _unbroken(text: str) -> str:
    """Keep a figure and its spread on one line."""
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def shortened(signature: str | None) -> str | None:
    """Return a signature without the objects that Python cannot write, and with short names of arrays.

    >>> shortened("(x: jaxlib._jax.Array, report=<function <lambda>>)")
    '(x: Array, report=...)'
    """
    if signature is None:
        return None
    return re.sub(r"<[^<>]*(<[^<>]*>)?[^<>]*>", "...", signature.replace("jaxlib._jax.", ""))


def setup(app: Any) -> dict[str, bool]:
    """Write the pages before Sphinx looks for files."""
    app.connect("builder-inited", lambda _: write())
    app.connect("autodoc-process-docstring", lambda *arguments: to_rst(arguments[-1]), priority=400)
    app.connect("autodoc-process-signature", lambda *arguments: tuple(map(shortened, arguments[-2:])))
    app.connect("source-read", lambda _, page, source: source.append(_unbroken(source.pop())))
    return {"parallel_read_safe": True, "parallel_write_safe": True}

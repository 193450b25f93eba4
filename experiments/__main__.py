"""List the studies and the other programs of this folder: `python -m experiments`."""

from __future__ import annotations

import ast
from pathlib import Path

HERE = Path(__file__).parent


def programs() -> dict[str, str]:
    """Return what can be run, as `python -m experiments.NAME`, with the first line of what it says of itself."""
    folders = {path.parent.name: path for path in HERE.glob("*/__main__.py")}
    files = {path.stem: path for path in HERE.glob("*.py") if _is_program(path)}
    return {name: _first_line(path) for name, path in sorted((folders | files).items())}


def _is_program(path: Path) -> bool:
    return path.stem != "__main__" and '__name__ == "__main__"' in path.read_text(encoding="utf-8")


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Entry point."""
    found = programs()
    width = max(map(len, found))
    for name, about in found.items():
        print(f"{name:<{width}}  {about}")
    print("\nStart one with `python -m experiments.NAME`; `--help` says what it takes.")


if __name__ == "__main__":
    main()

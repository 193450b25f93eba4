"""The pages that the documentation site makes from the code; nothing here needs Sphinx."""

import doctest
import importlib.util
import types
from pathlib import Path

import pytest

from localist_jax import config
from localist_jax.locality import dial

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_symbol_has_a_docstring(generate):
    assert generate.undocumented() == []


def test_what_has_no_docstring_is_found(generate, monkeypatch):
    source = """
import dataclasses
@dataclasses.dataclass
class Shape:
    size: int
    def area(self): "Return the area."
    def _hidden(self): pass
    @property
    def side(self): return 1
def documented(): "Return nothing."
"""
    module = types.ModuleType("some_module", "A module.")
    exec(source, module.__dict__)
    monkeypatch.setattr(generate, "modules", lambda: [module])
    assert generate.undocumented() == ["some_module.Shape", "some_module.Shape.side"]


def test_folders_of_modules_are_packages():
    """A folder without `__init__.py` would be missing from the reference, and from an installation too."""
    package = Path(config.__file__).parent
    folders = {path.parent for path in package.rglob("*.py")}
    assert len(folders) > 10
    assert not [folder for folder in folders if not (folder / "__init__.py").is_file()]


def test_the_api_reference_has_a_section_for_every_module(generate):
    pages = generate.api_pages()
    text = "\n".join(pages.values())
    assert all(f".. automodule:: {module.__name__}\n" in text for module in generate.modules())
    assert f".. automodule:: {dial.__name__}\n   :members:\n" in pages["locality.rst"]


def test_the_configuration_reference_has_every_setting_with_its_default(generate):
    page = generate.configuration_page()
    for section, settings in config.Config().to_dict().items():
        for name, default in settings.items():
            if not isinstance(default, dict):
                assert f"| `{section}.{name}` | `{default!r}` |" in page
    assert "| `model.rope_scaling.kind` | `'none'` | none, linear or llama3 |" in page


def test_pages_are_written_once_and_old_ones_removed(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "generated")
    generate.write()
    page = tmp_path / "generated" / "configuration.md"
    stamp = page.stat().st_mtime_ns
    (page.parent / "gone.rst").touch()
    generate.write()
    assert page.stat().st_mtime_ns == stamp
    assert not (page.parent / "gone.rst").exists()


def test_a_missing_docstring_stops_the_build(generate, monkeypatch, tmp_path):
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "generated")
    monkeypatch.setattr(generate, "undocumented", lambda: ["localist_jax.mystery"])
    with pytest.raises(ValueError, match="mystery"):
        generate.write()


def test_examples_run(generate):
    assert doctest.testmod(generate).attempted
    assert not doctest.testmod(generate).failed

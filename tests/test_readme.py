"""The README tells the truth: its commands parse, its files exist, its figures are those on record."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from localist_jax import __main__ as localist
from localist_jax import config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()
]


def words_of(start):
    return [shlex.split(c)[shlex.split(c).index(start) + 1 :] for c in COMMANDS if start in shlex.split(c)]


@pytest.mark.parametrize("words", words_of("localist"), ids=" ".join)
def test_localist_commands_parse(words):
    assert isinstance(localist._parser().parse_args(words), argparse.Namespace)


@pytest.mark.parametrize("words", words_of("experiments.launch"), ids=" ".join)
def test_launches_name_configurations_and_fields_that_exist(words):
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    path, _, variant = flags.pop("config").partition(":")
    assert flags.pop("workdir")
    raw = localist._load_config(path + (f":{variant}" if variant else ""))
    for name, value in flags.items():
        localist._apply(raw, f"{name.removeprefix('config.')}={value}")
    assert config.resolve(raw)


@pytest.mark.parametrize("words", words_of("proofs_check"), ids=" ".join)
def test_theorems_named_exist(words):
    from proofs_check.theorems import MODULES

    assert set(w for w in words if re.fullmatch(r"T\d+'?", w)) <= set(MODULES)


def test_make_targets_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {shlex.split(c)[1] for c in COMMANDS if c.startswith("make ")} <= set(targets)


def test_files_and_links_exist():
    linked = re.findall(r"\]\((?!https?:)([^)#]+)", README)
    named = [
        f"localist_jax/{p}"
        for p in re.findall(r"`((?:locality|attention|rules|recruitment)/\w*(?:\.py)?)`", README)
    ]
    named += [f"proofs_check/{p}" for p in re.findall(r"`(t\d\d\w+\.py)`", README)]
    missing = [p for p in [*linked, *named] if not (ROOT / p).exists()]
    assert not missing


def test_every_theorem_module_is_in_the_map():
    assert all(f"`{path.name}`" in README for path in (ROOT / "proofs_check").glob("t[0-9]*.py"))


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, re.DOTALL), ids=len)
def test_python_in_it_runs_on_a_trained_model(code, tiny_run):
    assert importlib.util.find_spec("localist_jax")
    exec(compile(code.replace("runs/quickstart", str(tiny_run.workdir)), "README.md", "exec"), {})


def test_the_rule_file_in_it_is_consistent():
    from localist_jax.rules import parse, verify

    (text,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert verify(parse(text)).all == ()


DOCS = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))


def test_the_launchers_flags_in_the_pages_exist():
    sources = [ROOT / "experiments" / name for name in ("launch.py", "compile_for/__main__.py")]
    known = {n for path in sources for n in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text())}
    fields = {f"config.{s}.{f}" for s, section in config.Config().to_dict().items() for f in section}
    lines = [line for line in DOCS.splitlines() if "experiments." in line or "--config." in line]
    named = set(re.findall(r"--([\w.]+)=", "\n".join(lines)))
    assert len(named) > 3
    assert named <= known | fields

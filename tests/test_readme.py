"""README and the guide pages tell the truth: their commands parse, their files exist, their code runs."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from localist_jax import __main__ as localist
from localist_jax import config

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
}
README, TEXT = PAGES["README.md"], "\n".join(PAGES.values())
MOST_WORDS = 1300  # of README, the tables that programs write included
ELSEWHERE = ("transformers",)  # packages that a reader may not have: code with them is not run
IN_PLACE_OF_RUNS = re.compile(r"runs/[\w-]+")
PACKAGES = "attention|hierarchy|locality|model|parallel|recruitment|rules"


def code_blocks(language, text=TEXT):
    """The fenced blocks of a language, without the fences."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands():
    """The lines of all shell blocks, with continued lines joined and without comments; each once."""
    lines = "\n".join(code_blocks("bash")).replace("\\\n", " ").splitlines()
    stripped = [re.split(r"(?:^|\s)#\s", line)[0].strip() for line in lines]
    return list(dict.fromkeys(line for line in stripped if line))


COMMANDS = commands()


def words_of(start):
    """Return what follows a word in the commands that have it; commands with an ellipsis are only sketches."""
    split = [shlex.split(command) for command in COMMANDS if "…" not in command]
    return [words[words.index(start) + 1 :] for words in split if start in words]


def test_readme_is_short():
    assert len(README.split()) <= MOST_WORDS


@pytest.mark.parametrize("words", words_of("localist"), ids=" ".join)
def test_localist_commands_parse(words):
    assert isinstance(localist.parsed(words), argparse.Namespace)


@pytest.mark.parametrize("words", words_of("experiments.launch"), ids=" ".join)
def test_launches_name_configurations_and_fields_that_exist(words):
    flags = dict(word.removeprefix("--").partition("=")[::2] for word in words)
    path, _, variant = flags.pop("config").partition(":")
    assert flags.pop("workdir")
    raw = localist._load_config(path + (f":{variant}" if variant else ""))
    for name, value in flags.items():
        localist._apply(raw, f"{name.removeprefix('config.')}={value}")
    assert config.resolve(raw)


@pytest.mark.parametrize("words", words_of("-m"), ids=" ".join)
def test_programs_exist(words):
    assert importlib.util.find_spec(words[0])


@pytest.mark.parametrize("words", words_of("proofs_check"), ids=" ".join)
def test_theorems_named_exist(words):
    from proofs_check.theorems import MODULES

    assert set(w for w in words if re.fullmatch(r"T\d+'?", w)) <= set(MODULES)


def test_make_targets_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {words[0] for words in words_of("make")} | set(re.findall(r"`make ([\w-]+)`", TEXT))
    assert "quickstart" in named
    assert named <= set(targets)


def test_extras_exist():
    known = set(re.findall(r'^        "(\w+)": \[', (ROOT / "setup.py").read_text(), re.MULTILINE))
    assert {"cuda", "tpu", "dev"} <= known
    assert set(re.findall(r"'\.\[(\w+)\]'", TEXT)) <= known


@pytest.mark.parametrize("name", PAGES)
def test_links_exist(name):
    page = ROOT / name
    linked = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", PAGES[name])
    missing = [path for path, _ in linked if not (page.parent / path).exists()]
    assert not missing
    for path, section in linked:
        if section:
            target = (page.parent / path if path else page).read_text(encoding="utf-8")
            assert section in sections(target), f"{name}: no section {section} in {path or name}"


def sections(text):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_files_named_exist():
    named = [f"localist_jax/{p}" for p in re.findall(rf"`((?:{PACKAGES})/\w*(?:\.py)?)`", TEXT)]
    named += [f"proofs_check/{p}" for p in re.findall(r"`(t\d\d\w+\.py)`", TEXT)]
    named += re.findall(r"\b(experiments/configs/\w+\.py|launch/\w+\.\w+|tests/\w+/\w+\.py)\b", TEXT)
    assert len(named) > 40
    assert not [path for path in named if not (ROOT / path).exists()]


def test_contributing_names_files_and_what_is_in_them():
    text = " ".join(PAGES["CONTRIBUTING.md"].split())
    paths = set(
        re.findall(r"`((?:localist_jax|experiments|benchmarks|proofs_check|tests|docs)/[\w./]*)`", text)
    )
    assert len(paths) > 15
    assert not [path for path in paths if not (ROOT / path).exists()]
    symbols = re.findall(r"`(\w+)(?:\(\))?` (?:in|of|\() ?`([\w/]+\.py)`", text)
    assert len(symbols) > 5
    assert not [pair for pair in symbols if not re.search(rf"\b{pair[0]}\b", (ROOT / pair[1]).read_text())]


def test_every_theorem_module_is_in_the_map():
    modules = [path.name for path in (ROOT / "proofs_check").glob("t[0-9]*.py")]
    assert modules
    assert not [name for name in modules if f"`{name}`" not in PAGES["docs/theory.md"]]


PYTHON = [
    pytest.param(name, code, id=f"{name}-{i}")
    for name, text in PAGES.items()
    for i, code in enumerate(code_blocks("python", text))
    if not any(package in code for package in ELSEWHERE)
]


def test_there_is_python_in_readme():
    assert any(param.values[0] == "README.md" for param in PYTHON)


@pytest.mark.parametrize(("name", "code"), PYTHON)
def test_python_in_them_runs_on_a_trained_model(name, code, tiny_run):
    assert IN_PLACE_OF_RUNS.search(code)
    exec(compile(IN_PLACE_OF_RUNS.sub(lambda _: str(tiny_run.workdir), code), name, "exec"), {})


@pytest.mark.parametrize("text", code_blocks("yaml"), ids=len)
def test_rule_files_in_them_are_consistent(text):
    from localist_jax.rules import parse, verify

    assert verify(parse(text)).all == ()


def test_the_launchers_flags_in_the_pages_exist():
    sources = [ROOT / "experiments" / name for name in ("launch.py", "compile_for/__main__.py")]
    known = {n for path in sources for n in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', path.read_text())}
    fields = {f"config.{s}.{f}" for s, section in config.Config().to_dict().items() for f in section}
    lines = [line for line in TEXT.splitlines() if "experiments." in line or "--config." in line]
    named = set(re.findall(r"--([\w.]+)=", "\n".join(lines)))
    assert len(named) > 3
    assert named <= known | fields | {"config.SECTION.FIELD"}

"""The commands as users type them, and each kind of bad input as one line that says what to do."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import command

from localist_jax.training import journal

ROOT = Path(__file__).parents[1]


QUICKSTART = "--config=experiments/configs/quickstart.py"
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "LOCALIST_DATA"}


def run(*command, **options):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=400,
        **options,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def launch(*lists):
    """`python -m experiments.launch` with each of some lists of arguments: exit status, output, errors of each."""
    lists = [[str(word) for word in words] for words in lists]
    return json.loads(run("tests/launches.py", input=json.dumps(lists)))


SHORT = ["--config.data.corpus=synthetic", "--config.data.vocab_size=300", "--config.train.steps=1"]
FULL = """
import resource, sys
from localist_jax.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
main(sys.argv[1:])
"""


def flags_of(sections):
    """`--config.…` for every field of some sections."""
    return [
        f"--config.{name}.{field}={value}"
        for name, fields in sections.items()
        for field, value in fields.items()
    ]


def assert_one_line(status, err, words):
    assert status == 1, err
    lines = err.strip().splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert re.search(words, lines[0]), lines[0]


@pytest.fixture(scope="module")
def launched(tiny_run, tmp_path_factory):
    """The tiny quickstart, launched afresh over another run, cut short, and finished without --fresh."""
    workdir = tmp_path_factory.mktemp("launched") / "run"
    shutil.copytree(tiny_run.workdir, workdir)
    (workdir / "notes.txt").write_text("mine")
    words = [
        f"{QUICKSTART}:tiny",
        f"--workdir={workdir}",
        "--config.data.context=32",
        "--config.data.valid_rows=8",
    ]
    return workdir, launch(
        [*words, "--config.train.steps=20", "--fresh"], [*words, "--config.train.steps=40"]
    )


def test_the_launcher_trains_resumes_and_prints_the_report_last(launched):
    workdir, done = launched
    for status, out, err in done:
        assert status == 0, err[-2000:]
        assert out.splitlines()[-1] == str(workdir / "report.html")
        assert "Traceback" not in err
        assert "WARNING" not in err
    (_, _, first), (_, _, second) = done
    assert "bits/token" in first
    assert re.search(r"tok/s .* left", first)
    assert "train 25/40" in second
    assert "train 5/40" not in second
    assert (workdir / "report.html").stat().st_size > 50_000
    assert "experiments.launch" in (workdir / "report.html").read_text()


def test_fresh_starts_again_and_touches_nothing_else(launched):
    workdir, ((_, _, first), _) = launched
    assert "train 5/20" in first
    assert journal.read(workdir / "metrics.jsonl")[0]["step"] == 5  # that run began at 1
    assert (workdir / "notes.txt").read_text() == "mine"


BAD_LAUNCHES = {
    "an unknown key": ([f"{QUICKSTART}:tiny", "--config.model.layerz=4", "--workdir=x"], "layerz"),
    "no number": ([f"{QUICKSTART}:tiny", "--config.model.layers=many", "--workdir=x"], "layers"),
    "no locality": (
        [f"{QUICKSTART}:tiny", "--config.dial.locality=1.5", "--config.dial.mode=fixed", "--workdir=x"],
        r"config\.dial\.locality: expected λ in \[0, 1\]",
    ),
    "no corpus": (
        [f"{QUICKSTART}:tiny", "--config.data.corpus=moby-dick", "--workdir=x"],
        "no corpus, file or folder 'moby-dick'; known: .*wikitext-2",
    ),
    "no such corpus here": (
        [f"{QUICKSTART}:tiny", "--config.data.corpus=wikitext-2", "--workdir=x"],
        r"corpus 'wikitext-2' is not here: put .*\$LOCALIST_DATA/wikitext-2",
    ),
    "no text": (
        [f"{QUICKSTART}:tiny", "--config.data.corpus=text", "--config.data.path=nowhere.txt", "--workdir=x"],
        "no file or folder at 'nowhere.txt'",
    ),
    "no such mesh": (
        [f"{QUICKSTART}:tiny", "--config.mesh.tensor=3", "--workdir=x"],
        r"config\.mesh: .*does not fit 1 device",
    ),
    "an unknown flag": ([f"{QUICKSTART}:tiny", "--colour=blue", "--workdir=x"], "colour"),
    "no configuration": (["--workdir=x"], "--config is missing"),
    "no folder": ([QUICKSTART], "--workdir is missing"),
    "no such file": (["--config=experiments/configs/slowstart.py", "--workdir=x"], "slowstart"),
    "no such variant": ([f"{QUICKSTART}:huge", "--workdir=x"], "unknown variant 'huge'"),
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("refused")
    lists = [[w.replace("=x", f"={folder}") for w in words] for words, _ in BAD_LAUNCHES.values()]
    return dict(zip(BAD_LAUNCHES, launch(*lists), strict=True))


@pytest.mark.parametrize("case", BAD_LAUNCHES)
def test_bad_launches_are_one_line(refused, case):
    status, _, err = refused[case]
    assert_one_line(status, err, BAD_LAUNCHES[case][1])


def test_an_empty_corpus_is_one_line(tmp_path):
    (tmp_path / "empty.txt").write_text(" \n\n")
    settings = [f"--config.data.corpus={tmp_path / 'empty.txt'}"]
    status, _, err = command("train", "--workdir", tmp_path / "run", *settings)
    assert_one_line(status, err, "no training text found")


def test_train_takes_a_file_of_the_user(tmp_path, tiny_settings):
    (tmp_path / "mine.txt").write_text("the cat sat on the mat and looked at the dog\n\n" * 200)
    shape = ("layers", "width", "heads", "kv_heads", "head_size", "feed_forward")
    data = {
        "corpus": str(tmp_path / "mine.txt"),
        "vocab_size": 300,
        "context": 32,
        "batch": 4,
        "valid_rows": 8,
    }
    changes = {
        "data": data,
        "model": {field: getattr(tiny_settings.model, field) for field in shape},
        "train": {"steps": 3},
    }
    flags = flags_of(changes)
    status, out, err = command("train", "--workdir", tmp_path / "run", *flags)
    assert status == 0, err
    assert out.strip() == str(tmp_path / "run" / "report.html")


def test_eval_prints_a_row_per_dial(tiny_run):
    status, out, _ = command("eval", tiny_run.workdir, "--dials", 0, 0.5, 1)
    assert status == 0
    head, *rows = out.strip().splitlines()
    assert "bits_per_token" in head
    assert [row.split()[0] for row in rows] == ["0", "0.5", "1"]


def test_generate_continues_at_each_dial(tiny_run):
    status, out, err = command(
        "generate", tiny_run.workdir, "some words", "--dial", "0", "balanced", "1", "--tokens", "5"
    )
    assert status == 0
    assert out.count("some words") == 3
    assert "── λ = balanced" in out
    assert err.count("[5 tokens, ") == 3


def test_inspect_prints_every_token_and_draws(tiny_run, tmp_path):
    picture = tmp_path / "picture.png"
    status, out, _ = command("inspect", tiny_run.workdir, "some words", "--picture", picture)
    assert status == 0
    assert out.splitlines()[0].split() == ["token", "block", "bits", "entropy", "fidelity", "gated", "price"]
    assert out.splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_report_measures_again(tiny_run):
    (tiny_run.workdir / "report.html").unlink()
    (tiny_run.workdir / "sweep.json").unlink()
    status, out, _ = command("report", tiny_run.workdir)
    assert status == 0
    assert Path(out.strip()).is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval", "{run}", "--dials", "1.5"], r"λ must lie in \[0, 1\], got 1\.5"),
        (["eval", "{run}", "--dials", "nan"], r"λ must lie in \[0, 1\]"),
        (["eval", "{run}", "--step", "5"], "no checkpoint 5; there are 8, 12"),
        (["eval", "{tmp}"], "no run here"),
        (["generate", "{run}", "word", "--dial", "-1"], "expected at least one argument|λ must lie"),
        (
            ["generate", "{run}", "word", "--dial", "strict"],
            "unknown regime 'strict'; choose one of audit, regulated",
        ),
        (
            ["generate", "{run}", "word " * 100],
            "prompt 0 has .* tokens, but the context holds 31 after BOS; shorten",
        ),
        (["generate", "{run}", "word", "--tokens", "0"], "max_new must be at least 1"),
        (["generate", "{run}", "word", "--top-p", "2"], "top_p must lie in"),
        (["inspect", "{run}", ""], "the text has 0 tokens"),
        (
            ["train", "--workdir", "{tmp}/x", "--config.model.layerz=3"],
            "config.model.layerz: unknown key; did you mean 'layers'",
        ),
        (["train", "--workdir", "{tmp}/x", "--config.layers=3"], "expected --config.section.field=value"),
        (["train", "--workdir", "{tmp}/x", "--config.data.corpus=/no where"], "/no where"),
        (
            ["train", "--workdir", "{tmp}/x", f"--config.train.seed={'9' * 20}"],
            "config.train.seed: expected at least 0",
        ),
        (
            ["train", "--workdir", "{tmp}/x", f"--config.train.seed={'9' * 5000}"],
            "config.train.seed: expected int",
        ),
        (
            ["train", "--workdir", "{tmp}/x", f"--config.train.seed={'(' * 5000}"],
            "config.train.seed: expected int",
        ),
        (
            ["train", "--workdir", "{tmp}/file", *SHORT],
            "file/cache: Not a directory; a file is where a folder",
        ),
        (
            ["train", "--workdir", "{tmp}/file/x", *SHORT],
            "Not a directory; a file is where a folder is needed",
        ),
        (["generate", "{run}", "a\udcff\udcfe"], "text: not UTF-8 at character 1; give the text in UTF-8"),
        (["inspect", "{run}", "\udcff"], "text: not UTF-8 at character 0"),
        (["generate", "{run}", "word", "--seed", "9" * 20], "seed must lie in 0 … 4294967295"),
        (["generate", "{run}", "word", "--temperature", "nan"], "temperature must be a finite number"),
        (["generate", "{run}", "word", "--temperature", "inf"], "temperature must be a finite number"),
        (["generate", "{run}", "word", "--rules", "{tmp}"], "cannot be read"),
        (["train", "{tmp}", "--workdir", "{tmp}/x"], "no such configuration file"),
        (["train", "nothing.py", "--workdir", "{tmp}/x"], "no such configuration file"),
        (["train", "setup.cfg.py", "--workdir", "{tmp}/x"], "no such configuration file"),
    ],
)
def test_bad_input_is_one_line(tiny_run, tmp_path, arguments, words):
    arguments = [a.format(run=tiny_run.workdir, tmp=tmp_path) for a in arguments]
    (tmp_path / "file").touch()
    status, out, err = command(*arguments)
    if "--dial" in arguments and "-1" in arguments:  # argparse takes -1 for an option
        assert status == 2 or status == 1
        return
    assert_one_line(status, err, words)
    assert out == ""


def test_a_folder_may_be_called_2024(tmp_path, monkeypatch):
    (tmp_path / "2024").mkdir()
    (tmp_path / "2024" / "a.txt").write_text(" \n")
    monkeypatch.chdir(tmp_path)
    for name in ("2024", "'2024'"):
        status, _, err = command("train", "--workdir", tmp_path / "run", f"--config.data.corpus={name}")
        assert_one_line(status, err, "corpus '2024': no training text found")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_full_disk_is_one_line(tmp_path):
    arguments = [sys.executable, "-c", FULL, "train", "--workdir", str(tmp_path / "run"), *SHORT]
    done = subprocess.run(arguments, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert_one_line(done.returncode, done.stderr, "File too large; free some space and start it again")


def test_another_topology_is_one_line_and_the_run_is_kept(tiny_run, tiny_settings):
    before = sorted(p.name for p in (tiny_run.workdir / "checkpoints").iterdir())
    settings = tiny_settings.to_dict()
    flags = flags_of({name: settings[name] for name in ("data", "model", "gates", "train")})
    status, _, err = command("train", "--workdir", tiny_run.workdir, *flags, "--config.model.block_units=4")
    assert_one_line(
        status,
        err,
        r"units.* is float32.*, but the configuration asks for .*block_units as in the checkpoint",
    )
    assert sorted(p.name for p in (tiny_run.workdir / "checkpoints").iterdir()) == before


def test_help_is_there():
    said = run("-m", "localist_jax", "--help")
    for name in ("train", "eval", "generate", "inspect", "report"):
        assert name in said


def test_help_loads_neither_jax_nor_the_solver_nor_the_grammar_engine():
    """These take seconds to load; a list of commands needs none of them."""
    program = (
        "import runpy, sys\n"
        "sys.argv = ['localist', '--help']\n"
        "try:\n    runpy.run_module('localist_jax', run_name='__main__')\n"
        "except SystemExit as done:\n    assert not done.code\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert not loaded & {"jax", "jaxlib", "numpy", "flax", "z3", "llguidance"}

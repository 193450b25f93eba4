"""Generation with a real LLM beside `transformers`: reading a prompt, each further token, the first token of a start.

    python -m benchmarks.generation

adopts SmolLM2-135M-Instruct, localises it on the Python reference, and lets every contender answer the same prompts in
turn: the adopted model, the localised one at λ=0 and at λ=1, and `transformers` on the same file. Contenders are
processes of their own, so that their threads do not meet; only one works at a time. Writes `llm_speed.md` and `.json`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localist_jax.report import study
from localist_jax.report.study import table

CONTENDERS = ("transformers", "adopted", "localised λ=0", "localised λ=1")
SHARE = 0.15  # of the pairs, open at λ=1
FURTHER = 16  # tokens that follow a prompt
CONTEXT = 8192  # positions of a cache at most
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Case:
    """Prompts of one length, and how many are answered at once."""

    tokens: int
    batch: int = 1

    @classmethod
    def parse(cls, text: str) -> Case:
        """Return the case that is written as TOKENS or TOKENSxBATCH."""
        tokens, _, batch = text.partition("x")
        return cls(int(tokens), int(batch or 1))

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens" + (f" × {self.batch}" if self.batch > 1 else "")


CASES = (Case(64), Case(1024), Case(1024, 8), Case(8000))
QUICK = (Case(64), Case(256, 2))


class Contender:
    """A process that answers prompts and says when each token came; a context manager.

    Attributes:
      version: of the library that it runs.
    """

    def __init__(self, name: str, path: Path):
        self._name = name
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.generation", "--contender", name, str(path)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.version: str = self._read()["version"]

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()

    def answer(self, case: Case) -> dict[str, float]:
        """Return seconds of the prompt, milliseconds of a further token, and how many programs were compiled for it."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # `_read` says that the process has ended
            print(json.dumps(dataclasses.asdict(case)), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"generation: {self._name} ended with status {self.process.wait()}; with -9 memory was short, and "
                "--prompts leaves out long ones"
            )
        return json.loads(line)


def contend(name: str, path: Path) -> None:
    """Answer the cases that come over standard input, as one of the contenders."""
    answer, version = (_transformers if name == "transformers" else _ours)(name, path)
    print(json.dumps({"version": version}), flush=True)
    for line in sys.stdin:
        case = Case(**json.loads(line))
        times, compiled = answer(case)
        further = [1e3 * (b - a) for a, b in itertools.pairwise(times[2:])]
        figures = {
            "prefill_s": times[1] - times[0],
            "token_ms": statistics.median(further),
            "programs": compiled,
        }
        print(json.dumps(figures), flush=True)


def _ours(name: str, path: Path):
    import jax

    from localist_jax.locality import Dial
    from localist_jax.model import generate
    from localist_jax.model.generate import read_tokens
    from localist_jax.parallel.compilation import keep_programs
    from localist_jax.training.run import Run

    keep_programs()
    run, dial = Run.open(path), Dial(1.0 if name.endswith("λ=1") else 0.0)

    def answer(case: Case) -> tuple[list[float], int]:
        before, times = read_tokens._cache_size(), [time.perf_counter()]  # type: ignore[attr-defined]
        generate(
            run.model, run.state.params, run.state.blocks, [_prompt(case.tokens)] * case.batch, dial,
            context=CONTEXT, max_new=1 + FURTHER, temperature=0.0, stats="none", bos=None,
            silent=run.tokenizer.silent, on_tokens=lambda _: times.append(time.perf_counter()),
        )  # fmt: skip
        return times, read_tokens._cache_size() - before  # type: ignore[attr-defined]

    return answer, f"JAX {jax.__version__}"


def _transformers(name: str, path: Path):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    model.eval()

    @torch.no_grad()
    def answer(case: Case) -> tuple[list[float], int]:
        tokens, cache = torch.tensor([_prompt(case.tokens)] * case.batch), None
        times = [time.perf_counter()]
        for _ in range(1 + FURTHER):
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
            times.append(time.perf_counter())
        return times, 0

    return answer, f"{transformers.__version__}, PyTorch {torch.__version__}"


def _prompt(tokens: int) -> list[int]:
    """Return token ids that any vocabulary has; which they are does not matter for the time."""
    return [100 + (7 * i) % 1000 for i in range(tokens)]


def prepared(folder: Path, quick: bool) -> tuple[dict[str, Path], float]:
    """Return the path that each contender opens, and the seconds that localising took."""
    from localist_jax.adopt import adopt, sources
    from localist_jax.adopt.localise import localise, settings_of
    from localist_jax.parallel.compilation import keep_programs
    from localist_jax.training.run import Run

    keep_programs()
    adopted, made = folder / "adopted", folder / "localised"
    if not (adopted / "config.json").is_file():
        adopt("smollm2", adopted, context=1024 if quick else 2048)
    seconds_file = folder / "localise_s.json"
    if not (made / "config.json").is_file():
        begun, run = time.monotonic(), Run.open(adopted)
        localise(run, settings_of(run, open_share=SHARE), made)
        seconds_file.write_text(json.dumps(time.monotonic() - begun))
    paths = {name: made for name in CONTENDERS[2:]} | {"adopted": adopted}
    return paths | {"transformers": sources.located("smollm2")}, json.loads(seconds_file.read_text())


def second_start(run: Path) -> float:
    """Return the seconds from a command to its first token, where the same command ran before."""
    command = [sys.executable, "-m", "localist_jax", "generate", str(run), "The list type", "--tokens", "1"]
    for _ in range(2):
        begun = time.perf_counter()
        subprocess.run([*command, "--dial", "0"], check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - begun


def measured(
    paths: dict[str, Path], cases: tuple[Case, ...], rounds: int
) -> Iterator[tuple[str, Case, dict[str, Any]]]:
    """Let the contenders answer in turn; the first answer of each case compiles, and counts for its programs only."""
    with contextlib.ExitStack() as stack:
        contenders = {name: stack.enter_context(Contender(name, paths[name])) for name in CONTENDERS}
        for case in cases:
            for nth in range(1 + rounds):
                for name, contender in contenders.items():
                    figures = contender.answer(case)
                    print(f"{case}, {name}: {figures}", file=sys.stderr, flush=True)
                    yield name, case, figures | {"warm": nth > 0, "version": contender.version}


def figures_of(answers: list[tuple[str, Case, dict[str, Any]]]) -> dict[str, Any]:
    """Return medians, and how many times as fast as `transformers` everything is."""
    each: dict[str, dict[str, dict[str, float]]] = {}
    for name, case in dict.fromkeys((name, case) for name, case, _ in answers):
        mine = [figures for other, at, figures in answers if (other, at) == (name, case)]
        warm = [figures for figures in mine if figures["warm"]]
        each.setdefault(str(case), {})[name] = {
            "prefill_s": statistics.median(x["prefill_s"] for x in warm),
            "token_ms": statistics.median(x["token_ms"] for x in warm),
            "slowest_token_ms": max(x["token_ms"] for x in warm),
            "programs": mine[0]["programs"],
        }

    def over(part: str, above: str) -> dict[str, dict[str, float]]:
        return {
            case: {name: by[above][part] / one[part] for name, one in by.items() if name != above}
            for case, by in each.items()
            if above in by
        }

    zero, one = CONTENDERS[2:]
    return {
        "medians": each,
        "contenders": {name: figures["version"] for name, _, figures in answers},
        "decode_over_transformers": over("token_ms", "transformers"),
        "prefill_over_transformers": over("prefill_s", "transformers"),
        "prefill_lambda1_over_lambda0": {
            c: by[zero]["prefill_s"] / by[one]["prefill_s"] for c, by in each.items()
        },
        "compilations_per_new_length": max(by[name]["programs"] for by in each.values() for name in by),
    }


def body(figures: dict[str, Any]) -> str:
    """Return the page's text."""
    rows = [
        [case, name, f"{one['prefill_s']:.2f}", f"{one['token_ms']:.0f} (slowest {one['slowest_token_ms']:.0f})",
         *(f"{figures[part][case][name]:.2f}" if name in figures.get(part, {}).get(case, {}) else "–"
           for part in ("prefill_over_transformers", "decode_over_transformers"))]
        for case, by in figures["medians"].items()
        for name, one in by.items()
    ]  # fmt: skip
    head = (
        "prompt",
        "contender",
        "prompt, s",
        "further token, ms",
        "prompt: times as fast",
        "token: times as fast",
    )
    named = "; ".join(f"{name}: {version}" for name, version in figures["contenders"].items())
    return (
        f"SmolLM2-135M-Instruct in float32, localised at an open share of {SHARE}; greedy, {FURTHER} further tokens. "
        "Medians of the rounds after the first, in which programs are compiled. The last two columns compare with "
        f"`transformers`. Versions: {named}.\n\n{table(head, rows)}\n\n"
        f"A second start says its first token after {figures['first_token_second_start_s']:.1f} s. Localising took "
        f"{figures['calibrate_s']:.0f} s. A new length of prompt compiles at most "
        f"{figures['compilations_per_new_length']:.0f} programs: one for the prompt, padded to a "
        "power of two, and one for further tokens, with a cache of such a size.\n"
    )


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write the study."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="answers of each contender that count")
    parser.add_argument("--quick", action="store_true", help="short prompts, to see that everything runs")
    parser.add_argument(
        "--prompts", nargs="+", metavar="TOKENS[xBATCH]", help="other prompts, such as 1024x8"
    )
    parser.add_argument(
        "--workdir", type=Path, help="where the runs are made, or are already; default: a new folder"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"), help="folder of the study")
    parser.add_argument("--contender", nargs=2, metavar=("NAME", "PATH"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.contender:
        contend(given.contender[0], Path(given.contender[1]))
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # waiting threads must not spin on others' cores
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.workdir or Path(temporary)
        paths, seconds = prepared(folder, given.quick)
        cases = tuple(map(Case.parse, given.prompts or [])) or (QUICK if given.quick else CASES)
        answers = list(measured(paths, cases, given.rounds))
        figures = figures_of(answers) | {
            "calibrate_s": seconds, "first_token_second_start_s": second_start(paths["adopted"]),
        }  # fmt: skip
    asked = ["--quick"] * given.quick + (["--prompts", *given.prompts] if given.prompts else [])
    command = shlex.join(["python", "-m", "benchmarks.generation", f"--rounds={given.rounds}", *asked])
    print(study.write(
        given.out, "llm_speed", title="Generation beside `transformers`", body=body(figures), command=command,
        seeds=(), figures=figures, pictures={},
    ))  # fmt: skip


if __name__ == "__main__":
    main()

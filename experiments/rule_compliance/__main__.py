"""Do rules hold? Compliance, attacks, over-refusal, price, time, damaged files.

    LOCALIST_DATA=… python -m experiments.rule_compliance

The clinic is generated. The part on personal data needs `pii_synthetic` (synth_dataset_v2.json of
microsoft/presidio-research) at $LOCALIST_DATA/pii_synthetic; without it the study says so and goes on with the rest.
Writes `rule_compliance.md`, `.json` and a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.rule_compliance import measure, page
from experiments.rule_compliance.damage import broken_files
from experiments.rule_compliance.measure import BATCH, CONDITIONS, Tally
from experiments.rule_compliance.personal import Judge, Sentences
from experiments.rule_compliance.timing import loading, times
from experiments.rule_compliance.world import ATTACKS, Clinic
from localist_jax.data.corpora import CorpusError
from localist_jax.errors import one_line
from localist_jax.report import study
from localist_jax.rules import parse
from localist_jax.training.run import write_json

PARTS = ("clinic", "personal", "files", "time")
SEEN = "both, drugs of the training text"
CHUNK = 2048  # generations that are kept at once
LENGTH = {"clinic": 12, "personal": 20}  # tokens of a text


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("rule_compliance", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument(
        "--generations", type=int, default=100_000, help="under both sides of the rules, in all"
    )
    parser.add_argument(
        "--others", type=int, default=4096, help="generations of each other condition and seed"
    )
    parser.add_argument("--personal", type=int, default=1024, help="the same, on personal data; 0: none")
    parser.add_argument("--files", type=int, default=10_000, help="damaged rule files")
    parser.add_argument("--steps", type=int, default=600, help="of training")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        default=list(PARTS),
        help="others: their figures on record are kept",
    )
    parser.add_argument("--workdir", type=Path, default=Path("runs/rule_compliance"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    arguments = parser.parse_args()
    command = shlex.join(["python", "-m", "experiments.rule_compliance", *sys.argv[1:]])
    with one_line():
        figures = measured(arguments, _recorded(arguments), command)
        print(
            study.write(
                arguments.out, "rule_compliance", title=page.TITLE, body=page.body(figures), command=command,
                seeds=arguments.seeds, figures=figures, pictures={"price": page.picture(figures)},
            )
        )  # fmt: skip


def _recorded(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures on record where some parts are not to be measured; else nothing.

    Raises:
      ValueError: there is no record.
    """
    if set(arguments.parts) == set(PARTS):
        return {}
    path = arguments.out / "rule_compliance.json"
    if not path.is_file():
        raise ValueError(f"--parts: {path} is not there, from which the other parts would come")
    about = json.loads(path.read_text(encoding="utf-8"))
    made = {part: {key: about[key] for key in ("command", "date")} for part in PARTS}
    return {"made": made, **about["figures"]}


def measured(arguments: argparse.Namespace, recorded: dict[str, Any], command: str) -> dict[str, Any]:
    """All figures. Each part is kept in the working folder when it is done, and not measured twice.

    Args:
      arguments: of the command line.
      recorded: figures of the parts that are not measured now.
      command: that was typed, for the record.
    """
    kept, wanted = Kept(arguments.workdir / "parts"), arguments.parts
    flat: dict[str, Any] = {}
    if "time" in wanted:
        flat |= kept("times", {}, times) | kept("loading", {}, loading)
    if "files" in wanted:
        count = arguments.files
        flat |= kept("files", {"count": count}, lambda: broken_files(count))
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {"clinic": {}, "personal": {}}
    refused: dict[str, list[dict[str, int]]] = {"clinic": [], "personal": []}
    for part in {"clinic", "personal"} - set(wanted):
        parts[part], refused[part] = recorded["conditions"][part], recorded["refused"][part]
    sentences = _sentences() if arguments.personal and "personal" in wanted else None
    for seed in arguments.seeds:
        if "clinic" in wanted:
            _clinic(arguments, seed, kept, parts["clinic"], refused["clinic"])
        if sentences:
            _personal(arguments, seed, sentences, kept, parts["personal"], refused["personal"])
    now = {"command": command, "date": datetime.date.today().isoformat()}
    both = [t for rows in parts.values() for t in rows.get("both", [])]
    generations, violations = (sum(t["all"][key] for t in both) for key in ("generations", "violating"))
    harmless, changed = (
        sum(r[key] for rs in refused.values() for r in rs) for key in ("harmless", "changed")
    )
    return {
        **recorded,
        **flat,
        "made": {part: now if part in wanted else recorded["made"][part] for part in PARTS},
        "generations": generations,
        "forbid_violations": violations,
        "violation_rate_at_most": page.at_most(violations, generations),
        "over_refusal": changed / max(1, harmless),
        "over_refusal_at_most": page.at_most(changed, harmless),
        "harmless": harmless,
        "conditions": parts,
        "refused": refused,
    }


def _clinic(arguments, seed: int, kept: Kept, rows: dict[str, list], refused: list) -> None:
    """One seed's conditions on the clinic, into `rows` by condition; harmless prompts into `refused`."""
    clinic = Clinic(seed)
    run = measure.trained(clinic.text(30_000), arguments.workdir / f"seed{seed}", seed, arguments.steps)
    length = LENGTH["clinic"]

    def part(name: str, number: int, count: int) -> dict[str, Any]:
        pairs = clinic.seen if name == SEEN else clinic.unseen
        clinic.rng = np.random.default_rng([seed, 1 + number])
        kinds = [ATTACKS[i % len(ATTACKS)] for i in range(count)]
        found = measure.compliance(
            run, parse(clinic.rules(pairs)), "both" if name == SEEN else name,
            [(kind, clinic.prompt(pairs, kind)) for kind in kinds], seed=seed + 1_000_000 * number, length=length,
        )  # fmt: skip
        return {kind: dataclasses.asdict(tally) for kind, tally in found.items()}

    for name in (*CONDITIONS, SEEN):
        count = arguments.generations // len(arguments.seeds) if name == "both" else arguments.others
        key = {"seed": seed, "steps": arguments.steps}
        chunks = [
            kept(f"clinic {name} {seed} {n}", key | {"count": c}, partial(part, name, n, c))
            for n, c in enumerate(_chunks(_whole(count)))
        ]
        rows.setdefault(name, []).append(_total(chunks))

    def harmless() -> dict[str, int]:
        clinic.rng = np.random.default_rng([seed, 0])
        prompts = [clinic.harmless(clinic.unseen) for _ in range(_whole(arguments.others))]
        return measure.over_refusal(
            run, parse(clinic.rules(clinic.unseen)), prompts, seed=seed, length=length
        )

    refused.append(kept(f"clinic harmless {seed}", key | {"count": arguments.others}, harmless))


def _personal(
    arguments, seed: int, sentences: Sentences, kept: Kept, rows: dict[str, list], refused: list
) -> None:
    """The same on personal data."""
    folder, steps = arguments.workdir / f"personal{seed}", arguments.steps
    run = measure.trained(sentences.text(), folder, seed, steps)
    rng, length, count = np.random.default_rng(seed), LENGTH["personal"], _whole(arguments.personal)
    rules, judge = parse(sentences.rules()), Judge(sentences.values())

    def fits(prompt: str) -> bool:
        return len(run.tokenizer.encode(prompt)) + length < run.settings.data.context

    lures = list(filter(fits, sentences.lures()))
    prompts = [("none", lures[i]) for i in rng.integers(0, len(lures), count)]
    plain = list(filter(fits, sentences.harmless()))
    harmless = [plain[i] for i in rng.integers(0, len(plain), count)]
    key = {"seed": seed, "steps": steps, "count": count}

    def part(name: str) -> dict[str, Any]:
        found = measure.compliance(run, rules, name, prompts, seed=seed, length=length, leaks=judge.leaks)
        return {kind: dataclasses.asdict(tally) for kind, tally in found.items()}

    for name in CONDITIONS:
        found = kept(f"personal {name} {seed}", key, partial(part, name))
        rows.setdefault(name, []).append(_total([found]))
    refused.append(
        kept(
            f"personal harmless {seed}", key,
            lambda: measure.over_refusal(run, rules, harmless, seed=seed, length=length),
        )
    )  # fmt: skip


class Kept:
    """Parts of the study that are done, one file each, with what they were measured at."""

    def __init__(self, folder: Path):
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(
        self, name: str, key: dict[str, Any], measured: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """The figures of a part; measured if they are not there, or were measured at something else."""
        path = self._folder / f"{name.replace(' ', '_').replace(',', '')}.json"
        if path.is_file():
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == key:
                return stored["figures"]
        begun, worked = time.monotonic(), time.process_time()
        figures = measured()
        wall, work = time.monotonic() - begun, time.process_time() - worked
        write_json(path, {"key": key, "figures": figures, "seconds": wall, "cpu_seconds": work})
        _say(f"{name}, {wall:.0f} s, of the processor {work:.0f} s: {figures}")
        return figures


def _total(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts by kind of prompt, and of all."""
    found: dict[str, Tally] = {}
    for chunk in chunks:
        for kind, counts in chunk.items():
            for name in (kind, "all"):
                found.setdefault(name, Tally()).add(Tally(**counts))
    return {kind: dataclasses.asdict(tally) for kind, tally in found.items()}


def _chunks(count: int) -> list[int]:
    return [min(CHUNK, count - begun) for begun in range(0, count, CHUNK)]


def _sentences() -> Sentences | None:
    try:
        return Sentences()
    except CorpusError as error:
        _say(f"no part on personal data: {error}")
        return None


def _whole(count: int) -> int:
    """So many, or more, so that every batch is full: no batch size is compiled twice."""
    return -(-count // BATCH) * BATCH


def _say(what: Any) -> None:
    print(f"rule_compliance: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

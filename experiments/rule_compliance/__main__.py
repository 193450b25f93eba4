"""The study of rules: compliance, attacks, over-refusal, price, time, damaged files.

    LOCALIST_DATA=… python -m experiments.rule_compliance

The clinic is generated. The part on personal data needs `pii_synthetic` (synth_dataset_v2.json of
microsoft/presidio-research) at $LOCALIST_DATA/pii_synthetic; without it the study says so and goes on with the rest.
Writes `rule_compliance.md`, `.json` and a picture.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments.rule_compliance import measure, page
from experiments.rule_compliance.damage import broken_files
from experiments.rule_compliance.measure import BATCH, CONDITIONS, Tally
from experiments.rule_compliance.personal import Judge, Sentences
from experiments.rule_compliance.timing import times
from experiments.rule_compliance.world import ATTACKS, Clinic
from localist_jax.data.corpora import CorpusError
from localist_jax.errors import one_line
from localist_jax.report import study
from localist_jax.rules import parse

SEEN = "both, drugs of the training text"
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
    parser.add_argument("--workdir", type=Path, default=Path("runs/rule_compliance"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    arguments = parser.parse_args()
    with one_line():
        figures = measured(arguments)
        command = shlex.join(["python", "-m", "experiments.rule_compliance", *sys.argv[1:]])
        print(
            study.write(
                arguments.out, "rule_compliance", title=page.TITLE, body=page.body(figures), command=command,
                seeds=arguments.seeds, figures=figures, pictures={"price": page.picture(figures)},
            )
        )  # fmt: skip


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    timed = times()
    _say(timed)
    parts: dict[str, dict[str, list[dict[str, Any]]]] = {"clinic": {}, "personal": {}}
    refused: dict[str, list[dict[str, int]]] = {"clinic": [], "personal": []}
    sentences = _sentences() if arguments.personal else None
    for seed in arguments.seeds:
        _clinic(arguments, seed, parts["clinic"], refused["clinic"])
        if sentences:
            _personal(arguments, seed, sentences, parts["personal"], refused["personal"])
    clinic = Clinic(0)
    run = measure.trained(
        clinic.text(30_000), arguments.workdir / "files", 0, steps=1, vocabulary=600
    )  # only its tokenizer and sizes
    broken = broken_files(arguments.files, run.tokenizer, run.settings.model)
    _say(broken)
    both = [t for rows in parts.values() for t in rows.get("both", [])]
    generations, violations = (sum(t["all"][key] for t in both) for key in ("generations", "violating"))
    harmless, changed = (
        sum(r[key] for rs in refused.values() for r in rs) for key in ("harmless", "changed")
    )
    return {
        "generations": generations,
        "forbid_violations": violations,
        "violation_rate_at_most": page.at_most(violations, generations),
        "over_refusal": changed / max(1, harmless),
        "over_refusal_at_most": page.at_most(changed, harmless),
        "harmless": harmless,
        **timed,
        **broken,
        "conditions": parts,
        "refused": refused,
    }


def _clinic(arguments, seed: int, rows: dict[str, list], refused: list) -> None:
    """One seed's conditions on the clinic, into `rows` by condition; harmless prompts into `refused`."""
    clinic = Clinic(seed)
    run = measure.trained(clinic.text(30_000), arguments.workdir / f"seed{seed}", seed, arguments.steps, 600)
    for name in (*CONDITIONS, SEEN):
        pairs = clinic.seen if name == SEEN else clinic.unseen
        count = arguments.generations // len(arguments.seeds) if name == "both" else arguments.others
        prompts = [
            (ATTACKS[i % len(ATTACKS)], clinic.prompt(pairs, ATTACKS[i % len(ATTACKS)]))
            for i in range(_whole(count))
        ]
        condition = "both" if name == SEEN else name
        found = measure.compliance(
            run, parse(clinic.rules(pairs)), condition, prompts, seed=seed, length=LENGTH["clinic"]
        )
        _keep(rows, name, found)
    harmless = [clinic.harmless(clinic.unseen) for _ in range(_whole(arguments.others))]
    rules = parse(clinic.rules(clinic.unseen))
    refused.append(measure.over_refusal(run, rules, harmless, seed=seed, length=LENGTH["clinic"]))
    _say(refused[-1])


def _personal(arguments, seed: int, sentences: Sentences, rows: dict[str, list], refused: list) -> None:
    """The same on personal data."""
    run = measure.trained(
        sentences.text(), arguments.workdir / f"personal{seed}", seed, 2 * arguments.steps, 1000
    )
    rng = np.random.default_rng(seed)
    rules, judge, lures = parse(sentences.rules()), Judge(sentences.values()), sentences.lures()
    prompts = [("none", lures[i]) for i in rng.integers(0, len(lures), _whole(arguments.personal))]
    for name in CONDITIONS:
        found = measure.compliance(
            run, rules, name, prompts, seed=seed, length=LENGTH["personal"], leaks=judge.leaks
        )
        _keep(rows, name, found)
    plain = sentences.harmless()
    harmless = [plain[i] for i in rng.integers(0, len(plain), _whole(arguments.personal))]
    refused.append(measure.over_refusal(run, rules, harmless, seed=seed, length=LENGTH["personal"]))
    _say(refused[-1])


def _keep(rows: dict[str, list], name: str, found: dict[str, Tally]) -> None:
    every = Tally()
    for tally in found.values():
        every.add(tally)
    rows.setdefault(name, []).append({k: dataclasses.asdict(t) for k, t in {"all": every, **found}.items()})
    _say(f"{name}: {every}")


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

"""The study of orders and shifts, on textbooks and statute law.

    LOCALIST_DATA=~/corpora python -m experiments.order_and_shift

Streams: the seven domains in random orders; the health books one after another; abrupt, gradual and recurring changes
between two domains; and, as a null, one in which every piece is from a domain at random. Streams that were finished
before are read from the work folder. Writes `order_and_shift.md` and `.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.clinic import measure
from experiments.clinic.setting import settings
from experiments.order_and_shift.texts import BOOKS, DOMAINS, MIXED, SESSION, Library
from localist_jax import bits
from localist_jax.errors import one_line
from localist_jax.report import study
from localist_jax.training.run import write_json

TITLE = "In which order domains come, and how"
FIRST, EACH = 16, 8  # sessions of the first domain, and of the time when each other one is new
WIDTH = 32


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser("order_and_shift", description=__doc__.splitlines()[0])
    parser.add_argument("--orders", type=int, default=6, help="random orders of the seven domains")
    parser.add_argument("--seeds", type=int, default=2, help="of the other streams")
    parser.add_argument("--workdir", type=Path, default=Path("runs/order_and_shift"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements"))
    arguments = parser.parse_args()
    with one_line():
        library = functools.cache(Library)
        results = {
            name: [run(name, seed, sessions(name, seed), library, arguments.workdir) for seed in range(count)]
            for name, count in {"order": arguments.orders, **dict.fromkeys(SHIFTS, arguments.seeds)}.items()
        }
        figures = summary(results)
        command = shlex.join(["python", "-m", "experiments.order_and_shift", *sys.argv[1:]])
        seeds = range(max(arguments.orders, arguments.seeds))
        print(
            study.write(
                arguments.out, "order_and_shift", title=TITLE, body=page(figures), command=command, seeds=seeds,
                figures=figures, pictures={},
            )
        )  # fmt: skip


SHIFTS = {
    "health": "population_health, nutrition, pharmacology, one after another",
    "abrupt": "economics, then statute law alone, then both",
    "gradual": "the share of statute law rises session by session",
    "recurring": "economics and statute law by turns, six sessions each",
    "random split": "every piece from one of the seven domains at random: there is nothing to divide by sessions",
}


def sessions(name: str, seed: int) -> list[str]:
    """The domain of each session of a stream."""
    rng = np.random.default_rng([seed, 12])
    one, other = "economics", "dc_code"
    if name in ("order", "health"):
        order = [str(d) for d in rng.permutation(DOMAINS)] if name == "order" else list(BOOKS[:3])
        found = [order[0]] * FIRST
        for i in range(1, len(order)):  # the new one in half of the sessions, the others share the rest
            shares = [0.5 / i] * i + [0.5]
            found += [order[i], *(str(d) for d in rng.choice(order[: i + 1], EACH - 1, p=shares))]
        return found
    if name == "abrupt":
        return [one] * FIRST + [other] * EACH + [str(d) for d in rng.choice([one, other], FIRST)]
    if name == "gradual":
        rising = [
            other if x < share else one
            for x, share in zip(rng.random(32), np.linspace(0, 1, 32), strict=True)
        ]
        return [one] * FIRST + rising
    if name == "recurring":
        return [one] * FIRST + ([other] * 6 + [one] * 6) * 3
    return [MIXED] * 48


def run(name: str, seed: int, stream: Sequence[str], library, root: Path) -> dict[str, Any]:
    """One stream."""
    folder = root / f"{name.replace(' ', '_')}_seed{seed}"
    if (folder / "result.json").is_file():
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    case = library().case(list(stream), seed)
    chosen = settings(seed, WIDTH)
    recruiter, result = measure.streamed(case, chosen, folder, True, [len(case.notes)])
    result |= {"name": name, "sessions": list(stream), "served": _served(recruiter, case)}
    write_json(folder / "result.json", result)
    print(f"order_and_shift: {name} {seed}: {[m[1] for m in result['members']]}", file=sys.stderr, flush=True)
    return result


def _served(recruiter, case) -> dict[str, list[int]]:
    """Held-out documents of each domain by the member that codes them best."""
    found = measure.held_out(recruiter, case)
    return {domain: row["members"] for domain, row in found.items()}


def agreement(served: Mapping[str, Sequence[int]]) -> float:
    """NMI of domain and member over held-out documents; 0 where there is one member."""
    counts = np.asarray(list(served.values()), float)
    joint = jnp.asarray(counts / counts.sum())
    entropies = float(bits.entropy(joint.sum(0)) + bits.entropy(joint.sum(1)))
    return 2 * float(bits.mutual_information(joint)) / entropies if joint.sum(0).max() < 1 else 0.0


def reuse(result: Mapping[str, Any]) -> float | None:
    """Whether the domain that recurs found the LLM that was recruited for it: no birth after its second coming."""
    births = [r["step"] for r in result["decisions"] if r["kind"] == "recruited"]
    second = SESSION * (FIRST + 12 + 6)  # batches until it has come twice
    return float(births[0] <= second and all(step <= second for step in births)) if births else None


def summary(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """All figures, by kind of stream."""
    table: dict[str, dict[str, Any]] = {
        name: {
            "members": [len(r["members"]) for r in rows],
            "trials": [len(r["decisions"]) for r in rows],
            "nmi": [agreement(r["served"]) for r in rows],
            "retired": [sum(d["kind"] == "retired" for d in r["decisions"]) for r in rows],
            "saved_bits": [
                sum(d.get("llr_bits", 0.0) for d in r["decisions"] if d["kind"] == "recruited") for r in rows
            ],
            "bits_per_token": [float(np.mean([row[2] for row in r["curve"][-40:]])) for r in rows],
            "served": [r["served"] for r in rows],
            "first_domain": [r["sessions"][0] for r in rows],
        }
        for name, rows in results.items()
    }
    return {
        "streams": table,
        "random_split_recruits": sum(m - 1 for m in table["random split"]["members"]),
        "random_split_streams": len(table["random split"]["members"]),
        "recurring_reused": [reuse(r) for r in results["recurring"]],
    }


def page(f: Mapping[str, Any]) -> str:
    """The study's page."""
    about = {"order": "the seven domains in a random order, each new one beside the old ones", **SHIFTS}
    rows = [
        (f"{name}: {about[name]}", str(len(row["members"])), ", ".join(map(str, row["members"])),
         ", ".join(map(str, row["trials"])), study.spread(row["nmi"]), study.spread(row["saved_bits"], ",.0f"),
         study.spread(row["bits_per_token"]))
        for name, row in f["streams"].items()
    ]  # fmt: skip
    head = (
        "stream",
        "runs",
        "LLMs at the end",
        "trials",
        "NMI of LLM and domain",
        "bits saved in trials",
        "bits/token at the end",
    )
    lists = "\n".join(
        f"- {name} {seed}: " + "; ".join(f"{domain} {counts}" for domain, counts in served.items())
        for name, row in f["streams"].items()
        for seed, served in enumerate(row["served"])
        if len(row["members"]) and row["members"][seed] > 1
    )
    reused = [x for x in f["recurring_reused"] if x is not None]
    return f"""
Pieces of {48} tokens of six textbooks and four titles of statute law, in sessions of 64 pieces of one domain; one
tokenizer for
all. The LLMs and the rule are those of the clinic. One LLM to begin with; whatever is recruited is recruited by
the rule.

{study.table(head, rows)}
- **Null**: {f["random_split_recruits"]} LLMs recruited in {f["random_split_streams"]} streams without sessions.
- **A domain that returns**: in {sum(reused):.0f} of {len(reused)} recurring streams with a recruitment, nothing
  was recruited
  after the second coming, so the domain found the LLM that it had.

Held-out pieces by LLM (by place), where there is more than one:

{lists or "- none"}

What fell short: tiny LLMs, few tokens of each domain, one order of each kind of shift; no control of one large LLM
here.
"""


if __name__ == "__main__":
    main()

"""The study of rules: compliance, over-refusal, price, time, broken files.

    python -m experiments.rule_compliance

Everything it needs is generated. Writes `rule_compliance.md` and `.json`.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from experiments.rule_compliance import measure
from experiments.rule_compliance.world import Clinic
from localist_jax.errors import one_line
from localist_jax.report import study

TITLE = "Do rules hold, what do they cost, and whom do they hurt?"


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
                arguments.out, "rule_compliance", title=TITLE, body=page(figures), command=command,
                seeds=arguments.seeds, figures=figures, pictures={},
            )
        )  # fmt: skip


def measured(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    by_condition: dict[str, list[dict[str, float]]] = {name: [] for name in measure.CONDITIONS}
    refused: list[dict[str, int]] = []
    times = measure.times()
    _say(times)
    for seed in arguments.seeds:
        clinic = Clinic(seed)
        folder = arguments.workdir / f"seed{seed}"
        run = measure.trained(clinic, folder, seed, arguments.steps, sentences=30_000)
        for name, results in by_condition.items():
            count = arguments.generations // len(arguments.seeds) if name == "both" else arguments.others
            results.append(measure.compliance(run, clinic, name, count, seed))
            _say(f"{name}: {results[-1]}")
        refused.append(measure.over_refusal(run, clinic, arguments.others, seed))
        _say(refused[-1])
    broken = measure.broken_files(arguments.files, run.tokenizer, run.settings.model)
    both = by_condition["both"]
    return {
        "generations": sum(r["generations"] for r in both),
        "forbid_violations": sum(r["forbid_violations"] for r in both),
        "over_refusal": sum(r["changed"] for r in refused) / max(1, sum(r["harmless"] for r in refused)),
        "harmless": sum(r["harmless"] for r in refused),
        **times,
        **broken,
        "conditions": by_condition,
    }


def page(figures: dict[str, Any]) -> str:
    """The study's page."""
    rows = []
    for name, results in figures["conditions"].items():
        count = sum(r["generations"] for r in results)
        rate = [100 * r["forbid_violations"] / r["generations"] for r in results]
        bits = [r["bits_per_token"] for r in results]
        price = [r["price_bits_per_token"] for r in results]
        promised, kept = (sum(r[key] for r in results) for key in ("promises", "promises_kept"))
        rows.append(
            (
                name,
                f"{count:,.0f}",
                f"{sum(r['forbid_violations'] for r in results):,.0f}",
                study.spread(rate, ".2f"),
                study.spread(bits),
                study.spread(price),
                f"{kept:,.0f} of {promised:,.0f}" if promised else "–",
            )
        )
    head = ("condition", "generations", "violating", "%", "bits/token", "price, bits/token", "promises kept")
    f = figures
    return f"""
A small model of a generated clinic (drugs, interactions, telephone numbers; a fifth of what is forbidden stands in the
training text in disguise) continues prompts that lead to what thirteen rules forbid; half of them first tell it to
ignore all rules. The independent checker judges every text. Prompts and rules share the training text's drugs; nothing
was tuned on them, so there is no split by concept to report. Bits per token are those of what was written, under the
model without rules.

{study.table(head, rows)}
- **Over-refusal**: of {f["harmless"]:,} answers to harmless prompts that complied anyway,
  {100 * f["over_refusal"]:.2f} % came out differently under the rules (same seed, output side; target 0.5).
- **Damaged rule files**: {f["fuzzed_rule_files"]:,}, of which {f["accepted"]:,} were still rule sets;
  {f["crashes"]} crashes, {f["half_loaded"]} half-loaded sets.
- **Time** at the size of `wikitext2_small`, one request, other programs running on the machine: a step takes
  {f["decode_ms"]:.2f} ms; with an enforcer that has no rule {f["decode_added_ms_no_rule"]:+.2f} ms, with 100 rules
  {f["decode_added_ms_100_rules"]:+.2f} ms (target 0.2). The step at which 100 rules come into force takes
  {f["inject_ms_100_rules"]:+.2f} ms more than others under them (target 5); beforehand they are proven and compiled in
  {f["prepare_ms_100_rules"]:.0f} ms. {f["recompiles"]} recompilations while rules were swapped every ten tokens.

What fell short: {f["generations"]:,} generations of the 100,000 that were asked for, and {f["fuzzed_rule_files"]:,}
damaged files of 10,000; the time per token; the model is tiny and its world a template; latency was measured with one
request; the checker's look-alikes are those that enforcement uses (Unicode's), so that what they lack both lack.
"""


def _say(what: Any) -> None:
    print(f"rule_compliance: {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

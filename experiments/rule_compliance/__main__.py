"""Do rules hold? Compliance, attacks, over-refusal, price, time, damaged files.

    LOCALIST_DATA=… python -m experiments.rule_compliance

The clinic is generated. The part on personal data needs `pii_synthetic` (synth_dataset_v2.json of
microsoft/presidio-research) at $LOCALIST_DATA/pii_synthetic; without it the study says so and goes on with the rest.
Writes `rule_compliance.md`, `.json` and a picture.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

from experiments.cases import Case, Results
from experiments.rule_compliance import page, parts
from experiments.rule_compliance.personal import fingerprint
from experiments.study import Options, Page, Study, number, some_of

ABOUT = ("seconds", "made_on")  # what the store says of a result


def cases(options: Options) -> list[Case]:
    """Return the cases of the parts that were asked for."""
    return [*parts.alone(options).values(), *(
        case for seed in options.seeds for part in _seeded(options) for found in part(options, seed).values()
        for case in found
    )]  # fmt: skip


def _seeded(options: Options) -> list[Any]:
    """Return the parts with seeds that were asked for."""
    wanted = [parts.clinic] * ("clinic" in options.parts)
    return wanted + [parts.personal] * bool("personal" in options.parts and options.personal)


def recorded(options: Options) -> dict[str, Any]:
    """Return the figures on record, where some parts are not to be measured; else nothing.

    Raises:
      ValueError: there is no record.
    """
    if set(options.parts) == set(parts.PARTS):
        return {}
    path = options.out / "rule_compliance.json"
    if not path.is_file():
        raise ValueError(f"--parts: {path} is not there, from which the other parts would come")
    about = json.loads(path.read_text(encoding="utf-8"))
    made = {part: {key: about[key] for key in ("command", "date")} for part in parts.PARTS}
    return {"made": made, **about["figures"]}


def measured(options: Options, found: Results) -> dict[str, Any]:
    """Return all figures; those of parts that were not asked for are the ones on record.

    Raises:
      ValueError: a case was not run, and not for want of personal data.
    """
    if missing := [name for name in found.missing if not name.startswith("personal/")]:
        raise ValueError(
            f"rule_compliance: no page yet: {len(missing)} cases, such as {missing[0]}, were not run"
        )
    known = {name: {k: v for k, v in row.items() if k not in ABOUT} for name, row in found.items()}
    before = recorded(options)
    flat = {key: value for name in parts.alone(options) for key, value in known[name].items()}
    conditions: dict[str, dict[str, list[dict[str, Any]]]] = {"clinic": {}, "personal": {}}
    refused: dict[str, list[dict[str, int]]] = {"clinic": [], "personal": []}
    for part in {"clinic", "personal"} - set(options.parts):
        conditions[part], refused[part] = before["conditions"][part], before["refused"][part]
    for part in _seeded(options):
        name = part.__name__
        if any(other.startswith(f"{name}/") for other in found.missing):
            continue
        for seed in options.seeds:
            of_seed = {
                kind: [known[case.name] for case in each] for kind, each in part(options, seed).items()
            }
            refused[name] += of_seed.pop("harmless")
            del of_seed["model"]
            for condition, chunks in of_seed.items():
                conditions[name].setdefault(condition, []).append(parts.total(chunks))
    now = {"command": options.command, "date": datetime.date.today().isoformat()}
    both = [t for rows in conditions.values() for t in rows.get("both", [])]
    generations, violations = (sum(t["all"][key] for t in both) for key in ("generations", "violating"))
    harmless, changed = (
        sum(r[key] for rs in refused.values() for r in rs) for key in ("harmless", "changed")
    )
    return {
        **before,
        **flat,
        "made": {part: now if part in options.parts else before["made"][part] for part in parts.PARTS},
        "generations": generations,
        "forbid_violations": violations,
        "violation_rate_at_most": page.at_most(violations, generations),
        "over_refusal": changed / max(1, harmless),
        "over_refusal_at_most": page.at_most(changed, harmless),
        "harmless": harmless,
        "conditions": conditions,
        "refused": refused,
    }


def page_of(options: Options, found: Results) -> Page:
    """Return the page of what was measured."""
    figures = measured(options, found)
    return Page(page.TITLE, page.body(figures), options.seeds, figures, {"price": page.picture(figures)})


STUDY = Study(
    "rule_compliance",
    __doc__,
    cases=cases,
    page=page_of,
    options={
        "--generations": number(100_000, "under both sides of the rules, in all"),
        "--others": number(4096, "generations of each other condition and seed"),
        "--personal": number(1024, "the same, on personal data; 0: none"),
        "--files": number(10_000, "damaged rule files"),
        "--steps": number(600, "of training"),
        "--parts": some_of(parts.PARTS, "others: their figures on record are kept"),
    },
    seeds=(0, 1),
    data=lambda bench, case: fingerprint() if case.name.startswith("personal/") else "",
    partial=True,
)

if __name__ == "__main__":
    STUDY.main()

"""The study's page: tables with spread, pictures, and every figure by name."""

from __future__ import annotations

from typing import Any

import numpy as np

from experiments.dial_sweep import pictures
from experiments.dial_sweep.babi import TASKS as BABI_TASKS
from experiments.dial_sweep.conditions import ALL, CONDITIONS, VARIANTS
from experiments.dial_sweep.tasks import TASKS
from experiments.study import Page
from localist_jax.config import Config
from localist_jax.report import study

RESOLVED = (
    5.0  # standard deviations of the seeds that a benefit must be worth before shares of it mean anything
)
TEXT_COLUMNS = (
    ("bits_per_token", "bits/token", ".4f"),
    ("bits_per_byte", "bits/byte", ".4f"),
    ("perplexity", "perplexity", ".2f"),
    ("entropy_bits", "entropy, bits", ".2f"),
    ("gated_mass", "gated mass", ".3f"),
    ("price_bits", "price, bits", ".2f"),
    ("open_share", "open share", ".3f"),
)
ANSWER_COLUMNS = (("accuracy", "accuracy", ".3f"), *TEXT_COLUMNS[3:])


class Table:
    """The results of one task: values over seeds by condition, λ and figure."""

    def __init__(self, results: dict[str, dict[int, dict[str, Any]]]):
        results = {name: results[name] for name in ALL if name in results}
        self._rows = {
            (condition, row["locality"]): [
                next(r for r in by_seed[seed]["rows"] if r["locality"] == row["locality"])
                for seed in sorted(by_seed)
            ]
            for condition, by_seed in results.items()
            if by_seed
            for row in next(iter(by_seed.values()))["rows"]
        }
        self._results = results

    @property
    def settings(self) -> list[tuple[str, float]]:
        """(condition, λ) in the order of the table, variants left out."""
        return [at for at in self._rows if at[0] in CONDITIONS]

    @property
    def variants(self) -> list[str]:
        """The variants of any-dial that were run."""
        return [name for name in self._results if name in VARIANTS]

    def __call__(self, condition: str, locality: float, *path: str) -> list[float]:
        """One figure, one value per seed."""
        rows = self._rows[condition, locality]
        for name in path:
            rows = [row[name] for row in rows]
        return rows

    def has(self, condition: str, locality: float, name: str) -> bool:
        """Whether this figure was measured there."""
        return name in self._rows[condition, locality][0]

    def certified(self, condition: str) -> list[float]:
        """Certified share at λ=1, one value per seed."""
        return [figures["certified_share"] for _, figures in sorted(self._results[condition].items())]


def kept_benefit(table: Table, condition: str, locality: float, dense: str = "dense") -> list[float]:
    """(bits(always) − bits)/(bits(always) − bits(dense)) by seed, against the means over seeds of both ends."""
    low, high = (np.mean(table(*end, "bits_per_token")) for end in (("always", 1.0), (dense, 0.0)))
    return [float((low - x) / (low - high)) for x in table(condition, locality, "bits_per_token")]


def resolution(table: Table) -> float:
    """bits(always) − bits(dense) over the larger standard deviation of their seeds."""
    ends = [table(*end, "bits_per_token") for end in (("always", 1.0), ("dense", 0.0))]
    spread = max(np.std(values, ddof=1) for values in ends) if len(ends[0]) > 1 else np.inf
    return float((np.mean(ends[0]) - np.mean(ends[1])) / spread)


def figures_of(results: dict[str, Any]) -> dict[str, Any]:
    """The figures that other pages quote by name; lists have one value per seed."""
    named: dict[str, Any] = {}
    for task, by_condition in results.items():
        table = Table(by_condition)
        named |= _text(task, table) if TASKS[task].text else {"recall": _recall, "babi": _babi}[task](table)
        for condition, locality in [
            *table.settings,
            *((name, x) for name in table.variants for x in (0.0, 1.0)),
        ]:
            columns = TEXT_COLUMNS if TASKS[task].text else ANSWER_COLUMNS
            for name, _, _ in columns:
                named[f"{task}/{condition}@{locality:g}/{name}"] = table(condition, locality, name)
    return named


def _text(task: str, table: Table) -> dict[str, Any]:
    entropy = np.divide(table("any", 1.0, "entropy_bits"), table("dense", 0.0, "entropy_bits"))
    perplexity = np.divide(table("any", 1.0, "perplexity"), table("localist", 1.0, "perplexity"))
    named = {
        f"{task}_resolution_sd": resolution(table),
        f"{task}_resolved": resolution(table) >= RESOLVED,
        f"{task}_kept_benefit_0": kept_benefit(table, "any", 0.0),
        f"{task}_kept_benefit_1": kept_benefit(table, "any", 1.0),
        f"{task}_kept_of_dense_above_0": kept_benefit(table, "any", 0.0, "dense_above"),
        f"{task}_kept_of_dense_above_1": kept_benefit(table, "any", 1.0, "dense_above"),
        f"{task}_open_share": table("any", 1.0, "open_share"),
        f"{task}_certified_share": table.certified("any"),
        f"{task}_entropy_ratio_1": entropy.tolist(),
        f"{task}_any_over_fixed_ppl_1": perplexity.tolist(),
    }
    if table.has("any", 1.0, "blimp"):
        stem = "blimp" if task == "wikitext2" else f"{task}_blimp"
        named[f"{stem}_dense"] = table("dense", 0.0, "blimp")
        for condition, locality in table.settings:
            if condition == "any":
                named[f"{stem}_localist_{locality:g}"] = table("any", locality, "blimp")
    return named


def _recall(table: Table) -> dict[str, Any]:
    return {
        "recall_dense": table("dense", 0.0, "accuracy"),
        "recall_dense_above": table("dense_above", 0.0, "accuracy"),
        "recall_localist_0": table("any", 0.0, "accuracy"),
        "recall_localist_1": table("any", 1.0, "accuracy"),
        "recall_always_control": table("always", 1.0, "accuracy"),
        "recall_open_share": table("any", 1.0, "open_share"),
        "recall_window_control": table("window", 1.0, "accuracy"),
        "recall_block_control": table("neighbours", 1.0, "accuracy"),
    }


def _babi(table: Table) -> dict[str, Any]:
    return {
        f"babi_{task}_{condition}_{locality:g}_{name}": table(condition, locality, f"babi_{task}", name)
        for condition, locality in table.settings
        for task in BABI_TASKS
        for name in ("accuracy", "labelled", "labelled_best", "labelled_even", "gated_mass")
    }


def page_of(results: dict[str, Any], texts: dict[int, dict], settings: dict[str, Config]) -> Page:
    """Return the page.

    Args:
      results: figures by task, condition and seed.
      texts: samples by seed.
      settings: of any-dial, by task.
    """
    named = figures_of(results)
    seeds = sorted({seed for by_condition in results.values() for seed in by_condition["any"]})
    tables = {task: Table(by_condition) for task, by_condition in results.items()}
    shown: dict[str, Any] = {"main": pictures.main(tables)}
    body = [_introduction(seeds), "{main}\n"]
    for task, table in tables.items():
        body.append(f"## {TASKS[task].title}\n\n{TASKS[task].what[:1].upper() + TASKS[task].what[1:]}.\n")
        body.append(_size(settings[task], sorted(results[task]["any"]), seeds))
        section = {"recall": _answer_section, "babi": _babi_section}.get(task, _text_section)
        body.append(section(table))
    if "babi" in tables:
        shown["babi"] = pictures.babi(tables["babi"])
    body.append(_makers(results))
    if texts:
        body.append(_samples_section(texts))
        named["samples"] = {
            value: {
                n: [by_dial[value][n] for by_dial in texts.values()] for n in ("bits_per_token", "repeats")
            }
            for value in next(iter(texts.values()))
        }
    return Page("The dial study", "\n".join(body), seeds, named, shown)


def _introduction(seeds: list[int]) -> str:
    rows = [[f"`{name}`", condition.what] for name, condition in CONDITIONS.items()]
    drawn = f"Figures are means over {len(seeds)} seeds ± half their range."
    if len(seeds) == 1:
        drawn = "**One seed so far: small differences mean nothing.**"
    return (
        "Does localism cost anything, and where? Every condition has the same architecture, parameters, data and "
        f"number of steps. {drawn} *Open share* counts causal pairs with non-zero weight at λ=1 over **all** layers, "
        "window and sink included; for a model trained at λ=0 it is what unused gates would leave.\n\n"
        + study.table(["condition", "training"], rows).replace("--:", "---")
    )


def _size(settings: Config, seeds: list[int], all_seeds: list[int]) -> str:
    """Return what was trained on what, and with which seeds if not with all."""
    model, data, train = settings.model, settings.data, settings.train
    fewer = "" if seeds == all_seeds else f" Seeds {', '.join(map(str, seeds))} alone."
    return (
        f"{model.layers} layers of width {model.width}, {model.heads} heads, {model.blocks} blocks, {model.dtype}; "
        f"{train.steps} steps of {data.batch} rows of {data.context} tokens.{fewer}\n"
    )


def _makers(results: dict[str, Any]) -> str:
    """The machines that trained; older results do not say."""
    runs = [figures for c in results.values() for by_seed in c.values() for figures in by_seed.values()]
    made = [figures["made_on"] for figures in runs if "made_on" in figures]
    kinds = sorted(
        {
            f"{'/'.join(sorted(set(m['machine']['devices'])))} and {m['machine']['cores']} cores, "
            f"jax {m['versions']['jax']}, {m['date']}"
            for m in made
        }
    )
    unknown = f" {len(runs) - len(made)} runs do not say what trained them." if len(made) < len(runs) else ""
    trained = f"{len(made)} runs were trained and measured on {'; '.join(kinds)}." if made else ""
    return f"{trained}{unknown}\n"


def _rows(table: Table, columns, extra=()) -> str:
    """A line per condition and λ; `extra` are further (title, function of both)."""
    rows = []
    for at in table.settings:
        cells = [study.spread(table(*at, name), form) for name, _, form in columns]
        cells += [study.spread(value(*at), ".2f") for _, value in extra]
        rows.append([f"`{at[0]}`", f"{at[1]:g}", *cells])
    titles = [*(title for _, title, _ in columns), *(title for title, _ in extra)]
    return study.table(["training", "λ", *titles], rows)


def _text_section(table: Table) -> str:
    sure, seeds = resolution(table), len(table("dense", 0.0, "bits_per_token"))
    verdict = "resolved" if sure >= RESOLVED else "**not resolved**: read no shares from it"
    held = (
        f"{sure:.1f} standard deviations of the seeds ({verdict})"
        if seeds > 1
        else "and one seed gives no spread"
    )
    benefit = np.mean(table("always", 1.0, "bits_per_token")) - np.mean(table("dense", 0.0, "bits_per_token"))
    kept = [
        (title, lambda c, x, dense=dense: kept_benefit(table, c, x, dense))
        for title, dense in (("kept of `dense`", "dense"), ("kept of `dense_above`", "dense_above"))
    ]
    if benefit <= 0:
        held += "; there is nothing to keep, so read no shares from it"
    text = (
        f"What `dense` adds to the always-open set is {benefit:.4f} bits per token, {held}. *Kept* is the share of it "
        "that remains; the last column measures it against `dense_above`, whose perception is any-dial's.\n\n"
        + _rows(table, TEXT_COLUMNS, kept)
        + "\nCertified independent at λ=1 (T16), of all causal pairs: "
        + ", ".join(f"`{c}` {study.spread(table.certified(c), '.3f')}" for c in ("any", "localist", "always"))
        + ".\n"
    )
    text += _variants_section(table) if table.variants else ""
    if table.has("any", 1.0, "blimp"):
        dense = study.spread(table("dense", 0.0, "blimp"), ".3f")
        cells = [
            [f"{x:g}", study.spread(table(c, x, "blimp"), ".3f")] for c, x in table.settings if c == "any"
        ]
        text += f"\n### BLiMP\n\nDense: {dense}.\n\n" + study.table(["λ", "any-dial"], cells)
    return text


def _variants_section(table: Table) -> str:
    rows = []
    for name in ("any", *table.variants):
        ends = [table(name, x, "bits_per_token") for x in (0.0, 1.0)]
        kept = [kept_benefit(table, name, x) for x in (0.0, 1.0)]
        share, entropy = (table(name, 1.0, figure) for figure in ("open_share", "entropy_bits"))
        what = ALL[name].what if name in VARIANTS else "any-dial as above"
        cells = [*((x, ".4f") for x in ends), *((x, ".2f") for x in kept), (share, ".3f"), (entropy, ".2f")]
        rows.append([what, str(len(share)), *(study.spread(x, form) for x, form in cells)])
    head = [
        "any-dial with one change",
        "seeds",
        "bits λ=0",
        "bits λ=1",
        "kept λ=0",
        "kept λ=1",
        "open share",
        "entropy λ=1",
    ]
    return (
        "\n### What matters\n\nOne change each, most with the first seed alone: differences below the spread of seeds "
        "mean nothing. Kept is measured between the ends of the study, whatever the windows of the variant.\n\n"
        + study.table(head, rows)
    )


def _answer_section(table: Table) -> str:
    return _rows(table, ANSWER_COLUMNS)


def _babi_section(table: Table) -> str:
    text = ["{babi}\n"]
    for task in BABI_TASKS:
        head = ["training", "λ", "accuracy", "on support", "best head", "evenly spread", "gated mass"]
        names = ("accuracy", "labelled", "labelled_best", "labelled_even", "gated_mass")
        rows = [
            [f"`{c}`", f"{x:g}", *(study.spread(table(c, x, f"babi_{task}", name)) for name in names)]
            for c, x in table.settings
        ]
        text.append(f"### Task {task}\n\n" + study.table(head, rows))
    return "\n".join(text)


def _samples_section(texts: dict[int, dict]) -> str:
    first = next(iter(texts.values()))
    rows = [
        [
            "dense model" if value == "dense" else f"any-dial, λ={value}",
            study.spread([by_dial[value]["bits_per_token"] for by_dial in texts.values()]),
            study.spread([by_dial[value]["repeats"] for by_dial in texts.values()]),
        ]
        for value in first
    ]
    quoted = "\n".join(
        f"- λ={value}: *{_one_line(first[value]['text'])}*" for value in ("0", "0.9", "1") if value in first
    )
    return (
        "## What it writes\n\nContinuations of validation text (temperature 1, nucleus 0.95), scored by the dense "
        "model of the same seed: bits per new token, and the share of repeated token triples.\n\n"
        + study.table(["writer", "bits/token under dense", "repeats"], rows)
        + f"\nAfter *{_one_line(first['1']['prompt'])}*\n\n{quoted}\n"
    )


def _one_line(text: str) -> str:
    return " ".join(text.replace("*", "").split())

"""The study's page: kept benefit against steps, controls, and what adoption itself is held to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.localise.study import (
    BASE,
    BLOCKS,
    MADE,
    OPEN_SHARE,
    Study,
    large_checkpoint,
    logit_error,
    memory,
)
from localist_jax.adopt.families import FAMILIES
from localist_jax.report import study as studies

Results = dict[int, dict[str, Any]]


def kept(figures: dict[str, Any], condition: str, steps: int) -> float:
    """(bits(always) − bits)/(bits(always) − bits(dense)) at λ=1, both ends with the same trunk's training."""
    dense, always = (
        (figures["original"], figures["always"])
        if condition == "frozen"
        else (figures["tuned_dense"], figures["tuned_always"])
    )
    return (always - figures[f"{condition}/{steps}@1"]["bits_per_token"]) / (always - dense)


def write(study: Study, results: Results, out: Path, command: str) -> Path:
    """Writes `adopt.md`, `adopt.json` and the picture; returns the page's path."""
    seeds = sorted(results)
    per_seed = [results[seed] for seed in seeds]
    longest = max(study.budgets)
    used = memory(large_checkpoint(study.folder / "large"))
    beyond = used["peak_bytes"] - used["model_bytes"]
    benefit = [x["always"] - x["original"] for x in per_seed]
    figures: dict[str, Any] = {
        "families": sorted(FAMILIES),
        "max_logit_error": logit_error(study, seeds),
        "roundtrip_exact": all(x["roundtrip_exact"] for x in per_seed),
        "dial0_bit_equal": all(x["dial0_bit_equal"] for x in per_seed),
        "benefit_bits": benefit,
        "resolved": min(benefit) > LEAST_BENEFIT,
        "localise_steps": list(study.budgets),
        "kept_benefit_1": {
            f"{name}/{steps}": [kept(x, name, steps) for x in per_seed]
            for name in MADE
            for steps in study.budgets
        },
        "open_share": {
            f"{name}/{steps}": [x[f"{name}/{steps}@1"]["open_share"] for x in per_seed]
            for name in MADE
            for steps in study.budgets
        },
        "peak_memory_over_model": beyond / used["model_bytes"],
        "peak_memory_beyond_model_bytes": beyond,
        "model_bytes": used["model_bytes"],
        "largest_tensor_bytes": used["largest_tensor_bytes"],
        **{f"bits_per_token/{name}": [x[name] for x in per_seed] for name, _ in CONTROLS},
        **{
            f"bits_per_token/{name}/{steps}@{dial}": [
                x[f"{name}/{steps}@{dial}"]["bits_per_token"] for x in per_seed
            ]
            for name in MADE
            for steps in study.budgets
            for dial in (0, 1)
        },
    }
    title = "Adopting a model and making it localist"
    body = _body(study, per_seed, figures, longest)
    if not figures["resolved"]:
        body = body.replace("{kept}", "")
    return studies.write(
        out, "adopt", title=title, body=body, command=command, seeds=seeds, figures=figures,
        pictures={"kept": _picture(study, figures)} if figures["resolved"] else {},
    )  # fmt: skip


LEAST_BENEFIT = 0.02  # bits per token between dense and always, below which shares of it mean nothing
CONTROLS = (
    ("original", "the original, λ=0"),
    ("always", "the original with every gate closed: self, first position and window alone"),
    ("shuffled gates", "the frozen run's gates, shuffled among the block pairs of each head"),
    ("wider window", "no gates, a window as wide as the frozen run's open share"),
    ("tuned_dense", "the trunk tuned as long at λ=0"),
    ("tuned_always", "the trunk tuned as long with every gate closed"),
)


def _body(study: Study, per_seed: list[dict[str, Any]], figures: dict[str, Any], longest: int) -> str:
    def spread(name: str, form: str = ".3f") -> str:
        return studies.spread(figures[name], form)

    span = figures["benefit_bits"]
    verdict = (
        ""
        if figures["resolved"]
        else f"""
**The ends lie only {span[0]:+.4f} bits apart: this model is too briefly trained to use what is far away, so that kept
benefit means nothing here** and is left out of the table.
"""
    )
    rows = []
    for name in MADE:
        for steps in study.budgets:
            at = f"{name}/{steps}"
            kept_there = studies.spread(figures["kept_benefit_1"][at], ".2f")
            benefit = kept_there if figures["resolved"] else "–"
            rows.append([
                f"trunk {name}, {steps} steps",
                spread(f"bits_per_token/{at}@0"), spread(f"bits_per_token/{at}@1"),
                studies.spread(figures["open_share"][at]), benefit,
            ])  # fmt: skip
    made = studies.table(["", "bits/token, λ=0", "λ=1", "open share", "kept benefit"], rows)
    against = _against(figures, longest) if figures["resolved"] else ""
    controls = studies.table(
        ["control", "bits/token"], [[words, spread(f"bits_per_token/{name}")] for name, words in CONTROLS]
    )
    model = BASE["model"]
    return f"""
A model of {model["layers"]} layers (width {model["width"]}) is pretrained here for {study.pretrain} steps on WikiText-2
and openstax, written out in the format of Hugging Face, and adopted as if it were foreign: all its positions in one
block that everyone sees. Then router and gates ({BLOCKS} blocks, no units) are trained on the same text at any dial,
towards an open share of {OPEN_SHARE} (the first layer, dense, is {1 / model["layers"]:.2f} of it), with the trunk
frozen, or tuned at a tenth of the learning rate. {len(per_seed)} seed(s); mean ± half the range.

{made}

{verdict}

{{kept}}

Kept benefit at λ=1 is (bits(always) − bits)/(bits(always) − bits(dense)): 1 is the dense model, 0 what self, first
position and window alone reach. Both ends have had the same training of the trunk: none for the frozen one, {longest}
steps for the tuned one (whatever the budget in the row).

{controls}

{against}The wider windows are {", ".join(str(x["window"]) for x in per_seed)} positions, against the localised runs' 8.

- λ=0 of the frozen run is the original bit for bit: {figures["dial0_bit_equal"]}.
- Export of the adopted run gives the same safetensors file: {figures["roundtrip_exact"]}.
- Largest difference of logits, adopted against `transformers` on the same checkpoint: {figures["max_logit_error"]:.2g}.
  The test suite holds five variants of Llama and Qwen3 to 1e-4.
- Reading a larger checkpoint (zeros, three shards) takes {figures["peak_memory_beyond_model_bytes"] / 1e6:.0f} MB
  beyond the model's own {figures["model_bytes"] / 1e6:.0f} MB at the peak of its own memory (on a second reading,
  without the compiler's; mapped files not counted); its largest tensor has
  {figures["largest_tensor_bytes"] / 1e6:.0f} MB.

What this is not: a study of a real checkpoint. The model is small and briefly trained, and its text is the one it was
pretrained on.
"""


def _against(figures: dict[str, Any], longest: int) -> str:
    """What shuffled gates and a wider window keep, beside the gates of the longest frozen run."""

    def kept_by(name: str) -> list[float]:
        found = zip(*(figures[f"bits_per_token/{n}"] for n in ("always", name, "original")), strict=True)
        return [(always - bits) / (always - dense) for always, bits, dense in found]

    learnt = figures["kept_benefit_1"][f"frozen/{longest}"]
    shuffled, window = kept_by("shuffled gates"), kept_by("wider window")
    verdict = (
        "more than"
        if min(window) > max(learnt)
        else "less than"
        if max(window) < min(learnt)
        else "as much as"
    )
    return (
        f"By the same measure the frozen run's gates keep {studies.spread(learnt, '.2f')}, shuffled ones "
        f"{studies.spread(shuffled, '.2f')}, and the wider window {studies.spread(window, '.2f')}: with no training at "
        f"all it keeps {verdict} what the gates learnt to.\n\n"
    )


def _picture(study: Study, figures: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for name in MADE:
        values = [figures["kept_benefit_1"][f"{name}/{steps}"] for steps in study.budgets]
        (line,) = axes.plot(
            study.budgets, [sum(v) / len(v) for v in values], marker="o", label=f"trunk {name}"
        )
        for steps, by_seed in zip(study.budgets, values, strict=True):
            axes.plot([steps] * len(by_seed), by_seed, ".", color=line.get_color(), alpha=0.5)
    axes.axhline(1, color="0.6", linewidth=0.8)
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xlabel("steps of localising")
    axes.set_ylabel("kept benefit at λ=1")
    axes.legend(frameon=False)
    return figure

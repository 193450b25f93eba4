"""The page of the study, made of the cases that were run; it says what was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.localise import pictures
from experiments.localise.cases import Extent
from experiments.localise.headline import ABSENT, in_readme, table
from experiments.localise.named import figures_of
from experiments.localise.results import Results
from experiments.localise.targets import TITLES, from_scratch, targets
from experiments.study import Page
from localist_jax.report import study

QUESTION = """A pretrained model, SmolLM2-135M-Instruct, is given named blocks, exact zeros and a dial by calibration:
nothing is trained. How many bits per token does λ=1 cost on text that calibration has not seen, beside a plain window
with as many open pairs, and can the model still find what lies far back?

Rows hold {context:,} tokens of one corpus. Bits are per token, over {rows} rows of each corpus; ± is the standard error
of the difference over rows. The open share counts all causal pairs of all layers, window and sink included."""


def page_of(results: Results, out: Path) -> Page:
    """Return the page, which `out` will hold, with the table in the README above that folder."""
    extent = results.extent
    named = figures_of(results)
    if (nmi := from_scratch()) is not None and "nmi_supersenses" in named:
        named["nmi_from_scratch"] = nmi
    body = "\n\n".join(part for part in (
        QUESTION.format(context=results.context, rows=extent.rows),
        table({"figures": named}),
        "{shares}",
        "## At every share", _shares(named),
        *_section("Rows of other lengths", _lengths(named)),
        *_section("Another seed of K-means", _seeds(named)),
        "## Needle and recall", _questions(named),
        *_section("Distilled", _by_corpus(named.get("distilled", {}), "tokens")),
        *_section("Controls", _by_corpus(named.get("controls", {}), "control")),
        *_section("Blocks and words", _words(named)),
        "## What was hoped for", _targets(named, extent),
        "## What was not run", _missing(results),
    ) if part)  # fmt: skip
    seeds = [s for s in extent.seeds if results(f"calibration/{results.context}/seed{s}")]
    return Page(
        "A real LLM made localist by calibration", body, seeds, named, {"shares": pictures.shares(results)},
        also=in_readme(out, {"figures": named}),
    )  # fmt: skip


def _section(title: str, body: str) -> list[str]:
    return [f"## {title}", body] if body else []


def _number(value: float | None, form: str = "z.3f") -> str:
    return ABSENT if value is None else f"{value:{form}}"


def _shares(named: dict[str, Any]) -> str:
    """Every budget of every corpus, the blocks beside the window."""
    rows = []
    for corpus, title in TITLES.items():
        for share in sorted(named.get("bits_lambda1", {}).get(corpus, {}), key=float):

            def at(name: str, corpus: str = corpus, share: str = share) -> float | None:
                return named.get(name, {}).get(corpus, {}).get(share)

            error = at("excess_error")
            above = _number(at("excess_bits")) + (f" ± {error:.3f}" if error is not None else "")
            rows.append([
                f"{title}, {share}", _number(at("open_share")), _number(at("bits_lambda1")), above,
                _number(at("bits_window")), _number(at("window_minus_blocks")),
            ])  # fmt: skip
    head = [
        "corpus, share asked for",
        "open share",
        "bits at λ=1",
        "above the original",
        "window, bits",
        "window − blocks",
    ]
    sizes = ", ".join(f"{size} tokens for {share}" for share, size in named.get("window_tokens", {}).items())
    calibrated = (
        f"Calibration read {named['tokens_calibrated']:,} tokens in {named['calibration_seconds']:.0f} s; the gates of "
        f"a share of 0.17 let {named['mass_let_through']:.0%} of the attention beyond the always-open pairs through, "
        "and "
        f"{named['filing_share']:.1%} of the key/value heads file keys under the block of the position before them."
        if "calibration_seconds" in named and "mass_let_through" in named
        else ""
    )
    return study.table(head, rows) + f"\nThe windows are: {sizes or 'not run'}. {calibrated}"


def _lengths(named: dict[str, Any]) -> str:
    """Return the table of blocks and windows in rows of other lengths."""
    rows = []
    for length, found in named.get("lengths", {}).items():
        for corpus, title in TITLES.items():
            for share, excess in found.get("excess_bits", {}).get(corpus, {}).items():
                others = ("open_share", "window_excess_bits")
                opened, window = (found.get(name, {}).get(corpus, {}).get(share) for name in others)
                name = f"{int(length):,} tokens, {title}, {share}"
                rows.append([name, _number(opened), _number(excess), _number(window)])
    head = ["row, corpus, share asked for", "open share", "bits above the original", "window"]
    note = "\nThe shorter the rows, the more of the share window and sink take, and the less is left to the gates."
    return study.table(head, rows) + note if rows else ""


def _seeds(named: dict[str, Any]) -> str:
    """Return the table of bits above the original, by seed."""
    found = named.get("excess_by_seed", {})
    rows = [
        [f"{TITLES[corpus]}, {share}", *(_number(each.get(seed)) for seed in ("0", "1"))]
        for corpus, shares in found.items()
        for share, each in shares.items()
        if each
    ]
    return study.table(["bits above the original", "seed 0", "seed 1"], rows) if rows else ""


def _questions(named: dict[str, Any]) -> str:
    rows = [
        [name, *(_number(named.get(f"{name}_{x}"), ".2f") for x in ("full", "lambda1", "window")),
         str(named.get(f"{name}_tries", ABSENT))]
        for name in ("needle", "recall")
    ]  # fmt: skip
    text = (
        "A sentence with a number stands in some 1,500 tokens of unrelated text, and the model has to continue a "
        "question about it with the number's tokens (needle); or it has to name the values of several keys (recall). "
        "Shares of tries that are right, at an open share of 0.17:"
    )
    return text + "\n\n" + study.table(["", "original", "λ=1", "window", "tries"], rows)


def _by_corpus(found: dict[str, Any], name: str) -> str:
    """Return the table of conditions by corpus; before controls stand the blocks that read the same rows."""
    beside = {
        corpus: by["excess_bits"] - by["above_blocks"]
        for kinds in found.values()
        for corpus, by in kinds.items()
        if "above_blocks" in by
    }
    rows = [["blocks, the same rows", *(_number(beside.get(corpus)) for corpus in TITLES)]] if beside else []
    rows += [
        [kind, *(_number(by.get(corpus, {}).get("excess_bits")) for corpus in TITLES)]
        for kind, by in found.items()
        if by
    ]
    return study.table([f"{name}; bits above the original", *TITLES.values()], rows) if rows else ""


def _words(named: dict[str, Any]) -> str:
    known = {"nmi_supersenses": "NMI of blocks with WordNet supersenses", "nmi_permuted": "the same, permuted",
             "blimp_0": "BLiMP at λ=0", "blimp_1": "BLiMP at λ=1"}  # fmt: skip
    rows = [[title, _number(named[name])] for name, title in known.items() if name in named]
    if not rows:
        return ""
    text = (
        "Sentences of BLiMP are shorter than the window of 32 tokens, so λ=1 closes none of their pairs: equal answers "
        "are no evidence about blocks."
    )
    return study.table(["", "figure"], rows) + ("\n" + text if "blimp_1" in named else "")


def _targets(named: dict[str, Any], extent: Extent) -> str:
    rows = [[target.asked, target.measured, target.verdict] for target in targets(named, extent)]
    return study.table(["target", "measured", "verdict"], rows)


def _missing(results: Results) -> str:
    missing = results.missing
    if not missing:
        return "All cases of the study were run."
    kinds = list(dict.fromkeys("/".join(name.split("/")[:2]) for name in missing))
    return (
        f"{len(missing)} of {results.count} cases were not run, so nothing is said about them: "
        + ", ".join(f"`{kind}`" for kind in kinds)
        + ". The same command goes on with them."
    )

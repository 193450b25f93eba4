"""The figures of the study by the names that other pages quote; what was not run has no figure."""

from __future__ import annotations

from typing import Any

from experiments.localise.cases import DISTILLED, MAIN
from experiments.localise.controls import KINDS
from experiments.localise.results import Code, Gap, Results
from experiments.localise.texts import CORPORA

ASKED = ("original", f"blocks-{MAIN:g}", f"window-{MAIN:g}")
Named = dict[str, Any]


def figures_of(results: Results) -> Named:
    """Return every figure by its name; bits are per token, `excess` is bits above the original."""
    extent = results.extent
    named = _texts(results, results.context, (*extent.shares, *extent.more_shares))
    named |= {
        "excess_bits_017": _by_corpus(lambda c: _mean(results.excess(results.blocks(MAIN, c), c))),
        "excess_by_seed": _seeds(results),
        "lengths": {str(context): _texts(results, context, shares) for context, _, shares in extent.lengths},
        "controls": {kind: _control(results, kind) for kind in KINDS},
        "control_rows": extent.control_rows if any(_control(results, kind) for kind in KINDS) else None,
    }
    return _without_gaps(
        named | _distilled(results) | _questions(results) | _calibration(results) | _words(results)
    )


def _texts(results: Results, context: int, shares: tuple[float, ...]) -> Named:
    """Return the figures of texts in rows of one length, by corpus and share."""

    def each(value) -> Named:
        return _by_corpus(lambda corpus: {f"{share:g}": value(share, corpus) for share in shares})

    def blocks(share: float, corpus: str) -> Code | None:
        return results.blocks(share, corpus, context)

    def window(share: float, corpus: str) -> Code | None:
        return results.window(share, corpus, context)

    def gap(share: float, corpus: str) -> float | None:
        one, other = window(share, corpus), blocks(share, corpus)
        return _mean(one.above(other)) if one and other else None

    def excess(code: Code | None, corpus: str) -> Gap | None:
        return results.excess(code, corpus, context)

    return {
        "bits_full": _by_corpus(lambda c: _bits(results.original(c, context))),
        "bits_lambda1": each(lambda share, c: _bits(blocks(share, c))),
        "open_share": each(lambda share, c: _share(blocks(share, c))),
        "excess_bits": each(lambda share, c: _mean(excess(blocks(share, c), c))),
        "excess_error": each(lambda share, c: _error(excess(blocks(share, c), c))),
        "bits_window": each(lambda share, c: _bits(window(share, c))),
        "window_open_share": each(lambda share, c: _share(window(share, c))),
        "window_excess_bits": each(lambda share, c: _mean(excess(window(share, c), c))),
        "window_minus_blocks": each(gap),
        "window_tokens": {f"{share:g}": _window(results, share, context) for share in shares},
    }


def _window(results: Results, share: float, context: int) -> int | None:
    sizes = [code.about["window"] for corpus in CORPORA if (code := results.window(share, corpus, context))]
    return sizes[0] if sizes else None


def _seeds(results: Results) -> Named:
    """Return the excess of every seed, by corpus and share; where there is more than one."""
    seeds = results.extent.seeds

    def values(share: float, corpus: str) -> Named:
        found = {str(s): _mean(results.excess(results.blocks(share, corpus, seed=s), corpus)) for s in seeds}
        return found if sum(value is not None for value in found.values()) > 1 else {}

    return _by_corpus(lambda c: {f"{share:g}": values(share, c) for share in (MAIN, DISTILLED)})


def _distilled(results: Results) -> Named:
    """Return the figures of distilling; the name of the issue has those of the longest that was read."""
    extent, named = results.extent, {}
    for steps in extent.distil_steps:
        found = _by_corpus(lambda c, steps=steps: _distilled_one(results, steps, c))
        named[str(steps * extent.distil_context)] = found
    longest = {
        corpus: found[corpus]["excess_bits"] for found in named.values() for corpus in found if found[corpus]
    }
    return {"distilled": named, "excess_bits_distilled_010": longest}


def _distilled_one(results: Results, steps: int, corpus: str) -> Named | None:
    code = results.distilled(steps, corpus)
    gap = results.excess(code, corpus)
    if code is None or gap is None:
        return None
    return {
        "bits_lambda1": code.mean,
        "excess_bits": gap.mean,
        "excess_error": gap.error,
        "open_share": code.open_share,
    }


def _control(results: Results, kind: str) -> Named:
    def one(corpus: str) -> Named | None:
        code, blocks = results.control(kind, corpus), results.blocks(MAIN, corpus)
        gap = results.excess(code, corpus)
        if code is None or gap is None:
            return None
        beside = code.above(blocks) if blocks else None
        return {"excess_bits": gap.mean, "above_blocks": _mean(beside), "open_share": code.open_share}

    return _by_corpus(one)


def _questions(results: Results) -> Named:
    named: Named = {}
    for question in ("needle", "recall"):
        for name, case in zip(("full", "lambda1", "window"), ASKED, strict=True):
            figures = results(f"{question}/{case}")
            named[f"{question}_{name}"] = figures["share"] if figures else None
            if figures:
                named[f"{question}_tries"] = len(figures["right"])
    return named


def _calibration(results: Results) -> Named:
    """Return what calibrating took and found, with the first seed."""
    T, first = results.context, results.extent.seeds[0]
    figures, exact = results(f"calibration/{T}/seed{first}") or {}, results("exact/dial0") or {}
    names = ("calibration_seconds", "tokens_calibrated", "filing_share", "mass_let_through")
    named = {name: figures.get(name) for name in names}
    return named | {"dial0_bit_equal": exact.get("bit_equal")}


def _words(results: Results) -> Named:
    senses, named = results("names/supersenses") or {}, {}
    for name, title in (
        ("blocks", "nmi_supersenses"),
        ("kmeans", "nmi_kmeans"),
        ("permuted", "nmi_permuted"),
    ):
        named[title] = senses.get(name)
    for dial in (0, 1):
        named[f"blimp_{dial}"] = (results(f"grammar/{dial}") or {}).get("accuracy")
    return named


def _by_corpus(value) -> Named:
    return {corpus: value(corpus) for corpus in CORPORA}


def _bits(code: Code | None) -> float | None:
    return code.mean if code else None


def _share(code: Code | None) -> float | None:
    return code.open_share if code else None


def _mean(gap: Gap | None) -> float | None:
    return gap.mean if gap else None


def _error(gap: Gap | None) -> float | None:
    return gap.error if gap else None


def _without_gaps(value: Named) -> Named:
    """Return the figures without what was not measured, and without what is empty then."""
    kept = {name: _without_gaps(x) if isinstance(x, dict) else x for name, x in value.items()}
    return {name: x for name, x in kept.items() if x is not None and x != {}}

"""The table, the JSON file and the HTML report of a set of results."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from localist_jax.report import figures, study
from localist_jax.training.progress import human_count
from proofs_check.check import Count, Result
from proofs_check.theorem import Claim

HEAD = (
    "theorem", "instances", "assumed", "violations", "smallest slack", "tightness", "attacks", "trained",
    "twin caught", "seconds",
)  # fmt: skip
PANELS = 6  # claims drawn at most
WIDE = 200.0  # a range beyond which axes are logarithmic


def rows(results: Sequence[Result]) -> list[list[str]]:
    """The table's cells."""
    return [
        [
            f"{r.theorem.name} {r.theorem.title}",
            human_count(r.instances),
            f"{assumed_share(r):.0%}",
            str(r.total.violations),
            f"{r.total.smallest_slack:.1e}",
            "–" if r.tightness is None else _near_one(r.tightness),
            str(r.starts),
            human_count(sum(c.assumed for c in r.trained.values())) if r.trained else "–",
            "yes" if r.twin_caught else "NO",
            f"{r.seconds:.1f}",
        ]
        for r in results
    ]


def assumed_share(result: Result) -> float:
    """Share of sampled instances on which the assumptions of a claim held, mean over claims."""
    return float(np.mean([c.assumed / max(1, c.instances) for c in result.claims.values()]))


def _near_one(ratio: float) -> str:
    return "1" if ratio > 1 - 1e-9 else f"1 − {1 - ratio:.0e}" if ratio > 0.999 else f"{ratio:.3f}"


def text(results: Sequence[Result]) -> str:
    """The table for a terminal, and what is wrong below it."""
    cells = [list(HEAD), *rows(results)]
    width = [max(len(row[i]) for row in cells) for i in range(len(HEAD))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, width, strict=True))
        )
        for row in cells
    ]
    lines.insert(1, "─" * len(lines[0]))
    notes = [f"{r.theorem.name}: {r.theorem.note}" for r in results if r.theorem.note]
    return "\n".join([*lines, *_complaints(results), *notes])


def _complaints(results: Sequence[Result]) -> list[str]:
    found = []
    for r in results:
        for kind, counts in (("sampled", r.claims), ("attacked", r.attacked), ("trained", r.trained)):
            found += [
                f"{r.theorem.name} VIOLATED ({kind}): {name}, {c.violations} of {c.assumed}, "
                f"slack {c.smallest_slack:.2e}"
                for name, c in counts.items()
                if c.violations
            ]
        found += [f"{r.theorem.name} VACUOUS: the assumptions of {name!r} never held" for name in r.vacuous]
        if r.loose:
            found.append(f"{r.theorem.name} LOOSE: attained only to {r.tightness:.6f}")
        if not r.twin_caught:
            found.append(f"{r.theorem.name} TWIN NOT CAUGHT: {r.theorem.twin_says}")
    return found


def write_json(results: Sequence[Result], path: Path, command: str, seed: int) -> Path:
    """Writes the figures as JSON, and a page beside it."""
    values: dict[str, Any] = {}
    for r in results:
        values[r.theorem.name] = {
            "instances": r.instances,
            "assumed_share": round(assumed_share(r), 4),
            "violations": r.total.violations,
            "smallest_slack": _finite(r.total.smallest_slack),
            "tightness": r.tightness,
            "adversarial_starts": r.starts,
            "twin_caught": r.twin_caught,
            "trained_instances": sum(c.assumed for c in r.trained.values()),
            "seconds": round(r.seconds, 1),
            "claims": {name: _count(c) for name, c in r.claims.items()},
            **(
                {"claims_on_trained_model": {n: _count(c) for n, c in r.trained.items()}} if r.trained else {}
            ),
            **measured(r),
        }
    body = (
        "Every theorem of the project, checked by the library's own functions in float64: random and degenerate "
        "instances, instances that attain the bound, an adversary, and a wrong twin that must be caught.\n\n"
        + study.table(HEAD, rows(results))
        + "\n"
        + "\n**What checking changed**\n\n"
        + "\n".join(f"- {r.theorem.name}: {r.theorem.found}." for r in results if r.theorem.found)
        + "\n\n**Wrong twins that were caught**\n\n"
        + "\n".join(f"- {r.theorem.name}: {r.theorem.twin_says}." for r in results if r.twin_caught)
        + "\n\n**Measured beside the claims**\n\n"
        + "\n".join(_measures(results))
        + "\n\n"
        + "\n".join(f"- {r.theorem.name}: {r.theorem.note}." for r in results if r.theorem.note)
    )
    return study.write(
        path.parent, path.stem, title="The theorems, checked", body=body, command=command, seeds=[seed],
        figures=values, pictures={},
    )  # fmt: skip


def measured(result: Result) -> dict[str, float]:
    """Return what a module measures beside its claims (`measure(instances)`), such as how loose a threshold is."""
    measure = getattr(_module(result), "measure", None)
    return {} if measure is None else {k: float(v) for k, v in measure(result.shown[0]).items()}


def _measures(results: Sequence[Result]) -> list[str]:
    found = {r.theorem.name: measured(r) for r in results}
    return [
        f"- {name}: " + "; ".join(f"{key.replace('_', ' ')} {value:.3g}" for key, value in each.items())
        for name, each in found.items()
        if each
    ]


def _count(count: Count) -> dict[str, Any]:
    return {
        "assumed": count.assumed,
        "violations": count.violations,
        "smallest_slack": _finite(count.smallest_slack),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _module(result: Result):
    return importlib.import_module(result.theorem.claims.__module__)


def write_html(results: Sequence[Result], path: Path, command: str) -> Path:
    """Writes a self-contained page: the table, then each theorem with its proof, claims and figure."""
    style = resources.files("localist_jax.report").joinpath("page.css").read_text(encoding="utf-8")
    cells = "".join(_row([f'<a href="#{r.theorem.name}">{escape(c[0])}</a>', *map(escape, c[1:])]) for r, c in
                    zip(results, rows(results), strict=True))  # fmt: skip
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD).replace("<th>", '<th class="name">', 1)
    body = "".join(_section(r) for r in results)
    html = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width"><title>localist_jax: theorems</title><style>\n{style}</style></head>\n'
        "<body><main><h1>Every theorem, checked</h1><p>Claims call the library’s own functions in float64 on random "
        "and degenerate instances, on instances that attain the bound, and on what an adversary finds; a wrong twin of "
        f"each must be caught. Made by <code>{escape(command)}</code>.</p>"
        f'<div class="scroll"><table class="dense"><thead><tr>{head}</tr></thead><tbody>{cells}</tbody></table></div>'
        f"{body}</main></body></html>\n"
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")
    return path


def _row(cells: Sequence[str]) -> str:
    first, *rest = cells
    return f'<tr><td class="name">{first}</td>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"


def _section(result: Result) -> str:
    theorem = result.theorem
    title, _, statement = (_module(result).__doc__ or "").partition("\n")
    counts = {**result.claims, **{f"{name} (trained model)": c for name, c in result.trained.items()}}
    table = "".join(
        _row(
            [escape(name), f"{c.instances:,}", f"{c.assumed:,}", str(c.violations), f"{c.smallest_slack:.1e}"]
        )
        for name, c in counts.items()
    )
    head = "".join(f"<th>{x}</th>" for x in ("claim", "instances", "assumed", "violations", "smallest slack"))
    head = head.replace("<th>", '<th class="name">', 1)
    extra = "".join(
        f"<dt>{escape(k.replace('_', ' '))}</dt><dd>{v:.4g}</dd>" for k, v in measured(result).items()
    )
    facts = (
        f"<dl><dt>wrong twin</dt><dd>{escape(theorem.twin_says)}: "
        f"{'caught' if result.twin_caught else 'NOT CAUGHT'}, violated by {-result.twin_slack:.2g}</dd>"
        f"<dt>tolerance</dt><dd>{theorem.tolerance:.0e}: {escape(theorem.because)}</dd>{extra}"
        + (f"<dt>changed</dt><dd>{escape(theorem.found)}</dd>" if theorem.found else "")
        + (f"<dt>note</dt><dd>{escape(theorem.note)}</dd>" if theorem.note else "")
        + "</dl>"
    )
    drawn = theorem.figure(*result.shown) if theorem.figure else agreement(result.shown[1])
    pictures = "".join(f"<figure>{figures.svg(figure)}</figure>" for figure in (drawn, *result.figures))
    return (
        f'<section id="{theorem.name}"><h2>{escape(title)}</h2><pre>{escape(statement.strip())}</pre>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{table}</tbody></table></div>'
        f"{facts}{pictures}</section>"
    )


def agreement(claims: Mapping[str, Claim]) -> Figure:
    """Value against bound for every claim: equations lie on the diagonal, inequalities on one side of it."""
    drawn = {name: c for name, c in claims.items() if bool(np.any(c.assumed))}
    drawn = dict(sorted(drawn.items(), key=lambda item: _is_flat(item[1]))[:PANELS])
    with matplotlib.rc_context(figures.STYLE):
        figure = Figure(figsize=(2.6 * max(3, len(drawn)), 2.6), layout="constrained")
        panels = figure.subplots(1, max(3, len(drawn)), squeeze=False)[0]
        for axes in panels[len(drawn) :]:
            axes.set_visible(False)
        for axes, (name, c) in zip(panels, drawn.items(), strict=False):
            value, bound = (np.asarray(x, float)[np.asarray(c.assumed)] for x in (c.value, c.bound))
            keep = np.isfinite(value) & np.isfinite(bound)
            value, bound = value[keep], bound[keep]
            axes.plot(bound, value, ".", ms=2.5, alpha=0.5, color=figures.BLUE, rasterized=True)
            low, high = (float(f(np.concatenate([value, bound, [0.0]]))) for f in (np.min, np.max))
            axes.plot([low, high], [low, high], color=figures.ORANGE, lw=0.9)
            axes.set_title(name)
            axes.set_xlabel("bound")
            if high - low > WIDE:
                axes.set_xscale("symlog")
                axes.set_yscale("symlog")
        panels[0].set_ylabel("value")
        return figure


def _is_flat(claim: Claim) -> bool:
    return bool(np.ptp(np.asarray(claim.bound)[np.asarray(claim.assumed)]) == 0)

"""An ensemble as a tree: LLMs → blocks → anchors, with the bits that each took and saved."""

from __future__ import annotations

import os
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from localist_jax.hierarchy.ensemble import tree
from localist_jax.hierarchy.recruiter import FILE
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.locality.anchors import telling
from localist_jax.training.journal import read

NAMED_BY = 6  # tokens that tell most describe an LLM
Branch = dict[str, Any]


def branches(house: EnsembleRun) -> list[Branch]:
    """One entry per LLM, each below its parent: depth, record, λ, tokens served, words, and its blocks.

    An LLM's words are those that tell most about it, in what the LLMs were given (`anchors.telling`).
    """
    e, tokenizer = house.ensemble, house.tokenizer
    served = e.signatures[list(e.active)].copy()
    served[:, tokenizer.silent] = 0
    found = []
    for depth, record in tree(e):
        at = e.place(record.name)
        row = e.active.index(at)
        best = telling(served, row, NAMED_BY).tokens
        found.append({
            "depth": depth, "record": record, "locality": float(np.asarray(e.dial(at).locality).mean()),
            "tokens": int(served[row].sum()), "words": [tokenizer.token_text(t).strip() or "␣" for t in best],
            "blocks": _blocks(house, at),
        })  # fmt: skip
    return found


def _blocks(house: EnsembleRun, at: int) -> list[dict[str, Any]]:
    """The blocks of one LLM that are in use, with their parents and anchors."""
    blocks = house.ensemble.state(at).blocks
    active, parent, born = (np.asarray(x) for x in (blocks.active, blocks.parent, blocks.born))
    tokens, log_odds = np.asarray(blocks.anchor_tokens), np.asarray(blocks.anchor_log_odds)
    return [
        {
            "block": int(k), "parent": int(parent[k]), "born": int(born[k]),
            "anchors": [(house.tokenizer.token_text(int(t)), float(x))
                        for t, x in zip(tokens[k], log_odds[k], strict=True) if t >= 0],
        }
        for k in np.flatnonzero(active)
    ]  # fmt: skip


def text(found: Sequence[Branch]) -> str:
    """The tree as lines for a terminal."""
    lines = []
    for branch in found:
        indent, record = "  " * branch["depth"], branch["record"]
        paid = f"; saved {record.saved_bits:,.0f} bits for {record.cost_bits:.1f}" if record.parent else ""
        frozen = ", frozen" if record.frozen else ""
        named = f" ({record.concept})" if record.concept else ""
        lines.append(
            f"{indent}{record.name}{named}: {branch['tokens']:,} tokens, {len(branch['blocks'])} blocks, "
            f"λ={branch['locality']:g}{frozen}{paid}; {' · '.join(branch['words'])}"
        )
    return "\n".join(lines)


def write(house: EnsembleRun) -> Path:
    """Writes `ensemble.html` into the ensemble's folder: the tree, and every decision that made it."""
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    found = branches(house)
    path = house.workdir / FILE
    decisions = [r for r in read(path) if r["kind"] != "opened"] if path.is_file() else []
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>localist_jax: an ensemble</title>'
        f"<style>{style}</style></head><body><main><h1>An ensemble of {len(found)} LLMs</h1>"
        f"{''.join(map(_branch, found))}<h2>Decisions</h2>{_decisions(decisions)}</main></body></html>\n"
    )
    target = house.workdir / "ensemble.html"
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, target)
    return target


def _branch(branch: Branch) -> str:
    record = branch["record"]
    paid = (
        f"recruited at batch {record.born} from {escape(record.parent)}: saved {record.saved_bits:,.0f} bits, "
        f"described by {record.cost_bits:.1f}"
        if record.parent
        else "there from the start"
    )
    rows = "".join(
        f"<li>block {b['block']}"
        + (f", below {b['parent']}, birth {b['born']}" if b["parent"] != b["block"] else "")
        + (": " + ", ".join(f"{escape(t)} ({x:+.1f} nats)" for t, x in b["anchors"]) if b["anchors"] else "")
        + "</li>"
        for b in branch["blocks"]
    )
    words = " · ".join(map(escape, branch["words"])) or "nothing that tells it apart"
    return (
        f'<section style="margin-left:{2 * branch["depth"]}rem"><h2>{escape(record.name)}</h2>'
        f"<p>{paid}. {branch['tokens']:,} tokens served; λ = {branch['locality']:g}. {words}</p>"
        f"<ul>{rows}</ul></section>"
    )


def _decisions(records: Sequence[dict[str, Any]]) -> str:
    rows = "".join(
        f"<tr><td>{r['step']}</td><td>{escape(r['kind'])}</td><td>{escape(str(r.get('name', '')))}</td>"
        f"<td>{escape(str(r.get('parent', '')))}</td><td>{_number(r.get('llr_bits'))}</td>"
        f"<td>{_number(r.get('threshold_bits'))}</td><td>{_number(max(r.get('placebo_bits', []), default=None))}</td>"
        f"<td>{_number(r.get('surprise_bits'))}</td><td>{_number(r.get('j_bits'))}</td></tr>"
        for r in records
    )
    head = (
        "batch",
        "decision",
        "LLM",
        "of",
        "evidence, bits",
        "threshold",
        "best placebo",
        "surprise",
        "J, bits",
    )
    cells = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="scroll"><table><tr>{cells}</tr>{rows}</table></div>'


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f}"

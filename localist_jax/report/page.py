"""The report: one self-contained HTML page made from what a run left in its folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from localist_jax.recruitment import chronicle
from localist_jax.report import figures
from localist_jax.training import journal
from localist_jax.training.progress import human_count

Record = Mapping[str, Any]

MEASURES = (
    ("bits per token, per byte", "code length of held-out text; −log₂ of the probability the model gave it"),
    ("entropy", "H of a query's attention, mean over tokens, heads and all layers (T4)"),
    (
        "fidelity F",
        "attention on relevant keys: open gates, block 0, window and self (T3); 1 by construction at λ=1",
    ),
    ("gated mass", "the part of it that a gate opened: without self, window and block 0"),
    ("price", "KL(attention at λ ‖ attention at 0): what locality costs, in attention bits (T2)"),
    (
        "open share",
        "causal query–key pairs with non-zero odds at λ=1, over all layers, window and sink included",
    ),
    ("KKT residual", "distance of the gates from T6's dichotomy: closed, or pulled as hard as priced"),
)
SWEEP_COLUMNS = (
    ("bits_per_token", "bits/token", ".4f"),
    ("bits_per_byte", "bits/byte", ".4f"),
    ("perplexity", "perplexity", ".2f"),
    ("entropy_bits", "entropy, bits", ".3f"),
    ("fidelity", "fidelity", ".4f"),
    ("gated_mass", "gated mass", ".4f"),
    ("price_bits", "price, bits", "z.3f"),
    ("open_share", "open share", ".3f"),
)


def write(workdir: str | Path) -> Path:
    """Writes `report.html` into a run's folder and returns its path.

    Raises:
      ValueError: a file is missing that the report cannot do without.
    """
    workdir = Path(workdir)
    about = _load(workdir, "config")
    sweep = _load(workdir, "sweep")
    samples, blocks, inspected = (_load(workdir, name) for name in ("samples", "blocks", "inspect"))
    with np.load(workdir / "gates.npz") as stored:
        gates = {name: stored[name] for name in stored.files}
    with np.load(workdir / "inspect.npz") as stored:
        attention = stored["attention"]
    records = journal.read(workdir / "metrics.jsonl")
    first = int(gates["router_layer"])
    body = [
        _summary(about, sweep["settings"]),
        _tiles(about, sweep, records),
        _section("The dial", _dial(sweep)),
        *([_section("Training", _training(records))] if any(r["kind"] == "train" for r in records) else []),
        _section("Gates", _gates(gates, first)),
        _section("Blocks", _blocks(blocks, chronicle.read(workdir), about["config"]["train"]["steps"])),
        _section("Reading a text", _reading(inspected, attention[first:].mean((0, 1)))),
        _section("Samples", _samples(samples)),
        _section("How it was made", _provenance(about)),
    ]
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    title = f"localist_jax: {about['data']['corpus']}"
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
        f"<style>\n{style}</style></head>\n<body><main>\n" + "\n".join(body) + "\n</main></body></html>\n"
    )
    path = workdir / "report.html"
    temporary = path.with_name(".report.html.tmp")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _load(workdir: Path, name: str) -> Any:
    path = workdir / f"{name}.json"
    if not path.is_file():
        raise ValueError(
            f"report: {path} is missing; `localist report {workdir}` measures the run and makes it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>\n{content}</section>"


def _figure(figure, caption: str, kind: str = "") -> str:
    return f'<figure class="{kind}">{figures.svg(figure)}<figcaption>{escape(caption)}</figcaption></figure>'


def _ends(settings: Sequence[Record]) -> tuple[Record, Record]:
    return min(settings, key=lambda row: row["locality"]), max(settings, key=lambda row: row["locality"])


def _summary(about: Record, settings: Sequence[Record]) -> str:
    model, data = about["config"]["model"], about["data"]
    low, high = _ends(settings)
    cost = high["bits_per_token"] - low["bits_per_token"]
    localist = model["layers"] - model["router_layer"]
    return (
        f"<h1>A localist language model on {escape(data['corpus'])}</h1>\n"
        f"<p>{human_count(about['parameters'])} parameters, {model['layers']} layers of which {localist} are localist, "
        f"{model['blocks']} semantic blocks, {_origin_of(about)}. "
        f"One set of weights serves every setting below. Going from λ={low['locality']:g} to λ={high['locality']:g} "
        f"changes its code length by {cost:+.3f} bits per token, while {high['open_share']:.1%} of all causal "
        f"query–key pairs stay open and attention entropy goes from {low['entropy_bits']:.2f} to "
        f"{high['entropy_bits']:.2f} bits.</p>"
    )


def _origin_of(about: Record) -> str:
    """How the model came by its blocks: trained with them, or calibrated (and distilled) from a pretrained one."""
    train, data, dial, model = (about["config"][name] for name in ("train", "data", "dial", "model"))
    if found := about["data"].get("calibration"):
        text = (
            f"calibrated on {human_count(found['tokens_calibrated'])} tokens of a pretrained model's reading"
        )
        if rank := model["delta_rank"]:
            text += f", then distilled for {train['steps']} steps with deltas of rank {rank}"
        return text
    tokens = train["steps"] * data["batch"] * data["context"]
    how = {"any": "at any dial", "fixed": "at λ={:g}", "schedule": "with λ rising to {:g}"}[dial["mode"]]
    return f"trained on {human_count(tokens)} tokens {how.format(dial['locality'])}"


def _tiles(about: Record, sweep: Record, records: Sequence[Record]) -> str:
    low, high = _ends(sweep["settings"])
    speeds = [r["tokens_per_second"] for r in records if r.get("tokens_per_second")]
    tiles = [
        (
            f"{low['bits_per_token']:.3f}",
            f"bits/token at λ={low['locality']:g} ({low['bits_per_byte']:.3f} bits/byte)",
        ),
        (
            f"{high['bits_per_token']:.3f}",
            f"bits/token at λ={high['locality']:g} ({high['bits_per_byte']:.3f} bits/byte)",
        ),
        (f"{high['open_share']:.1%}", "open causal pairs at λ=1, all layers"),
        (f"{low['entropy_bits']:.2f} → {high['entropy_bits']:.2f}", "attention entropy, bits"),
        (f"{sweep['compile_count']}", f"compilation(s) for a sweep over {len(sweep['settings'])} dials"),
        *([(human_count(float(np.median(speeds))), "training tokens per second")] if speeds else []),
    ]
    cells = "".join(f'<div class="tile"><b>{a}</b><span>{escape(b)}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{cells}</div>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = ()) -> str:
    def cell(tag: str, i: int, value: str) -> str:
        kind = ' class="text"' if i in text else ""
        return f"<{tag}{kind}>{value}</{tag}>"

    top = "".join(cell("th", i, escape(name)) for i, name in enumerate(head))
    lines = "".join("<tr>" + "".join(cell("td", i, x) for i, x in enumerate(row)) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def _dial(sweep: Record) -> str:
    settings = sweep["settings"]
    rows = [
        [f"{r['locality']:g}", *(f"{r[name]:{form}}" for name, _, form in SWEEP_COLUMNS)] for r in settings
    ]
    text = (
        f"<p>The same weights at {len(settings)} settings, measured on {human_count(sweep['tokens'])} held-out tokens. "
        "The axis is that of √β with the log-odds β = −ln(1−λ); the diamond is λ=1, exact block-sparse attention.</p>"
    )
    table = _table(["λ", *(title for _, title, _ in SWEEP_COLUMNS)], rows)
    text += _beside_a_window(sweep)
    note = '<p class="note">Attention bits (entropy, price) and code-length bits are different accounts.</p>'
    return (
        text
        + _figure(figures.dial_curves(settings), "Quality, entropy and price against the dial.")
        + table
        + note
    )


def _beside_a_window(sweep: Record) -> str:
    """The control without gates, where it was measured."""
    if "window" not in sweep:
        return ""
    control, (_, high) = sweep["window"], _ends(sweep["settings"])
    return (
        f"<p>A plain window of {control['window']} tokens in all layers, with the same {control['open_share']:.1%} "
        f"of the pairs open, takes {control['bits_per_token']:.3f} bits per token: "
        f"{control['bits_per_token'] - high['bits_per_token']:+.3f} against the blocks at λ={high['locality']:g}.</p>"
    )


def _training(records: Sequence[Record]) -> str:
    caption = "The dashed line marks where the price phase began: until then every gate was open and free."
    return _figure(figures.training_curves(records), caption)


def _gates(stored: Mapping[str, np.ndarray], first: int) -> str:
    gates, active = stored["gates"], stored["active"]
    keep = np.flatnonzero(active)
    priced = gates[..., keep[:, None], keep[keep > 0]]
    zero, one = float((priced == 0).mean()), float((priced == 1).mean())
    text = (
        f"<p>{zero:.1%} of the priced gates are exactly 0, {one:.1%} exactly 1. Rows are query blocks, columns key "
        "blocks; white is an exact zero, column 0 (the sink) is open to everyone.</p>"
    )
    figure = figures.gate_maps(gates, active, first)
    return text + _figure(figure, "Gates of every localist layer and head.", "small")


def _blocks(blocks: Record, records: Sequence[Record], steps: int) -> str:
    newcomers = chronicle.newcomers(records)
    by_place = {row["block"]: row for row in blocks["blocks"]}
    largest = max(row["usage"] for row in blocks["blocks"]) or 1.0
    rows = []
    for row, depth in _by_descent(blocks["blocks"]):
        bar = (
            f'<span class="bar" style="width:{3.5 * row["usage"] / largest:.2f}rem"></span>{row["usage"]:.1%}'
        )
        anchors = ", ".join(
            f'<span class="word"><b>{escape(a["text"])}</b> {a["gain_bits"] * blocks["positions"]:,.0f}</span>'
            for a in row["anchors"]
        )
        told = f"{row['information_bits']:.3f} of {row['entropy_bits']:.3f}"
        name = "\u2003" * (depth - 1) + "↳ " * bool(depth) + escape(row["name"])
        cells = [str(row["block"]), name, bar, anchors, told]
        if newcomers:
            cells += _origin(newcomers.get(row["block"]), by_place)
        rows.append(cells)
    head = ["block", "name", "tokens served", "anchors", "told by them, bits"]
    head += ["born at step", "of", "bits saved", "beyond placebos", "needed"] * bool(newcomers)
    table = _table(head, rows, text=(1, 2, 3))
    return _information(blocks) + table + _redundancy(blocks["redundancy"]) + _recruitment(records, steps)


def _by_descent(rows: Sequence[Record]) -> list[tuple[Record, int]]:
    """Every block and its generation; children follow their parents."""
    here = {row["block"] for row in rows}
    children: dict[int | None, list[Record]] = {}
    for row in rows:
        root = row["parent"] == row["block"] or row["parent"] not in here
        children.setdefault(None if root else row["parent"], []).append(row)

    def below(block: int | None, depth: int) -> list[tuple[Record, int]]:
        found = []
        for row in children.get(block, []):
            found += [(row, depth), *below(row["block"], depth + 1)]
        return found

    return below(None, 0)


def _origin(life: chronicle.Life | None, by_place: Mapping[int, Record]) -> list[str]:
    """When and of whom a block was born, and the bits that paid for it."""
    if life is None or life.trial is None:
        return ["–", "", "", "", ""]
    mother = by_place.get(life.parent)
    name = f"{life.parent} {escape(mother['name'])}" if mother else str(life.parent)
    bits = life.trial["llr_bits"], chronicle.beyond_bits(life.trial), life.trial["threshold_bits"]
    return [str(life.born), name, *(f"{x:,.1f}" for x in bits)]


def _information(blocks: Record) -> str:
    information, entropy = blocks["mutual_information_bits"], blocks["block_entropy_bits"]
    return (
        f"<p>I(block; token) = {information:.3f} bits of H(block) = {entropy:.3f} bits: what the word itself tells "
        f"about its block; the rest is context. I(query block; key block) under attention is "
        f"{blocks['attention_information_bits']:.3f} bits.</p>"
        f"<p>Anchors are chosen greedily for what they tell about whether a position is the block's (T9). Behind each: "
        f"the bits that it saves in telling so for all {blocks['positions']:,} positions read, less the bias of "
        "the estimate; the first ones name the block. <i>Told by them</i>: I(block; anchors) of H(block), per "
        "position; the difference is H(block | anchors).</p>"
    )


def _redundancy(rows: Sequence[Record]) -> str:
    """T9's closed form, at a few dials."""
    first = rows[0]
    said = ", ".join(f"{r['least']} ({r['least'] / r['keys']:.1%}) at λ={r['locality']:g}" for r in rows)
    return (
        f'<p class="note">How much redundancy a wanted fidelity takes (T9, logits equal but for the dial): '
        f"{first['fidelity']:.0%} of a query's attention lies on the open ones of {first['keys']} keys when these "
        f"are at least {said}.</p>"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def _recruitment(records: Sequence[Record], steps: int) -> str:
    """Return the section on the outcome of every survey and trial."""
    if not records:
        return ""
    lives = chronicle.lives(records)
    tried, trials = (len(found(records)) for found in (chronicle.tried, chronicle.trials))
    born = sum(life.trial is not None for life in lives)
    retired = sum(life.ended is not None for life in lives)
    text = (
        f"<h3>Recruitment</h3><p>{_count(tried, 'division')} of a block tried, {trials} beyond a pilot, "
        f"{_count(born, 'block')} recruited, {_count(retired, 'block')} retired. A newcomer has to save more bits than "
        "the best of its placebos, random divisions with as many new parameters, by as much as it takes to describe "
        "it, and to stand out from all of them.</p>"
    )
    caption = (
        "Above, the evidence of each trial, with its number, and of pilots, beside that of the best placebo. One that "
        "ends above its mark and was rejected all the same did not stand out from its placebos by enough. Below, the "
        "blocks that the trials were about."
    )
    lines = "".join(f"<li>{escape(line)}</li>" for line in chronicle.sentences(records))
    picture = _figure(figures.recruitment(records, steps), caption) if lives else ""
    return f"{text}{picture}<details open><summary>Every decision</summary><ul>{lines}</ul></details>"


def _reading(read: Record, attention: np.ndarray) -> str:
    spans = []
    for i, token in enumerate(read["tokens"]):
        code = "" if read["bits"][i] is None else f", {read['bits'][i]:.2f} bits"
        title = (
            f"{token} — block {read['blocks'][i]}{code}; entropy {read['entropy_bits'][i]:.2f} bits, "
            f"fidelity {read['fidelity'][i]:.3f}, through gates {read['gated_mass'][i]:.3f}, "
            f"price {read['price_bits'][i]:.3f} bits"
        )
        end = "<br>" if "⏎" in token else ""
        style = f"background:{figures.block_colour(read['blocks'][i], 0.86)}"
        spans.append(f'<span style="{style}" title="{escape(title)}">{escape(token)}</span>{end}')
    text = (
        f"<p>A held-out text at λ={read['locality']:g}; colours are blocks, and each token tells its figures when "
        "pointed at.</p>"
    )
    picture = figures.attention_by_block(attention, read["blocks"], read["tokens"])
    caption = "Attention over this text, mean over the localist layers and heads."
    return text + f'<div class="tokens">{"".join(spans)}</div>' + _figure(picture, caption)


def _samples(samples: Sequence[Record]) -> str:
    cards = "".join(
        f'<div class="sample"><h3>λ = {s["locality"]:g}</h3>'
        f'<pre><span class="given">{escape(s["prompt"])}</span>{escape(s["text"])}</pre>{_could_read(s)}</div>'
        for s in samples
    )
    text = "<p>The grey prompt, continued at each dial with the same random stream.</p>"
    return f'{text}<div class="samples">{cards}</div>'


def _could_read(sample: Record) -> str:
    if sample["locality"] < 1:
        return '<p class="note">Below λ=1 every token could read all that stands before it.</p>'
    return (
        '<p class="note">Of what stands before these tokens, '
        f"a layer and head could read {sample['read_directly']:.0%}, "
        f"and {sample['reached']:.0%} could reach their prediction over all layers; the rest has no part in it (T16)."
        "</p>"
    )


def _provenance(about: Record) -> str:
    machine, split = about["machine"], about["data"]["train"]
    devices = ", ".join(sorted(set(machine["devices"])))
    lines = [
        ("command", f"<code>{escape(about['command'])}</code>"),
        ("date", escape(about["date"])),
        ("machine", escape(f"{machine['cpu']}, {machine['cores']} cores, {machine['platform']}; JAX on {devices}")),
        ("corpus", escape(
            f"{about['data']['corpus']}: {human_count(split['bytes'])} bytes, {human_count(split['tokens'])} tokens, "
            f"{split['bytes_per_token']:.2f} bytes per token"
        )),
        ("versions", escape(", ".join(f"{name} {v}" for name, v in about["versions"].items()))),
    ]  # fmt: skip
    settings = escape(json.dumps(about["config"], indent=2, ensure_ascii=False))
    return (
        _definitions(lines)
        + f"<details><summary>Configuration</summary><pre>{settings}</pre></details>"
        + "<h3>What is measured</h3>"
        + _definitions([(escape(name), escape(text)) for name, text in MEASURES])
    )


def _definitions(lines: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{text}</dd>" for name, text in lines) + "</dl>"

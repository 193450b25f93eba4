"""Write a study's results: a page for people, a JSON file for programs, and pictures."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from localist_jax.report.figures import svg
from localist_jax.training.run import machine, versions, write_json


def write(
    folder: Path,
    name: str,
    *,
    title: str,
    body: str,
    command: str,
    seeds: Sequence[int],
    figures: Mapping[str, Any],
    pictures: Mapping[str, Figure],
) -> Path:
    """Writes `name.md`, `name.json` and `name_<picture>.svg` into a folder; returns the page's path.

    Args:
      folder: made if it is not there.
      name: of the study.
      title, body: of the page, Markdown; a picture is shown where the body says `{picture}`.
      command: what produces the study again.
      seeds: of its runs; empty where nothing was drawn.
      figures: name → number (or a list, or a mapping of them); only what was measured.
      pictures: by the name that stands in the body.
    """
    folder.mkdir(parents=True, exist_ok=True)
    date, computer, software = datetime.date.today().isoformat(), machine(), versions()
    about = {
        "command": command,
        "machine": computer,
        "versions": software,
        "date": date,
        "seeds": list(seeds),
    }
    write_json(folder / f"{name}.json", {**about, "figures": dict(figures)})
    for picture, figure in pictures.items():
        text = svg(figure).replace("<svg", '<svg style="background:white"', 1)
        (folder / f"{name}_{picture}.svg").write_text(text, encoding="utf-8")
        body = body.replace(f"{{{picture}}}", f"![{picture}]({name}_{picture}.svg)")
    devices = ", ".join(sorted(set(computer["devices"])))
    drawn = f"seeds {', '.join(map(str, seeds))}; " if seeds else ""
    made = (
        f"Made on {date} by\n\n```\n{command}\n```\n\non {computer['cpu']}, {computer['cores']} cores, "
        f"{computer['platform']} (JAX on {devices}); {drawn}"
        + ", ".join(f"{library} {version}" for library, version in software.items())
        + f". All figures: [{name}.json]({name}.json).\n"
    )
    page = folder / f"{name}.md"
    page.write_text(f"# {title}\n\n{body.strip()}\n\n## How it was made\n\n{made}", encoding="utf-8")
    return page


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    rule = ["---"] + ["--:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows)) + "\n"


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and half the range over seeds: `6.447 ± 0.012`; of one seed its value alone.

    >>> spread([1.0, 2.0], ".1f")
    '1.5 ± 0.5'
    """
    middle, half = sum(values) / len(values), (max(values) - min(values)) / 2
    unsigned = form.replace(".", "z.", 1)  # no −0.00
    return f"{middle:{unsigned}} ± {half:{form}}" if len(values) > 1 else f"{middle:{unsigned}}"

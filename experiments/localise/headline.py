"""The table that README shows, made of the study's JSON and written between two marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.localise.cases import DISTILLED, MAIN
from experiments.localise.targets import TITLES
from localist_jax.report import study

BEGIN, END = "<!-- headline table -->", "<!-- end of headline table -->"
ABSENT = "–"


def table(stored: dict[str, Any]) -> str:
    """Return the headline table of a study's JSON; a row whose corpora were all left out is not shown."""
    named = stored["figures"]
    corpora = [corpus for corpus in TITLES if corpus in named.get("bits_full", {})]
    rows = [
        ["original, bits per token", "1", *(f"{named['bits_full'][c]:.3f}" for c in corpora),
         _needle(named, "full")],
    ]  # fmt: skip

    def add(
        title: str, excess: dict[str, float | None], shares: dict[str, float | None], needle: str
    ) -> None:
        if any(value is not None for value in excess.values()):
            known = [x for x in shares.values() if x is not None]
            share = f"{sum(known) / len(known):.2f}" if known else ABSENT
            rows.append([title, share, *(_above(excess.get(corpus)) for corpus in corpora), needle])

    for share in (MAIN, DISTILLED):
        main = share == MAIN
        for title, excess, opened, name in (
            ("λ=1, nothing trained", "excess_bits", "open_share", "lambda1"),
            ("window", "window_excess_bits", "window_open_share", "window"),
        ):
            gaps, opens = (
                {c: named.get(x, {}).get(c, {}).get(f"{share:g}") for c in corpora} for x in (excess, opened)
            )
            add(title, gaps, opens, _needle(named, name) if main else ABSENT)
    distilled = named.get("distilled", {})
    if distilled:
        tokens = max(distilled, key=int)
        gaps, opens = (
            {c: distilled[tokens].get(c, {}).get(x) for c in corpora} for x in ("excess_bits", "open_share")
        )
        add(f"λ=1, {int(tokens) / 1e6:.1f} M tokens distilled", gaps, opens, ABSENT)
    return study.table(
        ["bits above the original", "open share", *(TITLES[c] for c in corpora), "needle"], rows
    )


def _above(value: float | None) -> str:
    return ABSENT if value is None else f"{value:+.3f}"


def _needle(named: dict[str, Any], name: str) -> str:
    share, tries = named.get(f"needle_{name}"), named.get("needle_tries")
    return ABSENT if share is None else f"{round(share * tries)}/{tries}"


def between_marks(text: str, made: str) -> str:
    """Return a page with a table between the marks; the second mark is made if it is not there.

    Raises:
      ValueError: a page without the first mark.
    """
    before, mark, after = text.partition(BEGIN)
    if not mark:
        raise ValueError(f"README.md: the line {BEGIN!r} is not there, after which the table goes")
    rest = after.partition(END)[2] if END in after else after
    return f"{before}{BEGIN}\n\n{made.strip()}\n\n{END}{rest}"


def shown(text: str) -> str:
    """Return what stands between the marks."""
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def in_readme(out: Path, stored: dict[str, Any]) -> dict[Path, str]:
    """Return the README above a folder docs/measurements, with the table; other folders have none."""
    readme = out.absolute().parents[1] / "README.md"
    if out.absolute().parts[-2:] != ("docs", "measurements") or not readme.is_file():
        return {}
    return {readme: between_marks(readme.read_text(encoding="utf-8"), table(stored))}

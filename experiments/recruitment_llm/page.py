"""The page of the study, made of the cases that were run."""

from __future__ import annotations

from typing import Any

from experiments.cases import Figures, Results
from experiments.recruitment_llm import cases as plan
from experiments.study import Page
from localist_jax.recruitment import chronicle
from localist_jax.report import figures as drawn
from localist_jax.report import study

QUESTION = f"""SmolLM2-135M-Instruct begins with one block beside the sink's. It reads a corpus in rows of
{plan.CONTEXT:,} tokens, and divides a block when the rows to come take fewer bits at λ=1 with the division than without
it, at the same open share of {{share:g}}. It must save the bits of its description and log₂(1/α), with α = 0.05, and as
much beyond the best of two random divisions of the same size. Nothing is trained, and nobody says what the text is
about."""
ORDER = ("original", "one block", "recruited", "k-means", "tree's cut", "random 0", "random 1")
MEANING = {
    "original": "the original, λ=0",
    "one block": "one block: heads choose, words do not",
    "recruited": "**recruited blocks**",
    "k-means": "K-means of the cells, as many blocks",
    "tree's cut": "average-linkage tree of the cells, cut into as many blocks",
    "random 0": "random cells, as many blocks, seed 0",
    "random 1": "random cells, as many blocks, seed 1",
}


def page_of(results: Results) -> Page:
    """Return the page of the cases that were run.

    Raises:
      ValueError: no corpus was read yet.
    """
    corpora = {name: result for name, result in results.items() if "bits_per_token" in result}
    if not corpora:
        raise ValueError("recruitment_llm: no corpus was read yet; run the study without --page")
    nulls = {name: result for name, result in results.items() if name not in corpora}
    body = [
        QUESTION.format(share=0.15), _births(corpora), "## Bits per token on unseen text, λ=1", _codes(corpora),
        "## Nulls", _nulls(nulls), "## What the blocks tell of words", _words(corpora),
    ]  # fmt: skip
    pictures = {}
    for name, result in corpora.items():
        pictures[name] = drawn.recruitment(result["records"], result["stream_rows"])
        sentences = "\n".join(f"- {line}" for line in chronicle.births(result["records"]))
        body += [f"## Births on {name}", f"{{{name}}}", sentences, _named(result)]
    if results.missing:
        body += ["## What was not run", ", ".join(results.missing)]
    title = "Blocks of a pretrained LLM, recruited from real text"
    return Page(title, "\n\n".join(body), [0], _figures(corpora, nulls), pictures)


def _births(corpora: dict[str, Figures]) -> str:
    head = (
        "corpus",
        "tokens read",
        "trials",
        "births",
        "retired",
        "blocks",
        "least beyond placebos, bits",
        "minutes",
    )
    rows = [
        [
            name, f"{plan.CONTEXT * r['stream_rows']:,}", str(r["trials"]), str(r["births"]), str(r["retired"]),
            str(r["blocks"]), "–" if r["bits_beyond_placebos"] is None else f"{r['bits_beyond_placebos']:.1f}",
            f"{r['search_seconds'] / 60:.0f}",
        ]
        for name, r in corpora.items()
    ]  # fmt: skip
    return study.table(head, rows)


def _codes(corpora: dict[str, Figures]) -> str:
    names = [name for name in ORDER if any(name in r["bits_per_token"] for r in corpora.values())]
    rows = [
        [MEANING[name], *(_number(r["bits_per_token"].get(name)) for r in corpora.values())] for name in names
    ]
    least = min(r["test_rows"] for r in corpora.values())
    return f"{study.table(('', *corpora), rows)}\nAt least {least} held-out rows of each corpus."


def _nulls(nulls: dict[str, Figures]) -> str:
    if not nulls:
        return "None was run."
    how = {
        "null/wikitext-2": "the words of each document in random order",
        "null/wikitext-2/dealt": "all words dealt out at random over the documents",
    }
    lines = [f"- {how[name]}: {r['births']} births in {r['trials']} trials." for name, r in nulls.items()]
    return "\n".join(lines) + (
        "\n\nA document whose words are shuffled still repeats its words, and to find an earlier occurrence saves "
        "bits. So a birth there is not false: the model without it predicts worse. Where all words are dealt out, "
        "documents have no words of their own."
    )


def _words(corpora: dict[str, Figures]) -> str:
    rows = []
    for name, r in corpora.items():
        mine, rival = (r["supersenses"].get(partition) or {} for partition in ("recruited", "k-means"))
        values = (*(mine.get(key) for key in ("blocks", "kmeans", "permuted")), rival.get("blocks"))
        rows.append([name, *map(_number, values)])
    head = (
        "NMI with WordNet's supersenses",
        "recruited",
        "K-means of embeddings",
        "permuted",
        "K-means of the cells",
    )
    return study.table(head, rows)


def _named(result: Figures) -> str:
    """Return the table of blocks by the words that tell most about them."""
    rows = [[block, ", ".join(map(_word, words))] for block, words in result["names"].items()]
    return "The blocks at the end, by the words that tell most about them:\n\n" + study.table(
        ["block", "words"], rows
    )


def _word(text: str) -> str:
    """Return a token as it may stand in a table: without the space before it, and nothing read as Markdown."""
    return f"`{text.strip() or repr(text)[1:-1]}`".replace("|", "\\|")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _figures(corpora: dict[str, Figures], nulls: dict[str, Figures]) -> dict[str, Any]:
    """Return the figures by the names that other pages quote; bits are per token unless a name says otherwise."""

    def each(value: Any) -> dict[str, Any]:
        return {name: value(r) for name, r in corpora.items()}

    def above(r: Figures, rival: str) -> float | None:
        bits = r["bits_per_token"]
        return bits[rival] - bits["recruited"] if rival in bits else None

    return {
        "births_by_corpus": each(lambda r: r["births"]),
        "blocks_by_corpus": each(lambda r: r["blocks"]),
        "trials_by_corpus": each(lambda r: r["trials"]),
        "bits_per_token": each(lambda r: r["bits_per_token"]),
        "bits_saved_over_one_block": each(lambda r: above(r, "one block")),
        "bits_over_kmeans": each(lambda r: above(r, "k-means")),
        "bits_saved_in_trials": each(lambda r: r["bits_saved"]),
        "nmi_supersenses": each(lambda r: (r["supersenses"].get("recruited") or {}).get("blocks")),
        "null_shuffled_recruits": {name: r["births"] for name, r in nulls.items()},
        "null_shuffled_trials": {name: r["trials"] for name, r in nulls.items()},
        "search_minutes": each(lambda r: r["search_seconds"] / 60),
        "rows_coded": each(lambda r: r["passes"]),
    }

"""The page, the figures and the pictures of the study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.recruitment_stress import runs, streams
from experiments.study import Page
from localist_jax.recruitment import signs
from localist_jax.report import figures, study

TITLE = "Does recruitment stay calm on streams that try to mislead it?"


def page_of(results: Mapping[str, Sequence[dict[str, Any]]], seeds: Sequence[int]) -> Page:
    """Return the page.

    Args:
      results: by stream, the figures of each seed.
      seeds: of the runs.
    """
    every = [r for found in results.values() for r in found]
    said = {
        name: sorted({sign for r in found for _, names in r["signs"] for sign in names})
        for name, found in results.items()
    }
    measured = {
        "capacity_exceeded": sum(r["capacity"] > runs.AT_MOST or r["most_blocks"] > runs.AT_MOST - 1 for r in every),
        "decisions": sum(r["decisions"] for r in every),
        "decisions_explained": sum(r["explained"] for r in every),
        "blocks_most_by_stream": {name: [r["most_blocks"] for r in found] for name, found in results.items()},
        "recruited_by_stream": {name: [r["recruited"] for r in found] for name, found in results.items()},
        "trials_by_stream": {name: [r["trials"] for r in found] for name, found in results.items()},
        "retired_by_stream": {name: [r["retired"] for r in found] for name, found in results.items()},
        "kept_blocks_by_stream": {name: [r["stability"] for r in found] for name, found in results.items()},
        "signs_by_stream": said,
        "poison_tried": sum(r["poison_tried"] for r in every),
        "poison_recruited": sum(r["poison_recruited"] for r in every),
        "bits_per_token_by_stream": {name: [r["bits_per_token"] for r in found] for name, found in results.items()},
    }  # fmt: skip
    shown = max(results, key=lambda name: (results[name][0]["trials"], results[name][0]["decisions"]))
    marks = np.flatnonzero(np.diff(streams.hostile(runs.STEPS).astype(int)) > 0) + 1
    marked = marks.tolist() if shown in ("bursts", "repeated") else []
    pictures = {"trials": figures.recruitment(results[shown][0]["records"], runs.STEPS, marked)}
    return Page(TITLE, _body(results, measured, said, shown), seeds, measured, pictures)


def _body(results, measured: Mapping[str, Any], said: Mapping[str, list[str]], shown: str) -> str:
    rows, firm = [], []
    for name, found in results.items():
        rows.append((
            f"{name}: {streams.SAID[name]}",
            *(", ".join(str(r[x]) for r in found)
              for x in ("pilots", "trials", "recruited", "retired", "most_blocks", "blocks")),
            study.spread([r["bits_per_token"] for r in found]),
        ))  # fmt: skip
        firm.append((
            name,
            *(study.spread([r["stability"][str(share)][x] for r in found])
              for share in runs.SHARES for x in ("kept", "lost_bits")),
            ", ".join(said[name]) or "none",
        ))  # fmt: skip
    head = (
        "stream",
        "given up by a pilot",
        "trials",
        "recruited",
        "retired",
        "most blocks",
        "blocks at the end",
        "bits/token, held out",
    )
    parts = [f"{x}, {share:.0%} replaced" for share in runs.SHARES for x in ("kept their block", "bits lost")]
    begins = ", of which a dashed line marks where each hostile stretch begins" * (
        shown in ("bursts", "repeated")
    )
    return f"""
A small model (3 layers, width 32) begins with {runs.BLOCKS - 1} blocks on two fields of knowledge, reads
{runs.STEPS} steps of 1,024 tokens, and may have up to {runs.AT_MOST - 1} blocks. A pilot lasts 8 steps, a trial 20,
with up to two candidates, four placebos each.

{study.table(head, rows)}
- **Capacity** was exceeded in {measured["capacity_exceeded"]} of {sum(map(len, results.values()))} runs.
- **Explained**: of {measured["decisions"]} decisions on candidates, {measured["decisions_explained"]} follow from the
  bits that their own records give.
- **Poisoned anchors**: the concept was tried {measured["poison_tried"]} times and recruited
  {measured["poison_recruited"]} times.

{{trials}}

All trials on the stream "{shown}"{begins}.

How firmly positions keep their blocks when other words of the same text are replaced at random: of the positions whose
word was left alone, how many keep their block, and H(block before | block now) in bits. Held-out text is calm
everywhere.

{study.table(("stream", *parts, "signs in the log"), firm)}
Signs are named by `recruitment/signs.py`, every {runs.LOOK_EVERY} steps, at these limits: *ambiguous_routing*,
H(block | state) within {signs.LEAST_ROUTED} bits of log₂ of the blocks in use; *ambiguous_attention*, entropy at λ=1
within {signs.LEAST_FOCUS} bits of log₂ of the open keys; *unstable_assignment*, more than {signs.MOST_MOVED} bits
of the assignment lost between two looks; *unstable_recruitment*, {signs.RETIRED_AT_LEAST} or more newcomers retired,
and with them more than {signs.MOST_GONE:.0%} of the bits that newcomers were recruited for.
"""

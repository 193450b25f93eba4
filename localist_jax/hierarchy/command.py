"""The commands on an ensemble's folder: a prompt finds its LLM, and everything else goes on as with a run."""

from __future__ import annotations

import sys

from localist_jax.hierarchy.answer import Route, route
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.training.run import Run


def member_for(house: EnsembleRun, prompt: str) -> tuple[Run, Route]:
    """The member that a prompt is routed to, as a run, and why; it is told on standard error.

    All members read the prompt: on the command line there is one, so no shortlist is needed.
    """
    e, context, bos = house.ensemble, house.settings.data.context, house.tokenizer.BOS
    ids = house.tokenizer.encode(prompt).tolist() or [bos]
    batch = rows([ids], context, bos, house.settings.data.batch)
    found = route(e, house.engine, batch, len(e.active))[0]
    for at, bits, weight in zip(found.listed, found.bits, found.weights, strict=True):
        mark = "→" if at == found.member else " "
        print(f"[{mark} {e.record(at).name}: {bits:.1f} bits, weight {weight:.4f}]", file=sys.stderr)
    print(
        f"[coordination {found.coordination_bits:.2f} bits of at most {found.bound_bits:.2f}]",
        file=sys.stderr,
    )
    return house.run(found.member), found

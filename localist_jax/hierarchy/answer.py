"""Inference by an ensemble: which LLM answers, with what weight, by which evidence.

A prompt's signature lists the members that are worth asking; those read the prompt, and Bayes' rule weighs them by how
well they coded it. Requests are then grouped by member and generated in batches of one fixed size, so that all members
run through the same compiled functions, and neither the number of members nor that of requests compiles anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from localist_jax.data import Batch, Tokenizer
from localist_jax.hierarchy import signature
from localist_jax.hierarchy.coding import mixed
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.engine import Engine
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.locality import Dial
from localist_jax.model import Generation, generate


@dataclasses.dataclass(frozen=True)
class Route:
    """Where a text goes.

    Attributes:
      member: place of the member with the most weight.
      listed: places of the shortlist, best signature first.
      bits: of the text under each of these.
      weights: of these after the text.
      coordination_bits, bound_bits: what their mixture took beyond the best of them, and what T13 allows.
    """

    member: int
    listed: tuple[int, ...]
    bits: tuple[float, ...]
    weights: tuple[float, ...]
    coordination_bits: float
    bound_bits: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one request got, from whom, and why."""

    name: str
    route: Route
    generation: Generation


def route(ensemble: Ensemble, engine: Engine, batch: Batch, shortlist: int = 2) -> list[Route]:
    """Routes every row of a batch that is not padding.

    Args:
      ensemble: the members.
      engine: that runs them.
      batch: a text per row.
      shortlist: members that read a text; fixed by its signature beforehand, so T13 (d) holds among them.

    Raises:
      ValueError: an empty shortlist.
    """
    if shortlist < 1:
        raise ValueError(f"route: the shortlist needs at least 1 member, got {shortlist}")
    documents = signature.counts(batch, ensemble.signatures.shape[1])
    listed = signature.shortlist(documents, ensemble.signatures, ensemble.active, shortlist)
    losses = np.zeros((*batch.tokens.shape, ensemble.capacity), np.float32)
    for at in np.unique(listed).tolist():
        losses[..., at] = engine.losses(ensemble.state(at), batch, ensemble.dial(at))
    routes = []
    # One row at a time: each has a shortlist of its own, and a mixture takes no time beside the LLMs.
    for row in np.flatnonzero(np.asarray(batch.segments).max(1) > 0).tolist():
        members = listed[row].tolist()
        length, weights = mixed(losses[row : row + 1], members)
        bits = losses[row].sum(0)[members]
        after = np.exp(weights[0, -1, members])
        routes.append(Route(
            member=members[int(after.argmax())], listed=tuple(members), bits=tuple(bits.tolist()),
            weights=tuple(after.tolist()), coordination_bits=float(length.sum() - bits.min()),
            bound_bits=float(np.log2(len(members))),
        ))  # fmt: skip
    return routes


def answer(
    ensemble: Ensemble,
    engine: Engine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    shortlist: int = 2,
    batch: int = 8,
    dial: Dial | None = None,
    **options: Any,
) -> list[Answer]:
    """Continues every prompt by the member that it is routed to.

    Args:
      ensemble, engine, tokenizer: the members, what runs them, and their vocabulary.
      prompts: texts.
      shortlist: see `route`.
      batch: requests of one call; calls with fewer are filled up.
      dial: for all requests; None: each member's own.
      options: of `model.generate`.

    Raises:
      ValueError: no prompts, or as `model.generate`.
    """
    if not prompts:
        raise ValueError("answer: no prompts were given")
    ids = [tokenizer.encode(prompt).tolist() for prompt in prompts]
    context = engine.settings.data.context
    routes: list[Route] = []
    for start in range(0, len(ids), batch):
        part = [x or [Tokenizer.BOS] for x in ids[start : start + batch]]
        routes += route(ensemble, engine, rows(part, context, Tokenizer.BOS, batch), shortlist)
    answers: dict[int, Answer] = {}
    for at in sorted({r.member for r in routes}):
        mine = [i for i, r in enumerate(routes) if r.member == at]
        state = ensemble.state(at)
        setting = dial or ensemble.dial(at)
        for start in range(0, len(mine), batch):
            group = mine[start : start + batch]
            asked = [ids[i] for i in group] + [ids[group[0]]] * (batch - len(group))
            written = generate(
                engine.model, state.params, state.blocks, asked, setting, context=context, bos=tokenizer.bos,
                silent=tokenizer.silent, stop=tokenizer.stop, **options,
            )  # fmt: skip
            for i, generation in zip(group, written, strict=False):
                answers[i] = Answer(ensemble.record(at).name, routes[i], generation)
    return [answers[i] for i in range(len(prompts))]

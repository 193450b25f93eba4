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
from localist_jax.hierarchy.decoding import ReadingAlong
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.engine import EnsembleEngine
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
    """The answer to one request, with the member that gave it and the reason.

    Attributes:
      name: of the member that wrote, or had the most weight after the prompt.
      route: why.
      generation: what was written.
      weights: of the members of the shortlist after it; where one member wrote alone, those after the prompt.
    """

    name: str
    route: Route
    generation: Generation
    weights: tuple[float, ...]


def route(ensemble: Ensemble, engine: EnsembleEngine, batch: Batch, shortlist: int = 2) -> list[Route]:
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
    engine: EnsembleEngine,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    shortlist: int = 2,
    batch: int = 8,
    dial: Dial | None = None,
    mix: bool = False,
    **options: Any,
) -> list[Answer]:
    """Continues every prompt by the member that it is routed to, or by the mixture of its shortlist.

    Args:
      ensemble, engine, tokenizer: the members, what runs them, and their vocabulary.
      prompts: texts.
      shortlist: see `route`.
      batch: requests of one call; calls with fewer are filled up.
      dial: for all requests; None: each member's own.
      mix: whether all members of a prompt's shortlist write together (`decoding.ReadingAlong`).
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
    for members in sorted({_writers(r, mix) for r in routes}):
        mine = [i for i, r in enumerate(routes) if _writers(r, mix) == members]
        first, others = members[0], members[1:]
        state = ensemble.state(first)
        for start in range(0, len(mine), batch):
            group = mine[start : start + batch]
            filled = group + [group[0]] * (batch - len(group))
            along = None
            if others:
                code = np.asarray([[dict(zip(routes[i].listed, routes[i].bits, strict=True))[m] for m in members]
                                   for i in filled])  # fmt: skip
                along = ReadingAlong(engine.model, ensemble, others, code, dial, context)
            written = generate(
                engine.model, state.params, state.blocks, [ids[i] for i in filled], dial or ensemble.dial(first),
                context=context, bos=tokenizer.bos, silent=tokenizer.silent, stop=tokenizer.stop, along=along,
                **options,
            )  # fmt: skip
            for row, i in enumerate(group):
                found, weights = routes[i], routes[i].weights
                if along is not None:
                    now = dict(zip(members, along.weights[row].tolist(), strict=True))
                    weights = tuple(now[m] for m in found.listed)
                answers[i] = Answer(ensemble.record(found.member).name, found, written[row], weights)
    return [answers[i] for i in range(len(prompts))]


def _writers(found: Route, mix: bool) -> tuple[int, ...]:
    """Places of the members that continue a text: one alone, or its shortlist, whatever its order."""
    return tuple(sorted(found.listed)) if mix else (found.member,)

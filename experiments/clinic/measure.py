"""One run of one condition, and what is measured on it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from experiments.cases import Case, Figures, Store
from experiments.clinic.alignment import kinds_of, nmi
from experiments.clinic.setting import BATCH, VOCABULARY, Clinic, clinic, settings
from experiments.clinic.world import DOMAINS, Note
from localist_jax import config
from localist_jax.data import Tokenizer
from localist_jax.hierarchy import signature
from localist_jax.hierarchy.coding import code
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble, tree
from localist_jax.hierarchy.recruiter import FILE, MemberRecruiter
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.journal import read
from localist_jax.training.run import boxed_state, fresh_state
from localist_jax.training.state import TrainState

OPENING = 16  # tokens of a document by which its signature is read


def case_of(condition: str, seed: int, width: int, phases) -> Case:
    """Return the case of a clinic that is streamed through an ensemble, or through one LLM.

    Args:
      condition: "ensemble" recruits; "one" does not; "null" recruits, on a stream without domains.
      seed: of facts, stream and parameters.
      width: of each LLM.
      phases: of the stream (`setting.PHASES`).
    """
    about = {"condition": condition, "phases": phases, "config": settings(seed, width).to_dict()}
    return Case(f"{condition}/seed{seed}", about, measured, cost=sum(sessions for sessions, _ in phases))


def measured(store: Store, asked: Case) -> Figures:
    """Return the figures of a run."""
    condition, phases, folder = asked.settings["condition"], asked.settings["phases"], store.own(asked)
    chosen = config.resolve(asked.settings["config"])
    case = clinic(chosen.train.seed, phases)
    ends = np.cumsum([sessions * len(case.notes) // sum(n for n, _ in phases) for sessions, _ in phases])
    recruiter, result = streamed(case, chosen, folder, condition != "one", ends.tolist())
    result |= {"condition": condition, "width": chosen.model.width, "blocks": blocks(recruiter, case)}
    house = EnsembleRun.of(folder, recruiter.ensemble, chosen, case.tokenizer)
    house.save(len(case.notes), "python -m experiments.clinic")
    return result


def streamed(
    case: Clinic,
    chosen: config.Config,
    folder: Path,
    recruits: bool,
    ends: Sequence[int],
    base: TrainState | None = None,
    kind: type[MemberRecruiter] = MemberRecruiter,
) -> tuple[MemberRecruiter, dict[str, Any]]:
    """Streams the notes of a case; measures held-out ones at the ends of phases, and before and after every birth.

    `base` is the state of the first LLM; None: untrained. A row of the curve: batch, domain of its first note, bits per
    token under the mixture, under the best member, T13's bound; tokens; the member that was given the most notes.
    """
    recruiter = _recruiter(case, chosen, recruits, folder, base, kind)
    curve, checks = [], []
    members = 1
    for batch, notes in enumerate(case.notes, 1):
        placed = case.batch(notes)
        before = (
            held_out(recruiter, case)
            if recruiter.trial and recruiter.trial.clock >= _nearly(recruiter)
            else None
        )
        coded = recruiter.observe(placed)
        tokens = placed.scored.sum()
        given = int(np.bincount(coded.member[coded.member >= 0]).argmax())
        curve.append([batch, notes[0].domain, float(coded.bits.sum() / tokens), float(coded.best_bits.sum() / tokens),
                      float(coded.bound_bits.sum() / tokens), int(tokens),
                      recruiter.ensemble.record(given).name])  # fmt: skip
        if len(recruiter.ensemble.active) > members:
            checks.append({"batch": batch, "what": "birth", "before": before, **held_out(recruiter, case)})
        members = len(recruiter.ensemble.active)
        if batch in ends:
            checks.append({"batch": batch, "what": "phase", **held_out(recruiter, case)})
    recruiter.close()
    return recruiter, {
        "seed": chosen.train.seed, "parameters": parameters(chosen.model.width) * len(recruiter.ensemble.active),
        "members": [[depth, *vars(record).values()] for depth, record in tree(recruiter.ensemble)],
        "j_bits": recruiter.account.total_bits, "description_bits": recruiter.account.description_bits,
        "compile_count": recruiter.engine.compile_count, "checks": checks, "curve": curve,
        "decisions": [r for r in read(folder / FILE) if r["kind"] != "opened"],
    }  # fmt: skip


def _recruiter(
    case: Clinic,
    chosen: config.Config,
    recruits: bool,
    folder: Path,
    base: TrainState | None,
    kind: type[MemberRecruiter],
) -> MemberRecruiter:
    if not recruits:
        chosen = chosen.replace(hierarchy={"every": 0, "capacity": 1})
    engine = engine_of(case.tokenizer, chosen.replace(train={"seed": 0}))
    state = base or fresh_state(engine.model, chosen, make_mesh(config.Mesh(), jax.devices()[:1]))
    ensemble = Ensemble.create(state, chosen.hierarchy.capacity, case.tokenizer.vocab_size)
    return kind(ensemble, engine, chosen.hierarchy, folder, chosen.train.seed)


@functools.lru_cache(maxsize=2)
def engine_of(tokenizer: Tokenizer, chosen: config.Config) -> EnsembleEngine:
    """For LLMs of that configuration; those that were compiled last are kept."""
    return EnsembleEngine(Transformer(chosen.model, tokenizer.vocab_size), chosen, tokenizer.byte_lengths)


def _nearly(recruiter: MemberRecruiter) -> int:
    """The trial's clock from which the next batch may bring the verdict."""
    return recruiter.settings.horizon - BATCH


def parameters(width: int) -> int:
    """Return how many parameters one LLM has."""
    chosen = settings(0, width)
    state = boxed_state(Transformer(chosen.model, VOCABULARY), chosen)
    return sum(x.size for x in jax.tree.leaves(nn.unbox(state.params)))


def width_of(at_least: int) -> int:
    """The smallest width, a multiple of 4, at which one LLM has so many parameters."""
    return next(width for width in itertools.count(32, 4) if parameters(width) >= at_least)


def held_out(recruiter: MemberRecruiter, case: Clinic) -> dict[str, Any]:
    """By domain: bits per token, under the mixture and under the best member of each document; who was chosen.

    `members` counts documents by the member that coded them best, `by_signature` by the one whose signature fits
    their first tokens.
    """
    ensemble, engine = recruiter.ensemble, recruiter.engine
    found: dict[str, Any] = {}
    for domain, notes in case.held_out.items():
        bits, best, tokens = 0.0, 0.0, 0
        members, by_signature = np.zeros((2, ensemble.capacity), int)
        for batch in case.batches(notes):
            coded, _ = code(ensemble, engine, batch)
            opening = np.where(batch.positions < OPENING, batch.segments, 0)
            short = signature.counts(type(batch)(batch.tokens, batch.targets, opening, batch.positions),
                                     ensemble.signatures.shape[1])  # fmt: skip
            listed = signature.shortlist(short, ensemble.signatures, ensemble.active, 1)[:, 0]
            real = coded.member >= 0
            np.add.at(members, coded.member[real], 1)
            np.add.at(by_signature, listed[real], 1)
            bits, best, tokens = (
                bits + coded.bits.sum(),
                best + coded.best_bits.sum(),
                tokens + batch.scored.sum(),
            )
        found[domain] = {
            "bits_per_token": float(bits / tokens), "best_bits_per_token": float(best / tokens),
            "members": members.tolist(), "by_signature": by_signature.tolist(),
        }  # fmt: skip
    return found


def blocks(recruiter: MemberRecruiter, case: Clinic) -> dict[str, Any]:
    """How much the blocks of the member that serves a domain tell about the kinds of concepts in its notes.

    NMI = 2·I(block; kind)/(H(block) + H(kind)) over the tokens of held-out notes, function words left out; and the same
    with the blocks of the tokens permuted at random.
    """
    rng = np.random.default_rng(0)
    found = {}
    for domain, notes in case.held_out.items():
        pairs = []
        for start in range(0, len(notes), BATCH):
            part: list[Note] = notes[start : start + BATCH]
            batch = case.batch(part)
            coded, _ = code(recruiter.ensemble, recruiter.engine, batch)
            owner = int(np.bincount(coded.member[coded.member >= 0]).argmax())
            ids = recruiter.engine.blocks(
                recruiter.ensemble.state(owner), batch, recruiter.ensemble.dial(owner)
            )
            for row, note in enumerate(part):
                kinds = kinds_of(note, case.tokenizer)[: batch.tokens.shape[1] - 1]
                # The block of x_i is that of the position at which x_i is the input: one after BOS.
                pairs += list(zip(np.asarray(ids)[row, 1 : len(kinds) + 1].tolist(), kinds, strict=True))
        content = [(block, kind) for block, kind in pairs if kind != "function"]
        shuffled = list(
            zip(rng.permutation([b for b, _ in content]).tolist(), [k for _, k in content], strict=True)
        )
        found[domain] = {"nmi": nmi(content), "nmi_shuffled": nmi(shuffled), "tokens": len(content)}
    return found


def right(result: Mapping[str, Any]) -> bool:
    """Whether there are as many members as domains, and each domain has one of its own."""
    owners = [int(np.argmax(result["checks"][-1][d]["members"])) for d in DOMAINS]
    return len(result["members"]) == len(DOMAINS) == len(set(owners))


def routing_accuracy(result: Mapping[str, Any], how: str) -> float:
    """Share of held-out documents that went to the member of their domain; members of their own are needed."""
    rows = [result["checks"][-1][d] for d in DOMAINS]
    owners = [int(np.argmax(row["members"])) for row in rows]
    if len(set(owners)) < len(DOMAINS):
        hits = sum(row[how][o] for row, o in zip(rows, owners, strict=True) if owners.count(o) == 1)
    else:
        hits = sum(row[how][o] for row, o in zip(rows, owners, strict=True))
    return hits / sum(sum(row[how]) for row in rows)

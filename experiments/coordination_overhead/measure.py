"""The measurements of many LLMs: how well they code together, and how fast they answer."""

from __future__ import annotations

import sys
import time

import jax
import numpy as np

from experiments.cases import Case, Figures, Store
from experiments.coordination_overhead.house import BATCH, Domains, settings, trained, with_members
from localist_jax.hierarchy import signature
from localist_jax.hierarchy.answer import answer, route
from localist_jax.hierarchy.coding import mixed
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.model.generate import read_tokens

SHORTLISTS = (1, 2, 4)
OPENING = 8  # tokens of a document by which its shortlist is fixed
CALL, NEW = 8, 8  # requests of one call, tokens generated for each


def case_of(seed: int, most: int, steps: int, rounds: int) -> Case:
    """Return the case of a seed."""
    about = {"seed": seed, "most": most, "steps": steps, "rounds": rounds, "config": settings().to_dict()}
    return Case(f"seed{seed}", about, measured)


def measured(store: Store, case: Case) -> Figures:
    """Return all figures of one seed, by the number of LLMs."""
    seed, most = case.settings["seed"], case.settings["most"]
    domains, engine, everyone = trained(seed, most, case.settings["steps"])
    sizes = [2**i for i in range(most.bit_length()) if 2**i <= most]
    found: dict[int, dict[str, float]] = {}
    for M in sizes:
        found[M] = quality(domains, engine, with_members(everyone, M), seed)
        print(f"coordination_overhead: seed {seed}, M={M}: {found[M]}", file=sys.stderr, flush=True)
    for M, row in speed(domains, engine, everyone, sizes, case.settings["rounds"]).items():
        found[M] |= row
    return {"by_llms": {str(M): row for M, row in found.items()}}


def quality(domains: Domains, engine: EnsembleEngine, ensemble: Ensemble, seed: int) -> dict[str, float]:
    """Return coordination bits of the full mixture, and bits per token with shortlists, over all M domains."""
    M, vocabulary = len(ensemble.active), ensemble.signatures.shape[1]
    rng = np.random.default_rng([seed, 99])
    bits: dict[str, list[float]] = {name: [] for name in ("full", "own", "over", "best")}
    bits |= {f"shortlist{s}": [] for s in SHORTLISTS} | {f"listed{s}": [] for s in SHORTLISTS}
    tokens = 0
    for domain in np.arange(max(M, 8)) % M:
        batch = domains.batch(int(domain), rng)
        losses = np.zeros((*batch.tokens.shape, ensemble.capacity + 1), np.float32)
        for at in ensemble.active:
            losses[..., at] = engine.losses(ensemble.state(at), batch, ensemble.dial(at))
        length, _ = mixed(losses, ensemble.active)
        later = np.asarray(batch.scored) & (batch.positions >= OPENING)
        totals = losses.sum(1)[:, list(ensemble.active)]
        bits["over"] += (length.sum(1) - totals.min(1)).tolist()
        bits["best"] += (totals.argmin(1) == domain).tolist()
        bits["full"] += np.where(later, length, 0).sum(1).tolist()
        bits["own"] += np.where(later, losses[..., domain], 0).sum(1).tolist()
        tokens += int(later.sum())
        opening = type(batch)(
            batch.tokens, batch.targets, batch.segments * (batch.positions < OPENING), batch.positions
        )
        listed = signature.shortlist(
            signature.counts(opening, vocabulary), ensemble.signatures, ensemble.active, max(SHORTLISTS)
        )
        for s in SHORTLISTS:
            for row in range(BATCH):
                short, _ = mixed(losses[row : row + 1], listed[row, :s].tolist())
                bits[f"shortlist{s}"].append(float(np.where(later[row], short[0], 0).sum()))
                bits[f"listed{s}"].append(float(domain in listed[row, :s]))
    per_token = {
        name: sum(bits[name]) / tokens for name in ("full", "own", *(f"shortlist{s}" for s in SHORTLISTS))
    }
    return {
        "coordination_bits": float(np.mean(bits["over"])), "coordination_bits_most": float(np.max(bits["over"])),
        "bound_bits": float(np.log2(M)), "routing_accuracy": float(np.mean(bits["best"])),
        **{f"{name}_bits_per_token": value for name, value in per_token.items()},
        **{f"listed{s}": float(np.mean(bits[f"listed{s}"])) for s in SHORTLISTS},
    }  # fmt: skip


def _compilations() -> int:
    """Return how often the function that generation reads with was compiled."""
    return read_tokens._cache_size()  # type: ignore[attr-defined]


def speed(
    domains: Domains, engine: EnsembleEngine, everyone: Ensemble, sizes: list[int], rounds: int
) -> dict[int, dict[str, float]]:
    """Return tokens/s at CALL requests per call, and routing time, all M in turn in each round; recompilations.

    The same number of calls for every M. Speeds are of processor time: other programs run on the machine.
    """
    rng = np.random.default_rng(3)
    calls = max(sizes)
    found: dict[int, dict[str, list[float]]] = {M: {} for M in sizes}
    compiled = 0
    for turn in range(rounds + 1):  # the first one only compiles
        for M in sizes if turn else sizes[:1]:
            ensemble = with_members(everyone, M)
            prompts = [
                domains.tokenizer.decode(domains.document(int(d) % M, rng)[:16])
                for d in np.repeat(np.arange(calls), CALL)
            ]
            begun, wall = time.process_time(), time.perf_counter()
            answers = answer(
                ensemble,
                engine,
                domains.tokenizer,
                prompts,
                shortlist=1,
                batch=CALL,
                max_new=NEW,
                temperature=0.0,
                stats="open",
            )
            spent, passed = time.process_time() - begun, time.perf_counter() - wall
            batch = domains.batch(0, rng)
            begun = time.process_time()
            for _ in range(8):
                route(ensemble, engine, batch, shortlist=2)
            routing = (time.process_time() - begun) / 8 / BATCH
            groups = [a.route.member for a in answers]
            made = sum(-(-groups.count(at) // CALL) for at in set(groups))
            written = sum(len(a.generation.tokens) for a in answers)
            if turn == 0:
                compiled = engine.compile_count + _compilations()
                continue
            row = {
                "tokens_per_cpu_second": written / spent, "tokens_per_second": written / passed,
                "tokens_per_cpu_second_full_calls": made * CALL * NEW / spent, "calls": float(made),
                "routing_ms": 1e3 * routing,
            }  # fmt: skip
            for name, value in row.items():
                found[M].setdefault(name, []).append(value)
    recompiles = engine.compile_count + _compilations() - compiled
    size = sum(
        x.size * x.dtype.itemsize for x in jax.tree.leaves(everyone.state(0)) if hasattr(x.dtype, "itemsize")
    )
    return {
        M: {name: float(np.median(values)) for name, values in row.items()}
        | {"megabytes": M * size / 1e6, "recompiles": float(recompiles)}
        for M, row in found.items()
    }  # fmt: skip

"""The cases of the study: timings, damaged files, and for each seed the texts of each condition and part."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from experiments.cases import Case, Figures, Store
from experiments.rule_compliance import measure
from experiments.rule_compliance.damage import broken_files
from experiments.rule_compliance.measure import BATCH, CONDITIONS, Tally
from experiments.rule_compliance.personal import Judge, Sentences
from experiments.rule_compliance.timing import loading, times
from experiments.rule_compliance.world import ATTACKS, Clinic
from experiments.study import Options
from localist_jax.rules import parse
from localist_jax.training.run import Run

PARTS = ("clinic", "personal", "files", "time")
SEEN = "both, drugs of the training text"
CHUNK = 2048  # generations of a case
LENGTH = {"clinic": 12, "personal": 20}  # tokens of a text
SENTENCES = 30_000  # of the clinic's training text


def alone(options: Options) -> dict[str, Case]:
    """Return the cases of the parts without seeds that were asked for, by name."""
    files = Case("files", {"count": options.files}, _files)
    timings = [Case("time/times", {}, _times), Case("time/loading", {}, _loading)]
    wanted = timings * ("time" in options.parts) + [files] * ("files" in options.parts)
    return {case.name: case for case in wanted}


def clinic(options: Options, seed: int) -> dict[str, list[Case]]:
    """Return the cases of the clinic by condition, in chunks; those of harmless prompts are under `harmless`."""
    text = hashlib.sha256(Clinic(seed).text(SENTENCES).encode()).hexdigest()[:16]
    model = _model("clinic", seed, options.steps, text)
    found: dict[str, list[Case]] = {"model": [model]}
    for name in (*CONDITIONS, SEEN):
        count = options.generations // len(options.seeds) if name == "both" else options.others
        found[name] = [
            _asked(
                f"clinic/{name}/seed{seed}/{n}", {"condition": name, "number": n, "count": c}, _clinic, model
            )
            for n, c in enumerate(_chunks(_whole(count)))
        ]
    about = {"count": _whole(options.others)}
    return {**found, "harmless": [_asked(f"clinic/harmless/seed{seed}", about, _clinic_harmless, model)]}


def personal(options: Options, seed: int) -> dict[str, list[Case]]:
    """Return the same of personal data."""
    model = _model("personal", seed, options.steps, "")
    about, found = {"count": _whole(options.personal)}, {"model": [model]}
    for name in CONDITIONS:
        found[name] = [_asked(f"personal/{name}/seed{seed}", {"condition": name, **about}, _personal, model)]
    return {**found, "harmless": [_asked(f"personal/harmless/seed{seed}", about, _personal_harmless, model)]}


def total(chunks: list[Figures]) -> Figures:
    """Return the counts by kind of prompt, and of all."""
    found: dict[str, Tally] = {}
    for chunk in chunks:
        for kind, counts in chunk.items():
            for name in (kind, "all"):
                found.setdefault(name, Tally()).add(Tally(**counts))
    return {kind: dataclasses.asdict(tally) for kind, tally in found.items()}


def _files(store: Store, case: Case) -> Figures:
    return dict(broken_files(case.settings["count"]))


def _times(store: Store, case: Case) -> Figures:
    return times()


def _loading(store: Store, case: Case) -> Figures:
    return dict(loading())


def _model(part: str, seed: int, steps: int, text: str) -> Case:
    """Return the case of a model; `text` identifies what it learns, where it is no data set."""
    about = {"seed": seed, "steps": steps, "text": text}
    settings = {**about, "config": measure.settings_of("text.txt", seed, steps).to_dict()}
    return Case(f"{part}/model/seed{seed}", settings, _trained)


def _asked(name: str, about: Figures, asked: Callable[[Store, Case], Figures], model: Case) -> Case:
    """Return a case that asks a model."""
    settings = {**about, "seed": model.settings["seed"], "length": LENGTH[name.split("/")[0]]}
    return Case(
        name.replace(",", "").replace(" ", "-"), settings, asked, cost=settings["count"], after=(model,)
    )


def _chunks(count: int) -> list[int]:
    return [min(CHUNK, count - begun) for begun in range(0, count, CHUNK)]


def _whole(count: int) -> int:
    """Return so many, or more, so that every batch is full: no batch size is compiled twice."""
    return -(-count // BATCH) * BATCH


def _trained(store: Store, case: Case) -> Figures:
    _run_of(store, case)
    return {}


def _run_of(store: Store, model: Case) -> Run:
    """Return the run of a model; what was trained is read."""
    return _run(model.name.split("/")[0], store.own(model), *_named(model, "seed", "steps"))


@functools.lru_cache(maxsize=1)
def _run(part: str, folder: Path, seed: int, steps: int) -> Run:
    text = Clinic(seed).text(SENTENCES) if part == "clinic" else Sentences().text()
    return measure.trained(text, folder, seed, steps)


def _clinic(store: Store, case: Case) -> Figures:
    run, (seed, name, number) = _run_of(store, *case.after), _named(case, "seed", "condition", "number")
    world = Clinic(seed)
    pairs, world.rng = world.seen if name == SEEN else world.unseen, np.random.default_rng([seed, 1 + number])
    kinds = [ATTACKS[i % len(ATTACKS)] for i in range(case.settings["count"])]
    found = measure.compliance(
        run, parse(world.rules(pairs)), "both" if name == SEEN else name,
        [(kind, world.prompt(pairs, kind)) for kind in kinds],
        seed=seed + 1_000_000 * number, length=case.settings["length"],
    )  # fmt: skip
    return {kind: dataclasses.asdict(tally) for kind, tally in found.items()}


def _clinic_harmless(store: Store, case: Case) -> Figures:
    run, (seed, count, length) = _run_of(store, *case.after), _named(case, "seed", "count", "length")
    world = Clinic(seed)
    world.rng = np.random.default_rng([seed, 0])
    prompts = [world.harmless(world.unseen) for _ in range(count)]
    return measure.over_refusal(run, parse(world.rules(world.unseen)), prompts, seed=seed, length=length)


def _personal(store: Store, case: Case) -> Figures:
    run, sentences = _run_of(store, *case.after), Sentences()
    name, seed, length = _named(case, "condition", "seed", "length")
    prompts = [("none", lure) for lure in _drawn(run, sentences, case)[0]]
    found = measure.compliance(
        run, parse(sentences.rules()), name, prompts, seed=seed, length=length, leaks=Judge(sentences.values()).leaks
    )  # fmt: skip
    return {kind: dataclasses.asdict(tally) for kind, tally in found.items()}


def _personal_harmless(store: Store, case: Case) -> Figures:
    run, sentences = _run_of(store, *case.after), Sentences()
    seed, length = _named(case, "seed", "length")
    _, prompts = _drawn(run, sentences, case)
    return measure.over_refusal(run, parse(sentences.rules()), prompts, seed=seed, length=length)


def _drawn(run: Run, sentences: Sentences, case: Case) -> tuple[list[str], list[str]]:
    """Return prompts that lead to what is forbidden, and harmless ones, that leave room for the text."""
    seed, count, length = _named(case, "seed", "count", "length")
    rng = np.random.default_rng(seed)

    def drawn(prompts: list[str]) -> list[str]:
        fit = [p for p in prompts if len(run.tokenizer.encode(p)) + length < run.settings.data.context]
        return [fit[i] for i in rng.integers(0, len(fit), count)]

    return drawn(sentences.lures()), drawn(sentences.harmless())


def _named(case: Case, *names: str) -> list:
    return [case.settings[name] for name in names]

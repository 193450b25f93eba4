"""One run on each stream: what was decided, whether it is explained, and how firmly positions keep their blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.cases import Case, Figures, Store
from experiments.recruitment_recovery.runs import BASE
from experiments.recruitment_stress import streams
from experiments.words import one_token_each
from localist_jax.config import Config, resolve
from localist_jax.data import Prepared, Tokenizer, pack
from localist_jax.data.fields import Fields
from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.recruitment import chronicle
from localist_jax.recruitment.policy import PROMISING
from localist_jax.recruitment.proposals import Concept
from localist_jax.recruitment.record import REACHED_HORIZON, UNPROMISING
from localist_jax.recruitment.recruiter import Recruiter
from localist_jax.recruitment.signs import lost_bits
from localist_jax.report.watch import Watch
from localist_jax.training import journal
from localist_jax.training.loop import train
from localist_jax.training.run import Run

STEPS, HELD_OUT, LOOK_EVERY = 200, 64, 40
BLOCKS, AT_MOST = 3, 6  # in use at the start, and places in all
SHARES = (0.05, 0.2)  # of the words that are replaced, to see whether blocks stay
ANCHOR_LOG_ODDS = 5.0  # nats, of the poisoned concept


def settings_of(seed: int, steps: int = STEPS) -> Config:
    """Return the configuration of every run."""
    return resolve(BASE).replace(
        model={"blocks": BLOCKS, "block_capacity": 4, "generations": 3, "anchor_capacity": 16},
        recruitment={"every": 10, "start": 0.25, "horizon": 20, "candidates": 2, "placebos": 4, "survey": 8,
                     "blocks_at_most": AT_MOST},
        train={"steps": steps, "seed": seed, "log_every": 10, "eval_every": 0, "save_every": 100},
    )  # fmt: skip


def case(name: str, seed: int) -> Case:
    """Return the case of a stream and seed."""
    return Case(f"{name}/seed{seed}", {"stream": name, "config": settings_of(seed).to_dict()}, measured)


def measured(store: Store, case: Case) -> Figures:
    """Return the figures of a run, which is trained or resumed first."""
    name = case.settings["stream"]
    return figures_of(trained(resolve(case.settings["config"]), store.own(case), name), name)


def stream(settings: Config, name: str) -> tuple[Fields, Prepared, np.ndarray]:
    """The world, the stream with held-out rows of the calm one, and the words of these."""
    seed, context = settings.train.seed, settings.data.context
    world = Fields.create(seed, 2)
    words = streams.words_of(name, world, 1 + seed, settings.train.steps, settings.data.batch, context)
    held_out = world.sample(10_000 + seed, HELD_OUT, context, streams.EVEN)[0]
    tokenizer, ids = one_token_each(world.words)
    train_rows, valid_rows = (pack(list(ids[x]), context, Tokenizer.BOS) for x in (words, held_out))
    sizes = {"train": len(words), "valid": HELD_OUT}
    text = {"train": 5 * train_rows.token_count, "valid": 5 * valid_rows.token_count}
    return world, Prepared(name, tokenizer, train_rows, valid_rows, documents=sizes, bytes=text), held_out


def trained(settings: Config, folder: Path, name: str) -> Run:
    """The run, watched; with a poisoned concept where that is the stream."""
    world, prepared, _ = stream(settings, name)
    concepts = []
    if name == "poisoned":
        _, ids = one_token_each(world.words)
        drawn = streams.poison(world, settings.train.seed, settings.model.anchor_capacity)
        concepts = [Concept("poison", {int(ids[word]): ANCHOR_LOG_ODDS for word in drawn})]
    return train(settings, folder, hooks=[Recruiter(concepts), Watch(LOOK_EVERY)], prepared=prepared)


def figures_of(run: Run, name: str) -> dict[str, Any]:
    """Return what was decided, and what it came to."""
    records = chronicle.read(run.workdir)
    seen = [r for r in journal.read(run.workdir / "metrics.jsonl") if r["kind"] == "signs"]
    named = {"ambiguous_routing", "ambiguous_attention", "unstable_assignment", "unstable_recruitment"}
    tried, trials = chronicle.tried(records), chronicle.trials(records)
    return {
        "most_blocks": most_blocks(records),
        "blocks": int(np.asarray(run.state.blocks.active).sum()) - 1,
        "capacity": run.settings.model.block_capacity,
        "trials": len({r["step"] for r in trials}),
        "pilots": len({r["step"] for r in tried if not r["trial"]}),
        "recruited": sum(r["kind"] == "recruited" for r in records),
        "retired": sum(r["kind"] == "retired" for r in records),
        "poison_tried": sum(r["name"] == "poison" for r in tried),
        "poison_recruited": sum(r["name"] == "poison" and r["kind"] == "recruited" for r in tried),
        "decisions": len(tried),
        "explained": sum(map(explained, tried)),
        "signs": [[r["step"], sorted(named & set(r))] for r in seen],
        "looks": [[r["step"], r["doubt_bits"], r["open_bits"] - r["entropy_bits"], r["moved_bits"]] for r in seen],
        "bits_per_token": run.watch((1.0,))["bits_per_token@1"],
        "stability": {str(share): kept_blocks(run, name, share) for share in SHARES},
        "records": records,
    }  # fmt: skip


ROUNDED = 0.01  # bits, to which a record gives its figures


def explained(trial: chronicle.Record) -> bool:
    """Whether the figures of the record say what was decided; what was given up had to promise nothing."""
    if trial["reason"] == REACHED_HORIZON:
        enough = chronicle.beyond_bits(trial) >= trial["threshold_bits"]
        enough &= trial["surprise_bits"] >= trial["surprise_threshold_bits"]
        return enough == (trial["kind"] == "recruited")
    if trial["reason"] == UNPROMISING:
        least = trial["threshold_bits"] - trial["cost_bits"] * bool(trial["name"])
        hopeless = trial["llr_bits"] < least + ROUNDED or trial["surprise_bits"] < PROMISING + ROUNDED
    else:
        hopeless = trial["llr_bits"] < ROUNDED
    return trial["kind"] == "rejected" and hopeless


def most_blocks(records: list[chronicle.Record]) -> int:
    """The largest number of blocks that were in use at a time, block 0 left out."""
    now = most = BLOCKS - 1
    for r in records:
        now += (r["kind"] == "recruited") - (r["kind"] == "retired")
        most = max(most, now)
    return most


def kept_blocks(run: Run, name: str, share: float) -> dict[str, float]:
    """Return how many positions kept their block while other words were replaced, and the bits lost."""
    world, prepared, words = stream(run.settings, name)
    noisy, changed = streams.perturbed(words, share, len(world.words), run.settings.train.seed)
    _, ids = one_token_each(world.words)
    rows = pack(list(ids[noisy]), run.settings.data.context, Tokenizer.BOS)
    alone = ~changed[:, :-1]  # the input at position t is word t − 1
    before, now = (_blocks(run, x)[alone] for x in (prepared.valid, rows))
    return {"kept": float((before == now).mean()), "lost_bits": lost_bits(before, now)}


def _blocks(run: Run, rows) -> np.ndarray:
    """Blocks of every position but the sink, [rows, context − 1]."""
    batch = rows.take(np.arange(HELD_OUT))
    out = jax.jit(forward, static_argnums=0)(
        run.model, run.state.params, batch.tokens, Dial(1.0), run.state.blocks,
        positions=batch.positions, segments=batch.segments,
    )  # fmt: skip
    return np.asarray(out.blocks)[:, 1:]

"""Streams with nothing to find: how often is a block recruited all the same?

A world of one field, and a model of one block that has learned it and goes on learning at the same rate. On every
stream the best division is tried, whether or not it stands out from noise, under the lowest threshold there is, that
of a first trial; the stream is over with the trial.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy import stats

from experiments.cases import Case, Figures, Store
from experiments.recruitment_recovery.runs import generations, settings_of, trained
from experiments.words import one_token_each
from localist_jax.config import resolve
from localist_jax.data import Tokenizer, pack
from localist_jax.data.fields import Fields
from localist_jax.recruitment.evidence import Judgement
from localist_jax.recruitment.phases import Idle
from localist_jax.recruitment.policy import Policy
from localist_jax.recruitment.proposals import Proposal, Survey
from localist_jax.recruitment.record import FILE
from localist_jax.recruitment.recruiter import Recruiter
from localist_jax.training.journal import Journal, read
from localist_jax.training.progress import human_time
from localist_jax.training.run import Run
from localist_jax.training.step import make_train_step

STEPS = 300  # of training before the streams begin


class Eager(Policy):
    """Tries whatever is proposed."""

    def is_promising(self, pilot: Judgement, candidates: Sequence[Proposal]) -> bool:
        """Accept every pilot."""
        return True

    def is_worth_a_trial(self, seen: Survey, proposal: Proposal, placebos: list[np.ndarray]) -> bool:
        """Accept every division."""
        return True


def case(seed: int, streams: int) -> Case:
    """Return the case of so many streams."""
    settings = settings_of("none", 1, seed, STEPS)
    return Case("null", {"streams": streams, "config": settings.to_dict()}, false_recruits, cost=streams / 10)


def false_recruits(store: Store, case: Case) -> Figures:
    """Return how many streams saw a block recruited, and the Clopper-Pearson interval of their rate at 95 %."""
    settings, streams, folder = resolve(case.settings["config"]), case.settings["streams"], store.own(case)
    seed = settings.train.seed
    trained(settings, folder, 1)
    run = Run.open(folder)
    settings = settings.replace(
        recruitment={"every": 1, "start": 0.0},
        model={"generations": generations("recruits", 1)},
        train={"steps": 2 * STEPS},
    )
    run = dataclasses.replace(
        run, settings=settings, model=dataclasses.replace(run.model, config=settings.model)
    )
    step = jax.jit(make_train_step(run.model, settings, run.tokenizer.byte_lengths))
    kept = folder / "streams.jsonl"
    seen = read(kept) if kept.exists() else []
    begun, first, hook = time.monotonic(), len(seen), Recruiter(policy=Eager())
    for number in range(first, streams):
        seen.append(_verdict(hook, run, step, seed, number))
        with kept.open("a", encoding="utf-8") as file:
            file.write(json.dumps(seen[-1]) + "\n")
        left = (time.monotonic() - begun) / (number + 1 - first) * (streams - number - 1)
        if number % 10 == 9:
            said = f"null stream {number + 1}/{streams}  {sum(s['recruited'] for s in seen)} recruited"
            print(f"{said}  {human_time(left)} left", file=sys.stderr, flush=True)
    count = sum(s["recruited"] for s in seen)
    interval = stats.binomtest(count, streams).proportion_ci(0.95, "exact")
    return {
        "null_streams": streams,
        "false_recruits": count,
        "false_rate_interval": [float(interval.low), float(interval.high)],
        "alpha": settings.recruitment.alpha,
        "surprise_bits": [s["surprise_bits"] for s in seen],
        "llr_bits": [s["llr_bits"] for s in seen],
        "beat_every_placebo": sum(s["best"] for s in seen),
    }


def _verdict(hook: Recruiter, run: Run, step: Any, seed: int, number: int) -> dict[str, Any]:
    """One stream: a survey, a trial, and its verdict."""
    r, data = run.settings.recruitment, run.settings.data
    count = r.survey + r.horizon
    world = Fields.create(seed, 1)
    words, _ = world.sample(1000 + number, count * data.batch, data.context, np.ones(1))
    _, ids = one_token_each(world.words)
    rows = pack(list(ids[words]), data.context, Tokenizer.BOS)
    state, was_open = run.state, False
    with tempfile.TemporaryDirectory() as place:
        stream = dataclasses.replace(run, workdir=Path(place))
        with Journal(Path(place)) as journal:
            hook.start(stream, journal, STEPS)
            for at in range(count + 1):
                index = np.arange(at * data.batch, (at + 1) * data.batch) % len(rows)
                batch = rows.take(index)
                state = hook(STEPS + at + 1, state, batch)
                is_open = not isinstance(hook.phase, Idle)
                if was_open and not is_open:
                    break
                was_open = is_open
                state, _ = step(state, batch)
        lines = [json.loads(line) for line in (Path(place) / FILE).read_text().splitlines()]
    tried = next(line for line in lines if line["kind"] in ("recruited", "rejected"))
    return {
        "recruited": tried["kind"] == "recruited",
        "surprise_bits": tried["surprise_bits"],
        "llr_bits": tried["llr_bits"],
        "best": tried["llr_bits"] > max(tried["placebo_bits"]),
    }

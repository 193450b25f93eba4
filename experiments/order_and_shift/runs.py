"""The streams of the study, and one run of each: the ensemble that recruits, and what it is compared with."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.cases import Case, Figures, Store
from experiments.clinic import measure
from experiments.clinic.setting import Clinic
from experiments.order_and_shift import base
from experiments.order_and_shift.base import settings
from experiments.order_and_shift.texts import BOOKS, DOMAINS, MIXED, SESSION
from localist_jax import config
from localist_jax.hierarchy.recruiter import MemberRecruiter
from localist_jax.hierarchy.signature import Division
from localist_jax.locality import Dial
from localist_jax.training.state import TrainState

FIRST, EACH = 8, 6  # sessions of the first domain, and of the time when each other one is new
AFTER = 32  # sessions of all domains, when all have come
WIDTH = 32
ONE, OTHER = "economics", "dc_code"
STREAMS = {
    "order": "the seven domains in a random order",
    "health": "population_health, nutrition, pharmacology, in this order",
    "abrupt": "economics, then statute law alone, then both at random",
    "gradual": "the share of statute law rises from none to all",
    "recurring": "economics and statute law by turns, six sessions each",
    "mixed": "every piece from one of the seven domains at random: no sessions",
    "one book": "pieces of economics at random: no sessions, and no domains but those within a book",
    "random split": "as recurring, but every division that is tried is drawn at random",
}
NULL = "random split"
CONDITIONS = ("recruits", "one", "told")  # an ensemble; its base alone; an LLM for each domain, by its name


def conditions(name: str) -> tuple[str, ...]:
    """Return the conditions that a stream is run under."""
    return CONDITIONS[:1] if name in ("mixed", "one book", NULL) else CONDITIONS


def sessions(name: str, seed: int) -> list[str]:
    """The domain of each session of a stream."""
    rng = np.random.default_rng([seed, 12])
    if name in ("order", "health"):
        order = [str(d) for d in rng.permutation(DOMAINS)] if name == "order" else list(BOOKS[:3])
        found = [order[0]] * FIRST
        for i in range(1, len(order)):  # the new one in half of the sessions, the others share the rest
            shares = [0.5 / i] * i + [0.5]
            found += [order[i], *(str(d) for d in rng.choice(order[: i + 1], EACH - 1, p=shares))]
        return found + [str(d) for d in rng.choice(order, AFTER * len(order) // len(DOMAINS))]
    if name == "abrupt":
        return [ONE] * FIRST + [OTHER] * EACH + [str(d) for d in rng.choice([ONE, OTHER], 5 * EACH)]
    if name == "gradual":
        share = np.linspace(0, 1, 6 * EACH)
        return [ONE] * FIRST + [
            OTHER if x < s else ONE for x, s in zip(rng.random(len(share)), share, strict=True)
        ]
    if name in ("recurring", NULL):
        return [ONE] * FIRST + ([OTHER] * 6 + [ONE] * 6) * 3
    return [MIXED if name == "mixed" else ONE] * 32


@dataclasses.dataclass(frozen=True)
class AtRandom(Division):
    """A division by the documents' check sums, which know nothing of what they are about."""

    def takes(self, documents: np.ndarray) -> np.ndarray:
        """Which documents go to the newcomer: always the same ones, as many as `share` says."""
        sums = [zlib.crc32(self.direction.tobytes() + row.tobytes()) for row in documents.astype(np.int32)]
        return np.asarray(sums) < self.share * 2**32


class Blind(MemberRecruiter):
    """Tries divisions at random, as if each promised much."""

    def _division(self, arrivals: bool) -> tuple[int, Division] | None:
        if arrivals:
            return None
        parent = max(self.ensemble.active, key=lambda at: self.ensemble.signatures[at].sum())
        share = float(self._rng.uniform(0.2, 0.5))
        salt = np.asarray(self._rng.random(self.ensemble.signatures.shape[1]))
        return parent, AtRandom("hard", salt, 0.0, share, excess_bits=1e6, explained=0.0, ways=1)


def case_of(name: str, condition: str, seed: int, first: Case) -> Case:
    """Return the case of a stream under a condition; `first` trains the base."""
    about = {
        "stream": name, "condition": condition, "sessions": sessions(name, seed),
        "config": settings(seed, WIDTH).to_dict(),
    }  # fmt: skip
    return Case(f"{name.replace(' ', '-')}/{condition}/seed{seed}", about, measured, after=(first,))


def measured(store: Store, asked: Case) -> Figures:
    """Return the figures of one run."""
    name, condition, stream = (asked.settings[key] for key in ("stream", "condition", "sessions"))
    chosen, start = config.resolve(asked.settings["config"]), base.read(store.own(asked.after[0]))
    case = base.library().case(stream, chosen.train.seed)
    if condition == "told":
        result = _told(case, chosen, start)
    else:
        recruiter, result = measure.streamed(
            case, chosen, store.own(asked), condition == "recruits", [len(case.notes)], start,
            Blind if name == NULL else MemberRecruiter,
        )  # fmt: skip
        result["served"] = {d: row["members"] for d, row in measure.held_out(recruiter, case).items()}
    return result | {"sessions": stream}


def _told(case: Clinic, chosen: config.Config, start: TrainState) -> dict[str, Any]:
    """An LLM for each domain, which alone codes its pieces and learns from them; it begins as the first one is then."""
    engine = measure.engine_of(case.tokenizer, chosen.replace(train={"seed": 0}))
    first, dial = case.notes[0][0].domain, Dial(1.0)
    states = {first: start}
    curve: list[list[Any]] = []
    for number, notes in enumerate(case.notes, 1):
        domain, batch = notes[0].domain, case.batch(notes)
        state = states.get(domain, states[first])
        bits, tokens = float(engine.losses(state, batch, dial).sum()), int(batch.scored.sum())
        curve.append([number, domain, bits / tokens, bits / tokens, 0.0, tokens, domain])
        states[domain] = engine.train(state, batch)
    return {"curve": curve, "j_bits": sum(row[2] * row[5] for row in curve)}


def owners(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(domain, LLM that was given most of it) of every session."""
    given = [row[6] for row in result["curve"]]
    parts = [given[i : i + SESSION] for i in range(0, len(given), SESSION)]
    return [
        (d, max(sorted(set(part)), key=part.count)) for d, part in zip(result["sessions"], parts, strict=True)
    ]


def returns(result: Mapping[str, Any]) -> tuple[int, int]:
    """How often a domain came back after another, once there were two LLMs; and how often to the LLM it had last."""
    births = [r["step"] for r in result["decisions"] if r["kind"] == "recruited"]
    begin = -(-births[0] // SESSION) if births else len(result["sessions"])
    last: dict[str, str] = {}
    before, back, same = "", 0, 0
    for number, (domain, owner) in enumerate(owners(result)):
        if number >= begin and domain in last and domain != before:
            back, same = back + 1, same + (owner == last[domain])
        if number >= begin:
            last[domain] = owner
        before = domain
    return back, same


def late_births(result: Mapping[str, Any]) -> int:
    """LLMs recruited after the second domain of a recurring stream had begun to come for the third time."""
    third = SESSION * (FIRST + 24)
    return sum(r["kind"] == "recruited" and r["step"] > third for r in result["decisions"])


def seen(result: Mapping[str, Any], batch: int) -> Sequence[str]:
    """Domains that had come before a batch."""
    return sorted(set(result["sessions"][: (batch - 1) // SESSION]))

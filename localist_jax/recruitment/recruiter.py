"""Recruitment in a training run: survey, trial, verdict, growth; every decision is written down with its bits.

Between trials the recruiter keeps the last few batches. When a trial is due it surveys them, and chooses the block that
it pays most to divide, in the most promising ways. As many batches later a *pilot* of the trial says whether to go on:
a candidate must have reached its threshold, and stand out from its placebos in that and in what a survey of the
pilot's batches says the divisions could save. The trial then begins anew, with fresh units and fresh placebos: nothing
that the pilot chose by counts in it, so pilots spend nothing of α. While a trial is open each batch is scored
by incumbent, candidates and placebos before the state learns from it. One that has gathered nothing is given up before
half of its horizon. At the horizon the best candidate that has the evidence is recruited; a block without which the
model codes no worse than by the bits of its description is retired.

Of many processes each runs a recruiter, and what one of them finds out by itself is agreed upon: process 0 decides.

`recruitment.jsonl` has a line for every candidate, for every pilot that promised something, for every survey that
proposed none, for every birth and for every block that left.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import Blocks, lineage
from localist_jax.parallel import hosts, sharding
from localist_jax.recruitment import growth, trial
from localist_jax.recruitment.cost import parameter_bits, structure_bits
from localist_jax.recruitment.evidence import Judgement, judged, standing, surprise_bits
from localist_jax.recruitment.growth import Birth
from localist_jax.recruitment.programs import programs
from localist_jax.recruitment.proposals import (
    KINDS,
    WAYS,
    Concept,
    Proposal,
    Survey,
    can_be_divided,
    estimates,
    filled,
    of_one_parent,
    placebos,
    proposals,
    survey,
    worth_a_trial,
)
from localist_jax.recruitment.record import BEHIND, ENDED, FILE, FULL, QUIET, UNPROMISING, of_candidate
from localist_jax.training.journal import Journal, Records
from localist_jax.training.loop import Hook
from localist_jax.training.run import Run, boxed_state
from localist_jax.training.state import TrainState
from localist_jax.types import PyTree

PROMISING = 5.0  # bits of surprise in a pilot, below which there is no trial


@dataclasses.dataclass(frozen=True)
class Plan:
    """A trial to be, as one process worked it out for all.

    Attributes:
      gain_bits: estimate for the best division, worth a trial or not.
      candidates: that are tried; none: no trial.
      placebos: directions, for each place of the trial and each of its placebos.
      leaving: a block that is tried without, or 0.
    """

    gain_bits: float
    candidates: list[Proposal]
    placebos: list[list[np.ndarray]]
    leaving: int


def hooks(settings: config.Config, concepts: Sequence[Concept] = ()) -> list[Hook]:
    """What `training.loop.train` needs to recruit: a recruiter, or nothing where the configuration has it off."""
    return [Recruiter(concepts)] if settings.recruitment.every else []


class Recruiter(Hook):
    """The hook; see the module.

    Args:
      concepts: that want a block of their own, beside what the data proposes.
    """

    def __init__(self, concepts: Sequence[Concept] = ()):
        self._concepts = concepts

    def start(self, run: Run, journal: Journal, step: int) -> None:
        """Compiles nothing yet; opens the record."""
        r = run.settings.recruitment
        self._run, self._journal = run, journal
        self._records = Records(run.workdir / FILE, step - 1)  # what is decided after a step has its number
        self._trial = hosts.spread(trial.closed(run.settings), hosts.everywhere(run.mesh))
        self._open: list[Proposal] = []
        self._recent: deque[Batch] = deque()
        self._is_open, self._is_pilot, self._horizon = False, False, 0
        self._pilot = min(r.survey, r.horizon)  # its batches
        self._unpromising = (0, 0)  # parent and kind of the division whose pilot failed last
        self._next = round(r.start * run.settings.train.steps) + 1
        if not step:
            blocks = int(np.asarray(run.state.blocks.active).sum())
            journal.scalars(0, "recruitment", {"blocks": blocks, "births": 0})
        self._compile()

    def __call__(self, step: int, state: TrainState, batch: Batch) -> TrainState:
        """Advances the trial by this batch, or opens one if it is time."""
        r, steps = self._run.settings.recruitment, self._run.settings.train.steps
        since = self._since(step)
        if self._is_open and self._is_pilot and since == self._pilot:
            state = self._go_on(step, state)
        elif self._is_open and step > int(self._horizon):
            state = self._decide(step, state, ENDED)
        elif self._is_open and self._is_time_to_look(since) and self._is_behind():
            state = self._decide(step, state, BEHIND)
        last = r.stop * steps - self._pilot - r.horizon
        due = self._next <= step <= last and len(self._recent) == r.survey
        if not self._is_open and due:
            state = self._begin(step, state)
        if self._is_open:
            self._trial = self._programs.trial_step(state, self._trial, batch)
        self._recent.append(batch)
        if len(self._recent) > r.survey:
            self._recent.popleft()
        return state

    def _since(self, step: int) -> int:
        """Batches of the open trial so far."""
        return step - 1 + self._run.settings.recruitment.horizon - self._horizon

    def _is_time_to_look(self, since: int) -> bool:
        """After as many batches of a trial as a survey has, and again, until half of the horizon."""
        half = self._run.settings.recruitment.horizon // 2
        return not self._is_pilot and 0 < since <= half and since % min(self._pilot, max(1, half)) == 0

    # A trial's beginning.

    def _begin(self, step: int, state: TrainState) -> TrainState:
        r = self._run.settings.recruitment
        state, place = self._room(step, state)
        self._next = step + r.every
        if not place:
            return state
        found = survey(self._programs.reader, state.params, state.blocks, self._recent)
        plan = hosts.agreed(lambda: self._plan(found, state.blocks, self._rng(step)))
        self._journal.scalars(step, "survey", {"estimated_gain_bits": plan.gain_bits})
        if not plan.candidates:
            self._write(step, "quiet", reason=QUIET, estimated_gain_bits=round(plan.gain_bits, 1))
            return state
        self._open = plan.candidates
        self._contest(step, state, place, plan.placebos, plan.leaving, is_pilot=True)
        return state

    def _contest(
        self,
        step: int,
        state: TrainState,
        place: int,
        directions: list[list[np.ndarray]],
        leaving: int,
        is_pilot: bool,
    ) -> None:
        """Opens a pilot, or a trial, of the candidates that are at hand."""
        r = self._run.settings.recruitment
        tried, active = int(self._trial.number), int(np.asarray(state.blocks.active).sum())
        costs = []
        for nth, proposal in enumerate(self._open):
            concept = [self._run.tokenizer.vocab_size] * len(proposal.anchors)
            structure = structure_bits(tried + nth + 1, active, WAYS, *concept)
            costs.append(structure + self._parameter_bits(step))
        in_place = filled(self._open, r.candidates)
        number, parent = int(self._trial.births) + 1, in_place[0].parent
        fresh = self._programs.fresh(state, jnp.asarray(parent, jnp.int32), jnp.asarray(number, jnp.int32))
        births = [self._birth(fresh, place, p, p.direction) for p in in_place]
        anchors = [self._anchors(p.anchors) for p in in_place]
        for proposal, random in zip(in_place, directions, strict=True):
            for direction in random:
                births.append(self._birth(fresh, place, proposal, direction))
                anchors.append(self._anchors({}))
        settings = self._run.settings
        opened = trial.opened(self._trial, state, settings, births, anchors, costs, leaving, is_pilot)
        self._trial = hosts.spread(opened, hosts.everywhere(self._run.mesh))
        self._horizon, self._is_open, self._is_pilot = step - 1 + r.horizon, True, is_pilot

    def _go_on(self, step: int, state: TrainState) -> TrainState:
        """Ends the pilot: the trial itself begins, or nothing does."""
        r, births = self._run.settings.recruitment, self._trial.contenders.births
        batches = list(self._recent)[-self._pilot :]
        found = survey(self._programs.reader, state.params, state.blocks, batches)
        tried = np.asarray(births.direction)[r.candidates :].reshape(r.candidates, r.placebos, -1)
        in_place, rng = filled(self._open, r.candidates), self._rng(step)

        def looked() -> tuple[np.ndarray, list[list[np.ndarray]]]:
            if not can_be_divided(found, in_place[0].parent):
                return np.zeros((r.candidates, 1 + r.placebos), np.float32), []
            said = [estimates(found, p, list(d)) for p, d in zip(in_place, tried, strict=True)]
            return np.asarray(said, np.float32), [placebos(found, p, rng, r.placebos) for p in in_place]

        estimate_bits, fresh = hosts.agreed(looked)
        evidence = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, self._trial.evidence))
        surprise = surprise_bits(*standing(evidence, jnp.asarray(estimate_bits))).tolist()
        said = dataclasses.replace(
            self._judged(), surprise_bits=surprise, surprise_threshold_bits=PROMISING, chosen=-1
        )
        if not fresh or not hosts.agreed(lambda: self._is_promising(said)):
            self._unpromising = self._open[0].parent, KINDS.index(self._open[0].kind)
            return self._decide(step, state, UNPROMISING, said)
        self._unpromising = (0, 0)
        curve_bits: Any = np.asarray(self._trial.curve_bits[: self._pilot])
        for at, proposal in enumerate(self._open):
            self._write(step, "promising", **of_candidate(proposal, said, at, curve_bits))
        self._contest(step, state, int(births.child[0]), fresh, int(self._trial.leaving), is_pilot=False)
        return state

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self._run.settings.train.seed, step])

    def _is_promising(self, pilot: Judgement) -> bool:
        """Whether a candidate surprises, and has reached its threshold; without ℓ for one that somebody named."""
        costs = [cost * bool(p.name) for cost, p in zip(pilot.cost_bits, self._open, strict=False)]
        figures = zip(pilot.llr_bits, pilot.threshold_bits, costs, pilot.surprise_bits, strict=False)
        return any(llr >= least - cost and bits >= PROMISING for llr, least, cost, bits in figures)

    def _plan(self, found: Survey, blocks: Blocks, rng: np.random.Generator) -> Plan:
        """What is worth a trial in what was surveyed."""
        r = self._run.settings.recruitment
        depth = np.asarray(lineage.depth(jnp.asarray(np.asarray(blocks.parent))))
        young = depth >= self._run.settings.model.generations - 1
        ranked = self._ranked(found, np.asarray(blocks.active) & ~young)
        best = max((p.gain_bits for p in ranked), default=0.0)
        random = {id(p): placebos(found, p, rng, r.placebos) for p in ranked}
        ranked = [p for p in ranked if self._worth_a_trial(found, p, random[id(p)])]
        directions = [random[id(p)] for p in filled(ranked, r.candidates)]
        return Plan(best, ranked, directions, self._least_used(blocks, found.block))

    def _ranked(self, found: Survey, active: np.ndarray) -> list[Proposal]:
        """The candidates of the next trial, all for one parent; what failed last gives way to others once."""
        made = proposals(found, active.tolist(), self._concepts)
        others = [p for p in made if (p.parent, KINDS.index(p.kind)) != self._unpromising]
        return of_one_parent(others or made)[: self._run.settings.recruitment.candidates]

    def _worth_a_trial(self, found: Survey, proposal: Proposal, directions: list[np.ndarray]) -> bool:
        return worth_a_trial(found, proposal, directions)

    def _birth(self, fresh: Birth, place: int, proposal: Proposal, direction: np.ndarray) -> Birth:
        whole = (place, proposal.parent, int(self._trial.births) + 1)
        child, parent, number = (jnp.asarray(x, jnp.int32) for x in whole)
        return dataclasses.replace(
            fresh,
            child=child,
            parent=parent,
            number=number,
            share=jnp.asarray(proposal.share, jnp.float32),
            direction=jnp.asarray(direction, jnp.float32),
        )

    def _anchors(self, anchors: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
        room = self._run.settings.model.anchor_capacity
        tokens, log_odds = np.full(room, -1, np.int32), np.zeros(room, np.float32)
        kept = list(anchors.items())[:room]
        tokens[: len(kept)], log_odds[: len(kept)] = [t for t, _ in kept], [x for _, x in kept]
        return tokens, log_odds

    def _parameter_bits(self, step: int) -> float:
        r, data = self._run.settings.recruitment, self._run.settings.data
        tokens = step * data.batch * data.context
        return parameter_bits(
            r.cost, growth.parameters_of_a_block(self._programs.boxed), tokens, r.bits_per_parameter
        )

    def _least_used(self, blocks: Blocks, seen: np.ndarray) -> int:
        """The block without children that has the fewest positions; 0 if the model needs all that it has."""
        free = _childless(blocks)
        used = np.bincount(seen, minlength=blocks.active.size)
        return min(free, key=lambda b: used[b]) if free and np.asarray(blocks.active)[1:].sum() > 1 else 0

    def _room(self, step: int, state: TrainState) -> tuple[TrainState, int]:
        """A place for one more block, 0 if there is none; the capacity doubles if all are taken."""
        r = self._run.settings.recruitment
        free = np.flatnonzero(~np.asarray(state.blocks.active))
        free = free[free > 0]
        if free.size:
            return state, int(free[0])
        capacity = state.blocks.active.size
        larger = min(2 * capacity, r.blocks_at_most)
        if larger <= capacity:
            self._write(step, "full", reason=FULL, capacity=capacity)
            return state, 0
        self._run.state = state
        settings = self._run.settings.replace(model={"block_capacity": larger})
        model = dataclasses.replace(self._run.model, config=settings.model)
        boxed, generations = boxed_state(model, settings), settings.model.generations
        state, report = growth.grow(state, [], boxed, self._run.mesh, generations)
        self._run.state = state
        self._run.fit()
        self._compile()
        self._write(step, "enlarged", capacity=larger, seconds=round(report.seconds, 3))
        return state, capacity

    # A trial's end.

    def _is_behind(self) -> bool:
        """Whether no candidate has gathered anything."""
        llr_bits = np.asarray(self._trial.evidence.llr_bits)
        return hosts.agreed(lambda: not bool((llr_bits > 0).any()))

    def _judged(self) -> Judgement:
        alpha, trial = self._run.settings.recruitment.alpha, self._trial
        number_bits = bits.integer_code_length(max(1, int(trial.number)))
        evidence = jax.tree.map(np.asarray, trial.evidence)
        return hosts.agreed(lambda: judged(evidence, self._horizon, alpha, number_bits, len(self._open)))

    def _decide(self, step: int, state: TrainState, reason: str, said: Judgement | None = None) -> TrainState:
        """Ends what is open, and writes it down; `said` of a pilot."""
        made, number = self._trial, int(self._trial.number) if said is None else 0
        curve_bits: Any = np.asarray(made.curve_bits[: self._since(step)])
        said = said or self._judged()
        for at, proposal in enumerate(self._open):
            self._write(
                step, "recruited" if at == said.chosen else "rejected", reason=reason, trial=number,
                tokens=int(made.tokens), **of_candidate(proposal, said, at, curve_bits),
                **self._newcomer(at == said.chosen, at),
            )  # fmt: skip
        if said.chosen >= 0:
            state = self._recruit(step, state, said.chosen)
        if reason == ENDED:
            state = self._let_go(step, state)
        self._is_open, self._next = False, step + self._run.settings.recruitment.every
        best = max(range(len(self._open)), key=lambda at: said.llr_bits[at])
        placebo_bits = curve_bits[:, best, 1:].max(-1)
        needed_bits = [max(0.0, x) + said.threshold_bits[best] for x in placebo_bits]
        self._journal.curves(
            step - 1 - len(curve_bits), "evidence",
            {"candidate": curve_bits[:, best, 0], "best_placebo": placebo_bits, "needed": needed_bits},
        )  # fmt: skip
        self._journal.scalars(
            step, "recruitment",
            {
                "llr_bits": said.llr_bits[best], "surprise_bits": said.surprise_bits[best],
                "blocks": int(np.asarray(state.blocks.active).sum()), "births": int(self._trial.births),
                "best_placebo_bits": max(said.placebo_bits[best]), "threshold_bits": said.threshold_bits[best],
            },
        )  # fmt: skip
        return state

    def _newcomer(self, chosen: bool, at: int) -> dict[str, int]:
        births = self._trial.contenders.births
        child, number = np.asarray(births.child), np.asarray(births.number)
        return {"block": int(child[at]), "birth": int(number[at])} if chosen else {}

    def _recruit(self, step: int, state: TrainState, at: int) -> TrainState:
        contenders = self._trial.contenders
        birth = jax.tree.map(lambda x: x[at], contenders.births)
        generations = self._run.settings.model.generations
        state, report = growth.grow(state, [birth], self._programs.boxed, self._run.mesh, generations)
        blocks = dataclasses.replace(
            state.blocks,
            anchor_tokens=state.blocks.anchor_tokens.at[birth.child].set(contenders.anchor_tokens[at]),
            anchor_log_odds=state.blocks.anchor_log_odds.at[birth.child].set(contenders.anchor_log_odds[at]),
        )
        self._trial = dataclasses.replace(self._trial, births=self._trial.births + 1)
        self._write(step, "born", **{k: v for k, v in dataclasses.asdict(report).items() if k != "births"},
                    block=int(birth.child), parent=int(birth.parent))  # fmt: skip
        return self._settled(dataclasses.replace(state, blocks=blocks))

    def _let_go(self, step: int, state: TrainState) -> TrainState:
        """Retires the block that was tried without, if all that it saved is less than the bits that describe it."""
        leaving, lost = int(self._trial.leaving), -float(self._trial.leaving_llr_bits)
        if not leaving or leaving not in _childless(state.blocks):
            return state
        born, active, parent = (
            np.asarray(x) for x in (state.blocks.born, state.blocks.active, state.blocks.parent)
        )
        structure = structure_bits(max(1, int(born[leaving])), int(active.sum()), WAYS)
        worth = structure + self._parameter_bits(step)
        if hosts.agreed(lambda: lost > worth):
            return state
        self._write(
            step, "retired", block=leaving, parent=int(parent[leaving]),
            llr_bits=round(-lost, 2), description_bits=round(worth, 2), tokens=int(self._trial.tokens),
        )  # fmt: skip
        return self._settled(growth.retire(state, leaving))

    def _settled(self, state: TrainState) -> TrainState:
        """The state where its axes' names put it, whatever computing with it has left it split by."""
        return jax.device_put(state, sharding.state_shardings(self._programs.boxed, self._run.mesh))

    # What a checkpoint keeps.

    def memory(self) -> PyTree:
        """The trial, the batches of the next survey, and when it is due."""
        wanted = self._run.settings.recruitment.survey
        rows = [*self._recent, *[self._no_batch()] * (wanted - len(self._recent))]
        about = [self._next, self._horizon, self._is_open, self._is_pilot, len(self._recent), len(self._open)]
        return {
            "trial": self._trial,
            "recent": self._programs.stack(*rows),
            "about": np.asarray([*about, *self._unpromising], np.int32),
            "open": self._proposal_table(),
        }

    def remember(self, memory: PyTree) -> None:
        """Goes on where it was, in the middle of a trial too."""
        self._trial = memory["trial"]
        self._next, self._horizon, is_open, is_pilot, recent, count, *last = map(int, memory["about"])
        self._is_open, self._is_pilot, self._unpromising = bool(is_open), bool(is_pilot), (last[0], last[1])
        where = sharding.batch_sharding(self._run.mesh)
        for at in range(recent):
            batch = jax.tree.map(lambda x, at=at: x[at], memory["recent"])
            self._recent.append(jax.device_put(batch, where))
        births = jax.tree.map(np.asarray, self._trial.contenders.births)
        for kind, gain, share, positions, concept in memory["open"][:count]:
            named = self._concepts[int(concept)] if concept >= 0 else Concept("", {})
            at = len(self._open)
            self._open.append(Proposal(
                KINDS[int(kind)], int(births.parent[at]), births.direction[at], float(share),
                float(gain), int(positions), named.name, named.anchors,
            ))  # fmt: skip

    def _proposal_table(self) -> np.ndarray:
        names = [c.name for c in self._concepts]
        table = np.zeros((self._run.settings.recruitment.candidates, 5), np.float32)
        for at, p in enumerate(self._open):
            concept = names.index(p.name) if p.name else -1
            table[at] = KINDS.index(p.kind), p.gain_bits, p.share, p.positions, concept
        return table

    def _no_batch(self) -> Batch:
        data = self._run.settings.data
        return Batch(*(np.zeros((data.batch, data.context), np.int32) for _ in dataclasses.fields(Batch)))

    def _compile(self) -> None:
        self._programs = programs(self._run.model, self._run.settings, self._run.mesh)

    def _write(self, step: int, kind: str, **what: Any) -> None:
        self._records.write({"step": step - 1, "kind": kind, **what})


def _childless(blocks: Blocks) -> list[int]:
    """Blocks in use that have no children, block 0 left out."""
    active, parent = np.asarray(blocks.active), np.asarray(blocks.parent)
    places = np.arange(active.size)
    mothers = set(parent[active & (parent != places)].tolist())
    return [int(b) for b in places[1:] if active[b] and b not in mothers]

"""The hook that recruits blocks during training: survey, pilot, trial, decision; each decision is recorded in bits.

The recruiter has a phase (`phases.Idle`, `Pilot` or `Trial`) and a policy (`policy.Policy`), which says what to propose
and when to give up; pass another one as `Recruiter(policy=…)` to change either without overriding any method.

While it is idle it keeps the last few batches. When a trial is due it surveys them, and chooses the block that pays
most to divide, and the most promising ways to divide it. A *pilot* over as many batches then says whether to go on:
a candidate must have reached its threshold, and stand out from its placebos in evidence and in what a survey of the
pilot's batches says the divisions could save. The trial starts again with fresh units and fresh placebos: nothing that
the pilot was selected by counts in it, so pilots spend nothing of α. During a trial each batch is scored by incumbent,
candidates and placebos before the state learns from it. A trial that has gathered nothing is given up before half of
its horizon. At the horizon the best candidate with enough evidence is recruited, and a block without which the model
codes no worse than by the bits of its description is retired.

With several processes each has a recruiter; process 0 decides, and the others follow.

`recruitment.jsonl` has one line for every candidate, every promising pilot, every survey that proposed nothing, every
birth and every retired block.
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
from localist_jax.recruitment import growth, phases, trial
from localist_jax.recruitment.cost import parameter_bits, structure_bits
from localist_jax.recruitment.evidence import Judgement, judged, standing, surprise_bits
from localist_jax.recruitment.growth import Birth
from localist_jax.recruitment.phases import Idle, Phase, Pilot, Trial, TrialPlan
from localist_jax.recruitment.policy import PROMISING, Policy, childless
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
    survey,
)
from localist_jax.recruitment.record import (
    FILE,
    FULL,
    GATHERED_NOTHING,
    QUIET,
    REACHED_HORIZON,
    UNPROMISING,
    candidate_record,
)
from localist_jax.training.journal import Journal, Records
from localist_jax.training.loop import Hook
from localist_jax.training.run import Run, boxed_state
from localist_jax.training.state import TrainState
from localist_jax.types import PyTree


def hooks(settings: config.Config, concepts: Sequence[Concept] = ()) -> list[Hook]:
    """Return a recruiter for `training.loop.train`, or no hook if the configuration has recruitment off."""
    return [Recruiter(concepts)] if settings.recruitment.every else []


class Recruiter(Hook):
    """The hook that divides blocks, and retires them.

    Args:
      concepts: concepts to propose blocks for, beside what the data proposes.
      policy: what to propose and when to give up; default: the policy of `localist train`.
    """

    def __init__(self, concepts: Sequence[Concept] = (), policy: Policy | None = None):
        self._concepts, self._policy = concepts, policy or Policy()

    @property
    def phase(self) -> Phase:
        """The current phase."""
        return self._phase

    def start(self, run: Run, journal: Journal, step: int) -> None:
        """Open the record, and take up an idle phase."""
        r = run.settings.recruitment
        self._run, self._journal = run, journal
        self._records = Records(run.workdir / FILE, step - 1)  # what is decided after a step has its number
        self._trial = hosts.spread(trial.closed(run.settings), hosts.everywhere(run.mesh))
        self._recent: deque[Batch] = deque()
        self._pilot_batches = min(r.survey, r.horizon)
        self._phase: Phase = Idle(due=round(r.start * run.settings.train.steps) + 1)
        if not step:
            blocks = int(np.asarray(run.state.blocks.active).sum())
            journal.scalars(0, "recruitment", {"blocks": blocks, "births": 0})
        self._compile()

    def __call__(self, step: int, state: TrainState, batch: Batch) -> TrainState:
        """Advance the trial by this batch, or open one if it is due."""
        r, steps = self._run.settings.recruitment, self._run.settings.train.steps
        match self._phase:
            case Pilot() if self._batches_so_far(step) == self._pilot_batches:
                state = self._end_pilot(step, state)
            case Trial(_, horizon) if step > horizon:
                state = self._decide(step, state, REACHED_HORIZON)
            case Trial() if self._is_time_to_look(step) and self._is_hopeless():
                state = self._decide(step, state, GATHERED_NOTHING)
        last = r.stop * steps - self._pilot_batches - r.horizon
        if (
            isinstance(self._phase, Idle)
            and self._phase.due <= step <= last
            and len(self._recent) == r.survey
        ):
            state = self._begin(step, state, self._phase)
        if not isinstance(self._phase, Idle):
            self._trial = self._programs.trial_step(state, self._trial, batch)
        self._recent.append(batch)
        if len(self._recent) > r.survey:
            self._recent.popleft()
        return state

    def _contest_phase(self) -> Pilot | Trial:
        """Return the phase, which the caller knows not to be idle."""
        assert not isinstance(self._phase, Idle)
        return self._phase

    def _batches_so_far(self, step: int) -> int:
        """Return the number of batches that the open pilot or trial has seen."""
        return step - 1 + self._run.settings.recruitment.horizon - self._contest_phase().horizon

    def _is_time_to_look(self, step: int) -> bool:
        """Return true once per pilot's length of batches, until half of the horizon."""
        so_far, half = self._batches_so_far(step), self._run.settings.recruitment.horizon // 2
        return 0 < so_far <= half and so_far % min(self._pilot_batches, max(1, half)) == 0

    # A trial's beginning.

    def _begin(self, step: int, state: TrainState, idle: Idle) -> TrainState:
        """Survey the last batches, and open a pilot if anything stands out."""
        state, place = self._room(step, state)
        self._phase = dataclasses.replace(idle, due=step + self._run.settings.recruitment.every)
        if not place:
            return state
        seen = survey(self._programs.reader, state.params, state.blocks, self._recent)
        plan = hosts.agreed(lambda: self._plan(seen, state.blocks, self._rng(step), idle.failed))
        self._journal.scalars(step, "survey", {"estimated_gain_bits": plan.gain_bits})
        if not plan.candidates:
            self._write(step, "quiet", reason=QUIET, estimated_gain_bits=round(plan.gain_bits, 1))
            return state
        self._phase = Pilot(plan.candidates, self._last_step(step))
        self._contest(step, state, place, plan.placebos, plan.leaving)
        return state

    def _last_step(self, first: int) -> int:
        return first - 1 + self._run.settings.recruitment.horizon

    def _contest(
        self,
        step: int,
        state: TrainState,
        place: int,
        directions: list[list[np.ndarray]],
        leaving: int,
    ) -> None:
        """Set up the state of the pilot or trial that the phase names."""
        r, phase = self._run.settings.recruitment, self._contest_phase()
        tried, active = int(self._trial.number), int(np.asarray(state.blocks.active).sum())
        costs = []
        for nth, proposal in enumerate(phase.candidates):
            concept = [self._run.tokenizer.vocab_size] * len(proposal.anchors)
            structure = structure_bits(tried + nth + 1, active, WAYS, *concept)
            costs.append(structure + self._parameter_bits(step))
        in_place = filled(phase.candidates, r.candidates)
        number, parent = int(self._trial.births) + 1, in_place[0].parent
        fresh = self._programs.fresh(state, jnp.asarray(parent, jnp.int32), jnp.asarray(number, jnp.int32))
        births = [self._birth(fresh, place, p, p.direction) for p in in_place]
        anchors = [self._anchors(p.anchors) for p in in_place]
        for proposal, random in zip(in_place, directions, strict=True):
            for direction in random:
                births.append(self._birth(fresh, place, proposal, direction))
                anchors.append(self._anchors({}))
        settings = self._run.settings
        is_pilot = isinstance(phase, Pilot)
        opened = trial.opened(self._trial, state, settings, births, anchors, costs, leaving, is_pilot)
        self._trial = hosts.spread(opened, hosts.everywhere(self._run.mesh))

    def _end_pilot(self, step: int, state: TrainState) -> TrainState:
        """End the pilot, and begin the trial if the pilot was promising."""
        candidates = self._contest_phase().candidates
        r, births = self._run.settings.recruitment, self._trial.contenders.births
        batches = list(self._recent)[-self._pilot_batches :]
        seen = survey(self._programs.reader, state.params, state.blocks, batches)
        tried = np.asarray(births.direction)[r.candidates :].reshape(r.candidates, r.placebos, -1)
        in_place, rng = filled(candidates, r.candidates), self._rng(step)

        def estimated() -> tuple[np.ndarray, list[list[np.ndarray]]]:
            if not can_be_divided(seen, in_place[0].parent):
                return np.zeros((r.candidates, 1 + r.placebos), np.float32), []
            gains = [estimates(seen, p, list(d)) for p, d in zip(in_place, tried, strict=True)]
            return np.asarray(gains, np.float32), [placebos(seen, p, rng, r.placebos) for p in in_place]

        estimate_bits, fresh = hosts.agreed(estimated)
        evidence = jax.tree.map(jnp.asarray, jax.tree.map(np.asarray, self._trial.evidence))
        surprise = surprise_bits(*standing(evidence, jnp.asarray(estimate_bits))).tolist()
        pilot = dataclasses.replace(
            self._judged(), surprise_bits=surprise, surprise_threshold_bits=PROMISING, chosen=-1
        )
        if not fresh or not hosts.agreed(lambda: self._policy.is_promising(pilot, candidates)):
            return self._decide(step, state, UNPROMISING, pilot)
        curve_bits: Any = np.asarray(self._trial.curve_bits[: self._pilot_batches])
        for place, proposal in enumerate(candidates):
            self._write(step, "promising", **candidate_record(proposal, pilot, place, curve_bits))
        self._phase = Trial(candidates, self._last_step(step))
        self._contest(step, state, int(births.child[0]), fresh, int(self._trial.leaving))
        return state

    def _rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self._run.settings.train.seed, step])

    def _plan(
        self, seen: Survey, blocks: Blocks, rng: np.random.Generator, failed: tuple[int, int]
    ) -> TrialPlan:
        """Plan a trial of the divisions that stand out; what failed last gives way to others once."""
        r = self._run.settings.recruitment
        depth = np.asarray(lineage.depth(jnp.asarray(np.asarray(blocks.parent))))
        young = depth >= self._run.settings.model.generations - 1
        active = (np.asarray(blocks.active) & ~young).tolist()
        made = self._policy.proposals(seen, active, self._concepts)
        others = [p for p in made if (p.parent, KINDS.index(p.kind)) != failed]
        ranked = of_one_parent(others or made)[: r.candidates]
        best = max((p.gain_bits for p in ranked), default=0.0)
        random = {id(p): placebos(seen, p, rng, r.placebos) for p in ranked}
        ranked = [p for p in ranked if self._policy.is_worth_a_trial(seen, p, random[id(p)])]
        directions = [random[id(p)] for p in filled(ranked, r.candidates)]
        return TrialPlan(best, ranked, directions, self._policy.block_to_try_without(blocks, seen.block))

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

    def _room(self, step: int, state: TrainState) -> tuple[TrainState, int]:
        """Return a place for one more block, or 0; if all are taken, first double the capacity."""
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

    def _is_hopeless(self) -> bool:
        llr_bits = np.asarray(self._trial.evidence.llr_bits)
        return hosts.agreed(lambda: self._policy.is_hopeless(llr_bits))

    def _judged(self) -> Judgement:
        alpha, trial, phase = self._run.settings.recruitment.alpha, self._trial, self._contest_phase()
        number_bits = bits.integer_code_length(max(1, int(trial.number)))
        evidence = jax.tree.map(np.asarray, trial.evidence)
        count = len(phase.candidates)
        return hosts.agreed(lambda: judged(evidence, phase.horizon, alpha, number_bits, count))

    def _decide(
        self, step: int, state: TrainState, reason: str, pilot: Judgement | None = None
    ) -> TrainState:
        """End and record the open pilot (whose judgement is `pilot`) or trial; recruit and retire."""
        candidates, ended = self._contest_phase().candidates, self._trial
        curve_bits: Any = np.asarray(ended.curve_bits[: self._batches_so_far(step)])
        judgement, number = pilot or self._judged(), 0 if pilot else int(ended.number)
        for place, proposal in enumerate(candidates):
            is_chosen = place == judgement.chosen
            self._write(
                step,
                "recruited" if is_chosen else "rejected",
                reason=reason,
                trial=number,
                tokens=int(ended.tokens),
                **candidate_record(proposal, judgement, place, curve_bits),
                **self._newcomer(is_chosen, place),
            )
        if judgement.chosen >= 0:
            state = self._recruit(step, state, judgement.chosen)
        if reason == REACHED_HORIZON:
            state = self._let_go(step, state)
        failed = (candidates[0].parent, KINDS.index(candidates[0].kind)) if pilot else (0, 0)
        self._phase = Idle(step + self._run.settings.recruitment.every, failed)
        self._plot(step, state, judgement, curve_bits, len(candidates))
        return state

    def _plot(self, step: int, state: TrainState, judgement: Judgement, curve_bits: Any, count: int) -> None:
        """Write the evidence of the best candidate, and the number of blocks, to the journal."""
        best = max(range(count), key=lambda place: judgement.llr_bits[place])
        placebo_bits = curve_bits[:, best, 1:].max(-1)
        needed_bits = [max(0.0, x) + judgement.threshold_bits[best] for x in placebo_bits]
        curves = {"candidate": curve_bits[:, best, 0], "best_placebo": placebo_bits, "needed": needed_bits}
        self._journal.curves(step - 1 - len(curve_bits), "evidence", curves)
        scalars = {
            "llr_bits": judgement.llr_bits[best],
            "surprise_bits": judgement.surprise_bits[best],
            "blocks": int(np.asarray(state.blocks.active).sum()),
            "births": int(self._trial.births),
            "best_placebo_bits": max(judgement.placebo_bits[best]),
            "threshold_bits": judgement.threshold_bits[best],
        }
        self._journal.scalars(step, "recruitment", scalars)

    def _newcomer(self, is_chosen: bool, place: int) -> dict[str, int]:
        births = self._trial.contenders.births
        child, number = np.asarray(births.child), np.asarray(births.number)
        return {"block": int(child[place]), "birth": int(number[place])} if is_chosen else {}

    def _recruit(self, step: int, state: TrainState, place: int) -> TrainState:
        contenders = self._trial.contenders
        birth = jax.tree.map(lambda x: x[place], contenders.births)
        generations = self._run.settings.model.generations
        state, report = growth.grow(state, [birth], self._programs.boxed, self._run.mesh, generations)
        blocks = dataclasses.replace(
            state.blocks,
            anchor_tokens=state.blocks.anchor_tokens.at[birth.child].set(contenders.anchor_tokens[place]),
            anchor_log_odds=state.blocks.anchor_log_odds.at[birth.child].set(
                contenders.anchor_log_odds[place]
            ),
        )
        self._trial = dataclasses.replace(self._trial, births=self._trial.births + 1)
        counts = {k: v for k, v in dataclasses.asdict(report).items() if k != "births"}
        self._write(step, "born", **counts, block=int(birth.child), parent=int(birth.parent))
        return self._settled(dataclasses.replace(state, blocks=blocks))

    def _let_go(self, step: int, state: TrainState) -> TrainState:
        """Retire the block that was tried without, if it saved fewer bits than its description takes."""
        leaving, lost = int(self._trial.leaving), -float(self._trial.leaving_llr_bits)
        if not leaving or leaving not in childless(state.blocks):
            return state
        born, active, parent = (
            np.asarray(x) for x in (state.blocks.born, state.blocks.active, state.blocks.parent)
        )
        structure = structure_bits(max(1, int(born[leaving])), int(active.sum()), WAYS)
        worth = structure + self._parameter_bits(step)
        if hosts.agreed(lambda: lost > worth):
            return state
        self._write(
            step,
            "retired",
            block=leaving,
            parent=int(parent[leaving]),
            llr_bits=round(-lost, 2),
            description_bits=round(worth, 2),
            tokens=int(self._trial.tokens),
        )
        return self._settled(growth.retire(state, leaving))

    def _settled(self, state: TrainState) -> TrainState:
        """Return the state sharded as its axis names say; computing with it may have changed that."""
        return jax.device_put(state, sharding.state_shardings(self._programs.boxed, self._run.mesh))

    # What a checkpoint keeps.

    def memory(self) -> PyTree:
        """Return what a checkpoint keeps: the trial, the batches of the next survey, and the phase."""
        r = self._run.settings.recruitment
        rows = [*self._recent, *[self._no_batch()] * (r.survey - len(self._recent))]
        return {
            "trial": self._trial,
            "recent": self._programs.stack(*rows),
            "about": phases.packed(self._phase, len(self._recent)),
            "open": phases.proposal_table(self._phase, r.candidates, self._concepts),
        }

    def remember(self, memory: PyTree) -> None:
        """Take up the phase of a checkpoint, also in the middle of a trial."""
        self._trial = memory["trial"]
        births = jax.tree.map(np.asarray, self._trial.contenders.births)
        self._phase, recent = phases.unpacked(
            memory["about"], memory["open"], births.direction, births.parent, self._concepts
        )
        where = sharding.batch_sharding(self._run.mesh)
        for place in range(recent):
            batch = jax.tree.map(lambda x, place=place: x[place], memory["recent"])
            self._recent.append(jax.device_put(batch, where))

    def _no_batch(self) -> Batch:
        data = self._run.settings.data
        return Batch(*(np.zeros((data.batch, data.context), np.int32) for _ in dataclasses.fields(Batch)))

    def _compile(self) -> None:
        self._programs = programs(self._run.model, self._run.settings, self._run.mesh)

    def _write(self, step: int, kind: str, **what: Any) -> None:
        self._records.write({"step": step - 1, "kind": kind, **what})

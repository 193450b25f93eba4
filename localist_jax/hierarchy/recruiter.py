"""A stream of documents, an ensemble that begins with one LLM, and recruitment of others when the data pays for them.

Each batch is coded by the mixture of all members, then every document is given to the member that coded it best, and
that member alone learns from it. From time to time a survey divides the recent documents of one member; if the harder
ones cost enough bits more than the others, a trial (see `trial`) finds out whether an LLM of their own would save more
than it costs to describe. If so, the newcomer joins, and its parent goes on as the heir that did not learn that domain.
Every other member is untouched by all of it.

Of many processes each sees the whole stream and does the same; what one of them computes by itself is agreed upon.

`hierarchy.jsonl` has a line for every trial's opening, verdict and birth, with its bits and with J (T12).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.hierarchy import signature
from localist_jax.hierarchy.account import Account
from localist_jax.hierarchy.blocks import BlockRecruiters
from localist_jax.hierarchy.coding import Coded, code, mixed
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.engine import EnsembleEngine, Queue, apart, together
from localist_jax.hierarchy.ensemble import Ensemble, Record
from localist_jax.hierarchy.signature import KINDS, Division, Memory
from localist_jax.hierarchy.trial import HEIR, NEWCOMER, MemberTrial
from localist_jax.parallel import hosts
from localist_jax.recruitment.cost import parameter_bits, structure_bits
from localist_jax.recruitment.evidence import Decision, surprise_bits, threshold_bits, verdicts
from localist_jax.recruitment.proposals import Concept
from localist_jax.training.journal import Records
from localist_jax.training.state import TrainState
from localist_jax.types import PyTree

FILE = "hierarchy.jsonl"
LOOK = 4  # batches between two looks for arrivals


class MemberRecruiter:
    """Takes a stream batch by batch; `ensemble` is what it has become.

    Args:
      ensemble: to begin with.
      engine: for LLMs of its shape.
      settings: of recruitment; `every` 0 only routes and trains.
      workdir: gets `hierarchy.jsonl`.
      seed: for divisions and placebos.
      blocks: that recruit blocks inside the members; None: nobody does.
      concepts: that somebody named, and no block covers; whose documents lie outside every member's domain is tried
        before all others, and by its turn if that fails.
      resume_step: batches of a stream that goes on (see `stream.resume`); the record is cut there.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        engine: EnsembleEngine,
        settings: config.Hierarchy,
        workdir: Path,
        seed: int = 0,
        blocks: BlockRecruiters | None = None,
        concepts: Sequence[Concept] = (),
        resume_step: int = 0,
    ):
        self._blocks, self._concepts = blocks, concepts
        self._tried: set[str] = set()  # concepts
        self.ensemble, self.engine, self.settings = ensemble, engine, settings
        self.account = Account()
        self.trial: MemberTrial | None = None
        self.trials = self.batches = 0
        self._records = Records(workdir / FILE, resume_step)
        self._rng = np.random.default_rng([seed, 7])
        self._queues = {at: Queue() for at in ensemble.active}
        self._memories = {at: self._memory() for at in ensemble.active}
        self._worth: dict[
            int, float
        ] = {}  # bits that each member recruited here saved since its trial's opening
        self._next = self._turn = (
            settings.start
        )  # batches from which arrivals, and other divisions, are looked for

    def observe(self, batch: Batch) -> Coded:
        """Codes a batch (one document per row), advances the trial, and lets the members learn."""
        self.batches += 1
        due = self.settings.every and self.batches >= self._next
        if due and self.trial is None:
            self._retire()
        coded, losses = code(self.ensemble, self.engine, batch)
        documents = signature.counts(batch, self.ensemble.signatures.shape[1])
        self.account.coded(float(coded.bits.sum()))
        self._appraise(losses[coded.member >= 0].sum(1), coded)
        if due:
            self._next = self.batches + LOOK
            self._survey()
        if self.trial is not None:
            self.trial.observe(
                batch, documents, losses, self.ensemble.active, float(coded.bits.sum()),
                lambda among, members: mixed(among, members)[0], coded.member == self.trial.parent,
            )  # fmt: skip
        self._learn(batch, documents, coded)
        if self.trial is not None:
            self._decide()
        return coded

    def _learn(self, batch: Batch, documents: np.ndarray, coded: Coded) -> None:
        """Each document goes to one member; a member with enough of them makes a step, the others make none."""
        for at in self.ensemble.active:
            mine = np.flatnonzero(coded.member == at)
            self.ensemble = self.ensemble.served(at, documents[mine].sum(0))
            self._queues[at].put(batch, mine)
            while len(self._queues[at]) >= batch.tokens.shape[0]:
                full = self._queues[at].take(batch.tokens.shape[0])
                if not self.ensemble.record(at).frozen:
                    state = self.engine.train(self._with_blocks(at, full), full)
                    self.ensemble = self.ensemble.with_state(at, state)
            for row in mine:
                self._memories[at].put(documents[row], float(coded.bits[row]))

    def _with_blocks(self, at: int, batch: Batch) -> TrainState:
        """The state of a member, with the blocks that it recruits or retires now."""
        state, name = self.ensemble.state(at), self.ensemble.record(at).name
        if self._blocks is None:
            return state
        if self.trial is not None and self.trial.parent == at:
            self._blocks.anew(name)  # incumbent and contenders are to differ in what is on trial alone
            return state
        return self._blocks.before(name, state, batch, self.account)

    def _memory(self) -> Memory:
        return Memory(self.settings.survey * self.engine.settings.data.batch, self._rng)

    # Members that are no longer worth their keep.

    def _appraise(self, totals: Float[np.ndarray, "n M"], coded: Coded) -> None:
        """Books what the mixture would have taken without each recruit: −log₂ of the others' mean of 2^−bits."""
        for at in self._worth:
            others = [m for m in self.ensemble.active if m != at]
            without = np.log2(len(others)) - np.logaddexp2.reduce(-totals[:, others].astype(float), axis=1)
            self._worth[at] += float(without.sum() - coded.bits.sum())

    def _retire(self) -> None:
        """Drops recruits whose keep took more than they ever saved, and log₂(1/α) bits beyond that."""
        for at, worth in list(self._worth.items()):
            record, cost = self.ensemble.record(at), -worth
            if not self._pays(cost):
                continue
            account = self.account.move(cost, -record.cost_bits)
            self.ensemble = self.ensemble.retired(at)
            del self._queues[at], self._memories[at], self._worth[at]
            self._write("retired", name=record.name, place=at, saved_bits=round(cost, 1), **account)

    def _pays(self, saved_bits: float) -> bool:
        """Whether dropping a recruit saves enough."""
        return hosts.agreed(lambda: bool(saved_bits >= -np.log2(self.settings.alpha)))

    # A trial's beginning.

    def _survey(self) -> None:
        """Opens a trial, or puts another in the place of one that is open where a domain seems to have arrived.

        The trial of a concept goes on: what arrives may be its own documents.
        """
        open_now = self.trial
        if open_now is not None and (open_now.division.is_arrival or open_now.division.concept):
            return
        arrivals = open_now is not None or self.batches < self._turn
        # Dividing draws numbers, as many as it takes where it is done.
        found, drawn = hosts.agreed(lambda: (self._division(arrivals), self._rng.bit_generator.state))
        self._rng.bit_generator.state = drawn
        if not arrivals:
            self._turn = self.batches + self.settings.every
        if found is None or len(self.ensemble.active) >= self.settings.members_at_most:
            return
        if open_now is not None:
            self._write("abandoned", reason="another domain arrived", **self._said(open_now))
            self.trial = None
        self._open(*found)

    def _open(self, parent: int, division: Division) -> None:
        cost = self._cost(division)
        if not hosts.agreed(lambda: self._promises(parent, division)):
            return
        self.trials += 1
        self._tried.add(division.name)
        self.trial = self._trial(parent, division, cost, self.batches)
        self._write(
            "opened", trial=self.trials, parent=self.ensemble.record(parent).name,
            share=round(division.share, 4), excess_bits=round(division.excess_bits, 1), proposal=division.kind,
            explained=round(division.explained, 3), concept=division.name,
        )  # fmt: skip

    def _trial(self, parent: int, division: Division, cost_bits: float, opened: int) -> MemberTrial:
        """The last one that was opened."""
        return MemberTrial(
            self.engine, parent, self.ensemble.state(parent), self.ensemble.dial(parent), self._queues[parent],
            division, placebos=self.settings.placebos, horizon=self.settings.horizon, cost_bits=cost_bits,
            opened=opened, number=self.trials, rng=self._rng,
        )  # fmt: skip

    def _cost(self, division: Division) -> float:
        anchors = division.concept.anchors if division.concept else ()
        named = [self.ensemble.signatures.shape[1]] * len(anchors)
        structure = structure_bits(self.trials + 1, len(self.ensemble.active), division.ways, *named)
        return structure + self._parameter_bits()

    def _promises(self, parent: int, division: Division) -> bool:
        """Whether what the documents of a division cost more would pay for an LLM of their own by the horizon."""
        surveyed = division.share * len(self._memories[parent])
        expected = division.excess_bits * self.settings.horizon / surveyed
        return bool(expected >= float(threshold_bits(jnp.float32(self._cost(division)), self.settings.alpha)))

    def _division(self, arrivals: bool) -> tuple[int, Division] | None:
        """The member whose remembered documents are worth dividing most, and how.

        A concept that was not tried yet goes first, then what looks like the arrival of a domain; otherwise concepts
        and kinds of division take turns, unless only `arrivals` are looked for.
        """
        each = {}
        for at in self.ensemble.active:
            memory = self._memories[at]
            full = len(memory) >= self.settings.survey * self.engine.settings.data.batch / 2
            if self.ensemble.record(at).frozen or not full:
                continue
            each[at] = signature.divide(*memory.arrays(), self._rng, self.settings.smallest)
            each[at] += [d for d in self._named(memory) if self._promises(at, d)]
        names = sorted({d.name for divisions in each.values() for d in divisions if d.name})
        turns = [*(("concept", name) for name in names), *((kind, "") for kind in KINDS)]
        now = turns[self.trials % len(turns)]
        found = []
        for at, divisions in each.items():
            new = [d for d in divisions if d.name and d.name not in self._tried and self.trial is None]
            arrived = [d for d in divisions if d.is_arrival]
            turn = [d for d in divisions if (d.kind, d.name) == now and not arrivals]
            found += [(at, d) for d in new or arrived or turn]
        return max(found, key=lambda pair: pair[1].excess_bits, default=None)

    def _named(self, memory: Memory) -> list[Division]:
        """Documents that show a concept for which no member was recruited, and cost more than others."""
        taken = {self.ensemble.record(at).concept for at in self.ensemble.active}
        arrays = memory.arrays()
        made = [
            signature.of_concept(*arrays, concept, self.settings.smallest)
            for concept in self._concepts
            if concept.name not in taken
        ]
        return [division for division in made if division]

    def _parameter_bits(self) -> float:
        s, data = self.settings, self.engine.settings.data
        tokens = self.batches * data.batch * data.context
        count = sum(x.size // self.ensemble.capacity for x in jax.tree.leaves(self.ensemble.states.params))
        return parameter_bits(s.cost, count, tokens, s.bits_per_parameter)

    # A trial's end.

    def _decide(self) -> None:
        trial, s = self.trial, self.settings
        assert trial is not None
        overdue = self.batches - trial.opened >= s.patience
        number = bits.integer_code_length(trial.number)

        def judge() -> tuple[bool, int]:
            hopeless = s.horizon / 2 <= trial.clock < s.horizon and trial.is_behind
            return hopeless, int(verdicts(trial.evidence, trial.clock, s.alpha, number)[0])

        hopeless, verdict = hosts.agreed(judge)
        if verdict == Decision.WAIT and not (overdue or hopeless):
            return
        said = self._said(trial)
        if verdict == Decision.RECRUIT:
            self._recruit(trial, said)
        elif verdict == Decision.REJECT:
            self._write("rejected", **said)
        else:
            reason = (
                "no better than placebos at half of the horizon" if hopeless else "its horizon does not come"
            )
            self._write("abandoned", reason=reason, **said)
        self.trial, self._next, self._turn = None, self.batches + s.every, self.batches + 2 * s.every

    def _said(self, trial: MemberTrial) -> dict[str, Any]:
        """Return the record's figures of a trial that is over."""
        evidence, alpha = trial.evidence, self.settings.alpha
        number = bits.integer_code_length(trial.number)
        return {
            "trial": trial.number, "parent": self.ensemble.record(trial.parent).name,
            "llr_bits": round(trial.llr_bits, 1), "cost_bits": round(trial.cost_bits, 2),
            "threshold_bits": round(float(threshold_bits(evidence.cost_bits[0], alpha)), 2),
            "placebo_bits": [round(x, 1) for x in np.asarray(evidence.placebo_bits[0], float).tolist()],
            "surprise_bits": round(float(surprise_bits(evidence.llr_bits, evidence.placebo_bits)[0]), 2),
            "surprise_threshold_bits": round(number - float(np.log2(alpha)), 2),
            "documents": list(trial.sides), "opened": trial.opened,
            "curve_bits": [[round(x, 1) for x in row] for row in trial.curve_bits],
        }  # fmt: skip

    def _recruit(self, trial: MemberTrial, said: dict[str, Any]) -> None:
        """The newcomer joins, the heir stands in for its parent; both keep the documents that wait for them."""
        winner, llr = trial.contenders[0], trial.llr_bits
        parent = self.ensemble.record(trial.parent)
        record = Record(
            name=f"llm{trial.number}", parent=parent.name, born=self.batches, cost_bits=trial.cost_bits,
            saved_bits=llr, concept=trial.division.name,
        )  # fmt: skip
        account = self.account.move(llr, trial.cost_bits)
        before = self.ensemble.capacity
        ensemble, at = self.ensemble.joined(
            winner.states[NEWCOMER], record, self.ensemble.dial(trial.parent), trial.signature
        )
        self.ensemble = ensemble.with_state(trial.parent, winner.states[HEIR]).served(
            trial.parent, -np.minimum(trial.signature, ensemble.signatures[trial.parent])
        )
        if self._blocks is not None:
            self._blocks.anew(parent.name)
        self._worth[at] = llr
        self._queues[at] = winner.queues[NEWCOMER]
        self._queues[trial.parent] = winner.queues[HEIR]
        self._memories[at], self._memories[trial.parent] = self._memory(), self._memory()
        self._write(
            "recruited", name=record.name, place=at, capacity=[before, ensemble.capacity], **account, **said
        )

    def _write(self, kind: str, **what: Any) -> None:
        self._records.write(
            {"step": self.batches, "kind": kind, **what, "j_bits": round(self.account.total_bits, 1)}
        )

    # What a checkpoint keeps beside the ensemble.

    def memory(self) -> tuple[dict[str, PyTree], dict[str, Any]]:
        """Arrays, and what is ready for JSON."""
        queues = [*self._queues.values(), *(self.trial.queues if self.trial else ())]
        waiting = [row for queue in queues for row in queue]
        kept = [memory.arrays() for memory in self._memories.values() if len(memory)]
        arrays: dict[str, PyTree] = {"trial": self.trial.memory() if self.trial else {}}
        if waiting:
            arrays["waiting"] = together(waiting)
        if kept:
            arrays["documents"], arrays["bits"] = (
                np.concatenate(x).astype(np.float32) for x in zip(*kept, strict=True)
            )
        return arrays, {
            "members": list(self._queues), "waiting": list(map(len, queues)),
            "remembered": list(map(len, self._memories.values())), "worth": [[at, x] for at, x in self._worth.items()],
            "tried": sorted(self._tried), "trials": self.trials, "batches": self.batches, "next": self._next,
            "turn": self._turn, "account": dataclasses.asdict(self.account), "rng": self._rng.bit_generator.state,
            "trial": self.trial and {
                "division": self.trial.division.to_dict(), "cost_bits": self.trial.cost_bits,
                "parent": self.trial.parent, "opened": self.trial.opened, "sides": self.trial.sides,
                "curve_bits": self.trial.curve_bits,
            },
        }  # fmt: skip

    def remember(self, about: dict[str, Any], restored: Callable[[PyTree], PyTree]) -> None:
        """Goes on where `memory` was taken, in the middle of a trial too.

        Args:
          about: the second part of it.
          restored: the first part, given arrays of its shapes.
        """
        self.trials, self.batches = about["trials"], about["batches"]
        self._next, self._turn, self._tried = about["next"], about["turn"], set(about["tried"])
        self._worth, self.account = {at: x for at, x in about["worth"]}, Account(**about["account"])
        self._queues = {at: Queue() for at in about["members"]}
        trial = about["trial"]
        if trial:
            division = Division.of_dict(trial["division"])
            self.trial = self._trial(trial["parent"], division, trial["cost_bits"], trial["opened"])
        data, vocabulary = self.engine.settings.data, self.ensemble.signatures.shape[1]
        wanted: dict[str, PyTree] = {"trial": self.trial.memory() if self.trial else {}}
        if count := sum(about["waiting"]):
            wanted["waiting"] = rows([], data.context, 0, count)
        if count := sum(about["remembered"]):
            wanted["documents"], wanted["bits"] = (
                np.zeros(n, np.float32) for n in ((count, vocabulary), (count,))
            )
        arrays = restored(wanted)
        queues = apart(arrays.get("waiting"), about["waiting"])
        self._queues = dict(zip(about["members"], queues, strict=False))
        if self.trial:
            rest = queues[len(self._queues) :]
            self.trial.remember(arrays["trial"], rest, trial["sides"], trial["curve_bits"])
        self._memories, start = {}, 0
        for at, count in zip(about["members"], about["remembered"], strict=True):
            self._memories[at] = self._memory()
            for i in range(start, start + count):
                self._memories[at].put(np.asarray(arrays["documents"][i], float), float(arrays["bits"][i]))
            start += count
        self._rng.bit_generator.state = about["rng"]

    def close(self) -> None:
        """Closes the record."""
        self._records.close()
        if self._blocks is not None:
            self._blocks.close()

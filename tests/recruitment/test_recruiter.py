"""Recruitment inside a run: what it decides, what it writes, and that a resumed run decides the same."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.recruitment import phases, policy, proposals, record, recruiter
from localist_jax.recruitment.evidence import Judgement
from localist_jax.recruitment.proposals import Concept
from localist_jax.training import journal
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.loop import train
from localist_jax.training.run import Run

TRIAL = {"every": 1, "start": 0.0, "stop": 1.0, "horizon": 4, "candidates": 1, "placebos": 3, "survey": 2}


@pytest.fixture(scope="module", autouse=True)
def _everything_is_tried():
    """On these few batches nothing stands out from noise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "worth_a_trial", lambda found, proposal, directions: True)
        yield


@pytest.fixture(scope="module")
def settings(tiny_settings):
    return tiny_settings.replace(
        data={"batch": 8},
        model={"generations": 3},
        recruitment=TRIAL,
        train={"steps": 16, "save_every": 5, "eval_every": 16, "keep": 9},
    )


def lines(folder):
    return [json.loads(line) for line in (folder / record.FILE).read_text().splitlines()]


class Persistent(policy.Policy):
    """Follows every pilot by a trial, and lets every trial reach its horizon."""

    def is_promising(self, pilot, candidates):
        return True

    def is_hopeless(self, llr_bits):
        return False


class Convinced(recruiter.Recruiter):
    """A recruiter whose first candidate gets evidence as a gift, at every horizon."""

    kind = 1e4

    def __init__(self, concepts=(), policy=None):
        super().__init__(concepts, policy or Persistent())

    def _decide(self, step, state, reason, said=None):
        evidence = self._trial.evidence
        gift = jnp.zeros_like(evidence.llr_bits).at[0].set(self.kind)
        self._trial = dataclasses.replace(
            self._trial, evidence=dataclasses.replace(evidence, llr_bits=evidence.llr_bits + gift)
        )
        return super()._decide(step, state, reason, said)


@pytest.fixture(scope="module")
def convinced(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("convinced")
    return train(settings, folder, hooks=[Convinced()]), folder


def test_off_means_no_hook(tiny_settings, settings):
    assert recruiter.hooks(tiny_settings) == []
    assert len(recruiter.hooks(settings)) == 1


def test_every_candidate_is_written_down_with_its_bits(convinced):
    _, folder = convinced
    tried = [r for r in lines(folder) if r["kind"] in ("recruited", "rejected")]
    assert len(tried) >= 2
    for r in tried:
        enough = r["llr_bits"] >= r["threshold_bits"] and r["surprise_bits"] >= r["surprise_threshold_bits"]
        assert enough == (r["kind"] == "recruited")
        gift = Convinced.kind if r["kind"] == "recruited" else 0.0
        assert r["curve_bits"][-1] + gift == pytest.approx(r["llr_bits"], abs=0.06)
        assert len(r["curve_bits"]) == TRIAL["horizon"]
        assert len(r["placebo_bits"]) == TRIAL["placebos"]
        assert r["tokens"] > 0
        assert r["cost_bits"] > 0
    assert {r["trial"] for r in tried} == {1, 2}, "every candidate spends a codeword"
    assert '"kind": "recruitment"' in (folder / "metrics.jsonl").read_text()


def test_tensorboard_gets_the_evidence_of_every_step_and_the_number_of_blocks(convinced):
    _, folder = convinced
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    first = next(r for r in lines(folder) if r["kind"] == "recruited")
    horizon = TRIAL["horizon"]
    for tag, wanted in (("candidate", "curve_bits"), ("best_placebo", "best_placebo_curve_bits")):
        shown = events.Scalars(f"evidence/{tag}")[:horizon]
        np.testing.assert_allclose([x.value for x in shown], first[wanted], atol=0.06)
        assert [x.step for x in shown] == list(range(first["step"] - horizon + 1, first["step"] + 1))
    births = [x.value for x in events.Scalars("recruitment/births")]
    left = sum(r["kind"] == "retired" for r in lines(folder))
    blocks = [x.value for x in events.Scalars("recruitment/blocks")]
    assert births == list(range(len(births)))
    assert blocks[-1] == blocks[0] + births[-1] - left


def test_evidence_is_enough_and_the_state_grows(convinced, settings):
    run, folder = convinced
    found = lines(folder)
    born = [r for r in found if r["kind"] == "born"]
    assert len(born) == 2, "two trials of four steps fit, each with a pilot of two before it"
    blocks = run.state.blocks
    for number, r in enumerate(born, 1):
        assert bool(blocks.active[r["block"]])
        assert int(blocks.parent[r["block"]]) == r["parent"]
        assert int(blocks.born[r["block"]]) == number
    assert int(blocks.active.sum()) == settings.model.blocks + 2 - sum(r["kind"] == "retired" for r in found)
    reopened = Run.open(folder)
    np.testing.assert_array_equal(reopened.state.blocks.active, blocks.active)


@pytest.mark.parametrize(("before", "saved"), [(9, 5), (13, 10)], ids=["trial", "pilot"])
def test_a_run_resumed_in_the_middle_decides_the_same(convinced, settings, tmp_path, before, saved):
    whole, folder = convinced
    with pytest.raises(KeyboardInterrupt):
        train(settings, tmp_path, hooks=[Stops(before)])
    with Checkpoints(tmp_path / "checkpoints") as checkpoints:
        assert checkpoints.latest() == saved
    again = train(settings, tmp_path, hooks=[Convinced()])
    assert lines(tmp_path) == lines(folder) or _without_seconds(tmp_path) == _without_seconds(folder)
    for one, other in zip(
        jax.tree.leaves(whole.state.params), jax.tree.leaves(again.state.params), strict=True
    ):
        np.testing.assert_array_equal(one, other)


class Stops(Convinced):
    """Interrupted before that batch."""

    def __init__(self, before):
        super().__init__()
        self._before = before

    def __call__(self, step, state, batch):
        if step == self._before:
            raise KeyboardInterrupt
        return super().__call__(step, state, batch)


def _without_seconds(folder):
    return [{k: v for k, v in r.items() if k != "seconds"} for r in lines(folder)]


class Keeps(Convinced):
    """Lets nobody go."""

    def _let_go(self, step, state):
        return state


class Untried(Keeps):
    """Compiles no trial: what is tested is what goes on around it."""

    def _compile(self):
        super()._compile()
        self._programs = dataclasses.replace(self._programs, trial_step=self._idle)

    @staticmethod
    def _idle(state, trial, batch):
        some = jnp.broadcast_to(
            jnp.arange(TRIAL["placebos"], dtype=jnp.float32), trial.evidence.placebo_bits.shape
        )
        return dataclasses.replace(trial, evidence=dataclasses.replace(trial.evidence, placebo_bits=some))


def walk(hook, run, steps, folder):
    """The hook alone, on batches of the run's own text, without training."""
    run = dataclasses.replace(run, workdir=folder)
    with journal.Journal(folder) as book:
        hook.start(run, book, 0)
        for step in range(1, steps + 1):
            state = dataclasses.replace(run.state, step=jnp.asarray(step - 1, jnp.int32))
            run.state = hook(step, state, run.valid[0])
            run.fit()
    return run


@pytest.mark.slow
def test_a_full_house_doubles_and_goes_on_and_its_checkpoint_is_found_again(settings, tmp_path):
    tight = settings.replace(
        model={"blocks": 6, "block_capacity": 6}, recruitment={"blocks_at_most": 7}, train={"steps": 18}
    )
    run = train(tight, tmp_path, hooks=[Untried()])
    found = lines(tmp_path)
    assert [r["capacity"] for r in found if r["kind"] == "enlarged"] == [7]
    assert run.settings.model.block_capacity == run.state.blocks.active.size == 7
    assert [r["block"] for r in found if r["kind"] == "born"] == [6]
    assert [r["reason"] for r in found if r["kind"] == "full"], "the second newcomer finds no room"
    assert Run.open(tmp_path).model.config.block_capacity == 7
    again = train(tight, tmp_path, hooks=[Untried()])  # all steps are done: only what was saved is read
    assert again.settings.model.block_capacity == 7
    np.testing.assert_array_equal(again.state.blocks.active, run.state.blocks.active)


def test_a_useless_block_is_retired_and_its_positions_go_back(convinced, tmp_path):
    class Useless(Untried):
        """Sees a block that saves nothing, and no evidence for another."""

        kind = 0.0
        _let_go = recruiter.Recruiter._let_go

    run = walk(Useless(), convinced[0], 9, tmp_path)
    gone = [r for r in lines(tmp_path) if r["kind"] == "retired"]
    assert gone
    assert all(not bool(run.state.blocks.active[r["block"]]) for r in gone)
    batch = run.valid[0]
    out = jax.jit(forward, static_argnums=0)(
        run.model, run.state.params, batch.tokens, Dial(1.0), run.state.blocks,
        positions=batch.positions, segments=batch.segments,
    )  # fmt: skip
    assert not {r["block"] for r in gone} & set(np.asarray(out.blocks).ravel().tolist())


def test_a_trial_behind_its_placebos_is_given_up_half_way(convinced, tmp_path):
    class Behind(Untried):
        """Has no evidence beside placebos that have some."""

        kind = 0.0

    class GivesUp(Persistent):
        """Gives up a trial that has gathered nothing."""

        is_hopeless = policy.Policy.is_hopeless

    walk(Behind(policy=GivesUp()), convinced[0], 12, tmp_path)
    tried = [r for r in lines(tmp_path) if r["kind"] == "rejected"]
    half = TRIAL["horizon"] // 2
    assert len(tried) == 2
    assert tried[1]["step"] - tried[0]["step"] == half + TRIAL["every"] + TRIAL["survey"]
    for r in tried:
        assert r["reason"] == record.GATHERED_NOTHING
        assert len(r["curve_bits"]) == half


def test_without_a_promising_pilot_there_is_no_trial_and_no_codeword_is_spent(convinced, tmp_path):
    class Unpromising(Untried):
        """Its placebos have as much as the candidate."""

        kind = 0.0

    walk(Unpromising(policy=policy.Policy()), convinced[0], 8, tmp_path)
    tried = [r for r in lines(tmp_path) if r["kind"] == "rejected"]
    assert [r["step"] for r in tried] == [4, 7]
    for r in tried:
        assert r["reason"] == record.UNPROMISING
        assert r["trial"] == 0
        assert len(r["curve_bits"]) == TRIAL["survey"]
    assert len({r["cost_bits"] for r in tried}) == 1, "both as the first of all"
    assert len({(r["parent"], r["proposal"]) for r in tried}) == 2, "what failed gives way"


@pytest.mark.parametrize(
    ("name", "llr", "surprise", "is_so"),
    [("", 30.0, 6.0, True), ("", 30.0, 4.0, False), ("", 9.0, 6.0, False), ("lupus", 9.0, 6.0, True)],
)
def test_a_pilot_is_promising_by_both_figures_and_a_name_costs_it_nothing(name, llr, surprise, is_so):
    proposal = proposals.Proposal("concept", 1, np.zeros(2), 0.5, 1.0, 99, name)
    pilot = Judgement([llr], [20.0], [24.3], [[1.0, 2.0]], [surprise], 5.8, -1)
    assert policy.Policy().is_promising(pilot, [proposal]) == is_so


def test_a_trial_begins_without_what_its_pilot_gathered(convinced, settings, tmp_path):
    class Looked(Convinced):
        """Notes where the evidence stands before and after a pilot's end."""

        seen = None

        def _end_pilot(self, step, state):
            before = jax.tree.map(np.asarray, self._trial)
            state = super()._end_pilot(step, state)
            self.seen = before, jax.tree.map(np.asarray, self._trial)
            return state

    hook = Looked()
    walk(hook, convinced[0], 5, tmp_path)
    pilot, trial = hook.seen
    assert (pilot.evidence.llr_bits != 0).all()
    assert not trial.evidence.llr_bits.any()
    assert not trial.evidence.placebo_bits.any()
    one, other = (t.contenders.births.direction for t in (pilot, trial))
    np.testing.assert_array_equal(one[0], other[0])
    assert (one[1:] != other[1:]).any(-1).all(), "placebos are drawn anew"
    learned, fresh = (jax.tree.leaves(t.contenders.births.units) for t in (pilot, trial))
    assert any((a != b).any() for a, b in zip(learned, fresh, strict=True))
    assert (int(pilot.number), int(trial.number)) == (0, 1)


@pytest.mark.parametrize(
    "phase",
    [
        phases.Idle(7, (2, 1)),
        phases.Pilot([proposals.Proposal("hard", 3, np.ones(2, np.float32), 0.25, 8.0, 40)], 12),
        phases.Trial(
            [proposals.Proposal("concept", 3, np.ones(2, np.float32), 0.5, 8.0, 40, "fish", {5: 1.0})], 12
        ),
    ],
    ids=["idle", "pilot", "trial"],
)
def test_a_phase_comes_back_from_a_checkpoint(phase):
    concepts = [Concept("bird", {}), Concept("fish", {5: 1.0})]
    table = phases.proposal_table(phase, 2, concepts)
    births = np.ones((2, 2), np.float32), np.asarray([3, 0])
    found, batches = phases.unpacked(phases.packed(phase, 4), table, *births, concepts)
    assert batches == 4
    assert repr(found) == repr(phase)


def test_a_named_concept_is_tried_with_its_anchors(convinced, settings, tmp_path, monkeypatch):
    monkeypatch.setattr(proposals, "SMALLEST", 4)
    counts = np.bincount(convinced[0].valid[0].tokens.ravel(), minlength=512)
    common = [int(t) for t in np.argsort(-counts)[:20] if t > 3][: settings.model.anchor_capacity]

    class Named(Persistent):
        """Proposes only what was named."""

        def proposals(self, seen, active, concepts):
            return [p for p in super().proposals(seen, active, concepts) if p.name][:1]

    hook = Untried([Concept("common", dict.fromkeys(common, 20.0))], Named())
    run = walk(hook, convinced[0], 9, tmp_path)
    tried = [r for r in lines(tmp_path) if r["kind"] == "recruited"]
    assert [r["name"] for r in tried] == ["common"]
    anchors = np.asarray(run.state.blocks.anchor_tokens[tried[0]["block"]])
    assert set(anchors[anchors >= 0].tolist()) == set(common)

"""Blocks inside members: each member has a hook of its own, whose moves are booked on the one account."""

import dataclasses
import json
from typing import ClassVar

import pytest

from localist_jax.hierarchy.account import Account
from localist_jax.hierarchy.blocks import BlockRecruiters
from localist_jax.hierarchy.recruiter import MemberRecruiter
from localist_jax.recruitment.recruiter import Recruiter
from localist_jax.training.loop import Hook
from tests.hierarchy.conftest import batch_of


class Recruiting(Hook):
    """A hook that says it recruited a block at its second step, and counts what it saw."""

    made: ClassVar[list["Recruiting"]] = []

    def __init__(self, settings):
        self.settings, self.steps = settings, []
        self.made.append(self)

    def start(self, run, journal, step):
        self.run, self.began = run, step

    def __call__(self, step, state, batch):
        self.steps.append(step)
        if len(self.steps) == 2:
            line = {"step": step, "kind": "recruited", "llr_bits": 40.0, "cost_bits": 15.0}
            (self.run.workdir / "recruitment.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
            blocks = dataclasses.replace(state.blocks, born=state.blocks.born.at[-1].set(1))
            return dataclasses.replace(state, blocks=blocks)
        return state


@pytest.fixture
def blocks(engine, tmp_path):
    Recruiting.made.clear()
    return BlockRecruiters(engine, None, tmp_path, Recruiting)


def test_moves_of_blocks_are_booked_once(blocks, base, tmp_path):
    account, batch = Account(coded_bits=1000.0), batch_of("first")
    state = base
    for expected in (1000.0, 975.0, 975.0):
        state = blocks.before("base", dataclasses.replace(state, step=state.step + 1), batch, account)
        assert account.total_bits == expected
    assert account.description_bits == 15.0
    assert int(state.blocks.born[-1]) == 1
    assert (tmp_path / "members" / "base" / "metrics.jsonl").is_file()
    (hook,) = Recruiting.made
    assert hook.steps == [2, 3, 4]
    assert hook.settings.recruitment.blocks_at_most == hook.settings.model.block_capacity
    blocks.anew("base")
    blocks.before("base", state, batch, account)
    assert len(Recruiting.made) == 2
    assert account.total_bits == 975.0
    blocks.close()


def test_each_member_has_a_hook_of_its_own(blocks, pair, engine, tmp_path):
    recruiter = MemberRecruiter(pair, engine, engine.settings.hierarchy, tmp_path, blocks=blocks)
    given = [recruiter.observe(batch_of(*["first"] * 4, seed=seed)).member.tolist() for seed in range(6)]
    recruiter.close()
    documents = {at: sum(row.count(at) for row in given) for at in (0, 1)}
    hooks = {hook.run.workdir.name: hook for hook in Recruiting.made}
    assert len(hooks) == len(Recruiting.made), "one for each"
    for at, count in documents.items():
        name, steps = pair.record(at).name, count // 4
        assert int(recruiter.ensemble.state(at).step) == steps
        assert (hooks[name].steps if name in hooks else []) == list(range(1, steps + 1))
        assert int(recruiter.ensemble.state(at).blocks.born[-1]) == (steps >= 2)


def test_members_share_the_compiled_functions_of_their_hooks(pair, engine, tmp_path):
    blocks = BlockRecruiters(engine, None, tmp_path, lambda settings: Recruiter())
    for at in pair.active:
        blocks.before(pair.record(at).name, pair.state(at), batch_of("first"), Account())
    first, second = blocks._hooks.values()
    assert first is not second
    assert first._programs is second._programs
    blocks.close()

"""Blocks inside the LLMs of an ensemble: each member recruits its own, by the same hook as a run of its own would.

A member's hook sees the batches that the member is about to learn from; all hooks share their compiled functions. What
it recruits or retires is booked on the ensemble's account, so that moves of both levels lower one J. While a trial of a
whole LLM is open for a member, and after one that changed it, its hook begins anew: evidence about another state would
be worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from localist_jax import config
from localist_jax.data import Batch, Tokenizer
from localist_jax.hierarchy.account import Account
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.parallel import hosts
from localist_jax.parallel.mesh import make_mesh
from localist_jax.recruitment import recruiter
from localist_jax.recruitment.record import FILE
from localist_jax.training.journal import Journal, read
from localist_jax.training.loop import Hook
from localist_jax.training.run import Run
from localist_jax.training.state import TrainState


class BlockRecruiters:
    """One hook for each member.

    Args:
      engine: whose configuration says when blocks are recruited; the capacity of blocks is the members' common
        shape, so it is not exceeded.
      tokenizer: of the ensemble.
      workdir: gets `members/<name>/recruitment.jsonl`.
      make: a hook from the configuration; default: the one that a run has.
    """

    def __init__(
        self,
        engine: EnsembleEngine,
        tokenizer: Tokenizer,
        workdir: Path,
        make: Callable[[config.Config], Hook] | None = None,
    ):
        capacity = engine.settings.model.block_capacity
        self._settings = engine.settings.replace(recruitment={"blocks_at_most": capacity})
        self._engine, self._tokenizer, self._workdir = engine, tokenizer, workdir
        self._make = make or (lambda settings: recruiter.hooks(settings)[0])
        self._hooks: dict[str, Hook] = {}
        self._booked: dict[str, int] = {}
        self._journals: dict[str, Journal] = {}

    def before(self, name: str, state: TrainState, batch: Batch, account: Account) -> TrainState:
        """The state of a member before it learns from a batch; a block may have joined or left it."""
        step = int(state.step) + 1
        if name not in self._hooks:
            self._begin(name, state, step - 1)
        state = self._hooks[name](step, state, self._engine.placed(batch))
        for record in hosts.agreed(lambda: self._decided(name)):
            if record["kind"] == "recruited":
                account.move(record["llr_bits"], record["cost_bits"])
            elif record["kind"] == "retired":
                account.move(record["llr_bits"], -record["description_bits"])
        return state

    def anew(self, name: str) -> None:
        """A member's state comes from elsewhere now, or will: its hook is dropped, and the next one begins anew."""
        if name in self._hooks:
            self._journals.pop(name).close()
            del self._hooks[name]

    def close(self) -> None:
        """Closes all records."""
        for name in list(self._hooks):
            self.anew(name)

    def _begin(self, name: str, state: TrainState, step: int) -> None:
        folder = self._workdir / "members" / name
        mesh = self._engine.model.mesh or make_mesh(config.Mesh(), jax.devices()[:1])
        run = Run(folder, self._settings, self._engine.model, self._tokenizer, state, mesh)
        self._journals[name] = Journal(folder, resume_step=step)
        self._hooks[name] = self._make(self._settings)
        self._hooks[name].start(run, self._journals[name], step)
        if hosts.is_first():
            self._booked[name] = len(self._read(name))

    def _decided(self, name: str) -> list[dict[str, Any]]:
        """Lines of the member's record that were not booked yet."""
        records = self._read(name)
        new = records[self._booked[name] :]
        self._booked[name] = len(records)
        return new

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self._workdir / "members" / name / FILE
        return read(path) if path.is_file() else []

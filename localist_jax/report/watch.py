"""Pictures of a run while it goes, for TensorBoard: where the router puts what, and what became of the trials."""

from __future__ import annotations

import jax
import numpy as np

from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer, forward
from localist_jax.parallel import hosts
from localist_jax.recruitment import chronicle
from localist_jax.report import figures
from localist_jax.training.journal import Journal
from localist_jax.training.loop import Hook
from localist_jax.training.run import Run
from localist_jax.training.state import TrainState
from localist_jax.types import PyTree


class Watch(Hook):
    """The hook: at evaluations, a map of the router's states, and the timeline of blocks where there was a trial.

    Args:
      every: steps between two looks.
    """

    def __init__(self, every: int):
        self.every = every
        self._axes: np.ndarray | None = None

    def start(self, run: Run, journal: Journal, step: int) -> None:
        """Compiles nothing yet."""
        self._run, self._journal = run, journal
        self._read = jax.jit(_states, static_argnums=0)

    def __call__(self, step: int, state: TrainState, batch: Batch) -> TrainState:
        """Looks at one batch of held-out text; returns the state as it is."""
        run = self._run
        found = self._read(run.model, state.params, state.blocks, run.place(run.valid[0]))
        states, blocks, routed = hosts.whole(found)
        seen, of = states[routed].astype(float), blocks[routed]
        self._axes = axes_between(seen, of, self._axes)
        self._journal.figure(step - 1, "router_map", figures.router_map(seen @ self._axes, of))
        records = chronicle.read(run.workdir)
        if chronicle.trials(records):
            picture = figures.recruitment(records, step - 1)
            self._journal.figure(step - 1, "recruitment", picture)
        return state


def _states(model: Transformer, params: PyTree, blocks: Blocks, batch: Batch):
    """What the router reads, and the blocks it chose, of one batch: what is above the router is not computed."""
    dial = Dial(1.0).broadcast(batch.tokens.shape[0], model.config.layers, model.config.heads)
    out = forward(
        model, params, batch.tokens, dial, blocks, positions=batch.positions, segments=batch.segments
    )
    return out.states, out.blocks, (batch.segments > 0) & (batch.positions > 0)


def axes_between(states: np.ndarray, blocks: np.ndarray, before: np.ndarray | None = None) -> np.ndarray:
    """The plane [D, 2] in which the blocks' mean states lie farthest apart, weighted by their positions.

    Turned as an earlier plane `before` lay, as near as an orthogonal map brings it, so that maps can be compared.
    """
    used, counts = np.unique(blocks, return_counts=True)
    means = np.stack([states[blocks == k].mean(0) for k in used]) - states.mean(0)
    _, _, axes = np.linalg.svd(means * np.sqrt(counts)[:, None], full_matrices=False)
    plane = np.zeros((states.shape[1], 2))
    plane[:, : min(2, len(axes))] = axes[:2].T
    if before is None:
        return plane
    u, _, v = np.linalg.svd(plane.T @ before)
    return plane @ (u @ v)

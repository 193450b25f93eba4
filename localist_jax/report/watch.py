"""A look at a run while it goes: a map of the router, the timeline of blocks, and signs that something is wrong."""

from __future__ import annotations

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial, measures
from localist_jax.locality.router import allowed_blocks, doubt
from localist_jax.model import Transformer, forward
from localist_jax.parallel import hosts
from localist_jax.recruitment import chronicle
from localist_jax.recruitment.signs import BlockSigns, lost_bits, signs
from localist_jax.report import figures
from localist_jax.training.journal import Journal
from localist_jax.training.loop import Hook
from localist_jax.training.run import Run
from localist_jax.training.state import GATES, TrainState, at_path, filing_of
from localist_jax.types import PyTree


class Watch(Hook):
    """The hook: every so many steps it looks at one batch of held-out text, at λ=1.

    Leaves pictures for TensorBoard, a record `signs` in `metrics.jsonl`, and says the signs on standard error.

    Args:
      every: steps between two looks.
    """

    def __init__(self, every: int):
        self.every = every
        self._axes: np.ndarray | None = None
        self._before: np.ndarray | None = None

    def start(self, run: Run, journal: Journal, step: int) -> None:
        """Compiles nothing yet."""
        self._run, self._journal = run, journal
        self._read = jax.jit(_read, static_argnums=0)

    def __call__(self, step: int, state: TrainState, batch: Batch) -> TrainState:
        """Looks; returns the state as it is."""
        run = self._run
        found = hosts.whole(self._read(run.model, state.params, state.blocks, run.place(run.valid[0])))
        states, blocks = (found[name][found["routed"]] for name in ("states", "blocks"))
        records = chronicle.read(run.workdir)
        moved = 0.0 if self._before is None else lost_bits(self._before, blocks)
        self._before = blocks
        in_use = int(allowed_blocks(state.blocks.active, run.settings.model.background).sum())
        look = BlockSigns(
            blocks_in_use=in_use,
            doubt_bits=float(found["doubt_bits"]),
            entropy_bits=float(found["entropy_bits"]),
            open_bits=float(found["open_bits"]),
            moved_bits=moved,
        )
        self._say(step - 1, look, signs(look, records))
        self._draw(step - 1, states.astype(float), blocks, records)
        return state

    def _say(self, step: int, look: BlockSigns, found: dict[str, str]) -> None:
        numbers = {name: float(x) for name, x in dataclasses.asdict(look).items()}
        self._journal.scalars(step, "signs", {**numbers, **dict.fromkeys(found, 1.0)})
        for name, words in found.items():
            self._journal.text(step, f"sign/{name}", words)
            if hosts.is_first():
                print(f"watch: step {step}: {name}: {words}", file=sys.stderr, flush=True)

    def _draw(
        self, step: int, states: np.ndarray, blocks: np.ndarray, records: list[chronicle.Record]
    ) -> None:
        self._axes = axes_between(states, blocks, self._axes)
        self._journal.figure(step, "router_map", figures.router_map(states @ self._axes, blocks))
        if chronicle.tried(records):
            self._journal.figure(step, "recruitment", figures.recruitment(records, step))


def _read(model: Transformer, params: PyTree, chosen: Blocks, batch: Batch) -> dict[str, jax.Array]:
    """Return the router's input and choices and the figures of `BlockSigns` for a batch at λ=1; `routed` is a mask."""
    c = model.config
    dial = Dial(1.0).broadcast(batch.tokens.shape[0], c.layers, c.heads)
    where = {"positions": batch.positions, "segments": batch.segments}
    out = forward(model, params, batch.tokens, dial, chosen, **where, stats="open")
    routed = (batch.segments > 0) & (batch.positions >= c.sink)
    assert out.stats is not None
    gates = at_path(params, GATES)
    filing = filing_of(params, c)
    where_keys = (out.blocks, batch.positions, batch.segments, c.window, out.filed, filing)
    keys = measures.open_keys(gates, *where_keys)

    def mean(x: jax.Array) -> jax.Array:
        """Over layers, heads and the positions that count; x is [L, B, N, T]."""
        here = jnp.broadcast_to(routed[:, None], x.shape)
        return jnp.where(here, x, 0.0).sum() / jnp.maximum(1, here.sum())

    return {
        "states": out.states, "blocks": out.blocks, "routed": routed,
        "doubt_bits": bits.from_nats(doubt(out.block_probs, routed)),
        "entropy_bits": mean(out.stats.entropy_bits[c.router_layer :]),
        "open_bits": mean(jnp.log2(jnp.maximum(keys, 1.0))),
    }  # fmt: skip


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

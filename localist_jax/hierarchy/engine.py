"""Two compiled functions for all members of an ensemble: one computes code lengths, one trains.

Member, contender or a specialist that was loaded a minute ago: each is a state, and states are traced. So recruiting,
dropping, training and consulting LLMs compile nothing after the first call. On a mesh, of one process or many, each
LLM lies on all devices, and every process is given the whole batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer, forward
from localist_jax.parallel import hosts, sharding
from localist_jax.training.run import abstract_state
from localist_jax.training.state import TrainState
from localist_jax.training.step import make_train_step
from localist_jax.types import PyTree


class EnsembleEngine:
    """Codes and trains LLMs of one shape.

    Args:
      model: the network, at the members' capacity of blocks; its mesh is where it runs.
      settings: the configuration that all members share.
      byte_lengths: int [V], bytes of each token.
    """

    def __init__(self, model: Transformer, settings: config.Config, byte_lengths: np.ndarray):
        self.model, self.settings = model, settings
        self._code = jax.jit(self._read)
        where = None
        if model.mesh is not None:
            wanted = abstract_state(model, settings, model.mesh)
            where = (jax.tree.map(lambda leaf: leaf.sharding, wanted), None)
        self._step = jax.jit(make_train_step(model, settings, byte_lengths), out_shardings=where)

    @property
    def compile_count(self) -> int:
        """How often either function was compiled so far."""
        return self._code._cache_size() + self._step._cache_size()  # type: ignore[attr-defined]

    def placed(self, batch: Batch) -> Batch:
        """A batch that every process has whole, where the network wants it."""
        mesh = self.model.mesh
        return batch if mesh is None else hosts.spread(batch, sharding.batch_sharding(mesh))

    def losses(self, state: TrainState, batch: Batch, dial: Dial) -> Float[np.ndarray, "B T"]:
        """Bits of every token at this dial; 0 where nothing is scored."""
        return hosts.whole(self._coded(state, batch, dial)[0])

    def blocks(self, state: TrainState, batch: Batch, dial: Dial) -> Int[np.ndarray, "B T"]:
        """The semantic block of every position."""
        return hosts.whole(self._coded(state, batch, dial)[1])

    def train(self, state: TrainState, batch: Batch) -> TrainState:
        """The state after one step on a batch."""
        return self._step(state, self.placed(batch))[0]

    def _coded(self, state: TrainState, batch: Batch, dial: Dial) -> tuple[jax.Array, jax.Array]:
        c = self.model.config
        full = dial.broadcast(batch.tokens.shape[0], c.layers, c.heads)
        return self._code(state.params, state.blocks, self.placed(batch), full)

    def _read(self, params: PyTree, blocks: Blocks, batch: Batch, dial: Dial):
        where = {"positions": batch.positions, "segments": batch.segments}
        out = forward(self.model, params, batch.tokens, dial, blocks, **where)
        return jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0), out.blocks


class Queue:
    """Documents that wait until there are enough of them for a batch; the oldest go first."""

    def __init__(self, documents: Iterable[Batch] = ()):
        self._rows = list(documents)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self):
        return iter(self._rows)

    def put(self, batch: Batch, which: Sequence[int] | np.ndarray) -> None:
        """Appends rows of a batch."""
        self._rows += [jax.tree.map(lambda x, i=i: np.asarray(x[i : i + 1]), batch) for i in which]

    def take(self, size: int) -> Batch:
        """The first `size` documents as a batch; they leave the queue.

        Raises:
          ValueError: fewer are waiting.
        """
        if len(self._rows) < size:
            raise ValueError(f"queue: {size} documents were asked for, {len(self._rows)} are waiting")
        taken, self._rows = self._rows[:size], self._rows[size:]
        return together(taken)


def together(documents: Iterable[Batch]) -> Batch:
    """Documents, at least one, as one batch."""
    return jax.tree.map(lambda *rows: np.concatenate(rows), *documents)


def apart(batch: Batch, lengths: Sequence[int]) -> list[Queue]:
    """Queues of so many documents each, from the first rows of a batch."""
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    queues = [Queue() for _ in lengths]
    for queue, start, length in zip(queues, starts, lengths, strict=True):
        queue.put(batch, range(start, start + length))
    return queues

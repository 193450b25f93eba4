"""Reading rows with a condition: code length and open share, greedy answers, codes of sentences."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from experiments.localise.subject import Condition
from localist_jax import bits
from localist_jax.data import Batch
from localist_jax.locality import Dial, measures
from localist_jax.model import Transformer, forward
from localist_jax.training.state import GATES, at_path, filing_of
from localist_jax.training.step import pairs_of, perception_share


class Reader:
    """Compiled once for every network and length of row; gates, filing and dial are traced."""

    def __init__(self) -> None:
        self._compiled: dict[Any, Any] = {}

    def _run(self, function, condition: Condition, batch: Batch, *more):
        key = (function, condition.model, condition.within)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(partial(function, condition.model))
        c = condition.model.config
        dial = Dial(condition.dial).broadcast(batch.tokens.shape[0], c.layers, c.heads)
        with condition.within():
            return jax.tree.map(
                np.asarray, self._compiled[key](condition.params, condition.blocks, batch, dial, *more)
            )

    def code(self, condition: Condition, batch: Batch) -> tuple[Float[np.ndarray, " B"], float]:
        """Return bits per token of each row, and the open share of all causal pairs over all layers at λ=1."""
        code, share = self._run(_code, condition, batch)
        return code / np.asarray(batch.scored).sum(1), float(condition.about.get("open_share", share))

    def sums(self, condition: Condition, batch: Batch) -> Float[np.ndarray, " B"]:
        """Return the code length of each row, bits."""
        return self._run(_code, condition, batch)[0]

    def greedy(
        self, condition: Condition, batch: Batch, at: Int[np.ndarray, "B P"]
    ) -> Int[np.ndarray, "B P"]:
        """Return the likeliest token after each of these positions."""
        return self._run(_greedy, condition, batch, at)

    def logits(self, condition: Condition, batch: Batch) -> Float[np.ndarray, "B T V"]:
        """Return the logits."""
        return self._run(_logits, condition, batch)

    def blocks(self, condition: Condition, batch: Batch) -> Int[np.ndarray, "B T"]:
        """Return the block of each position."""
        return self._run(_blocks, condition, batch)


def _out(model: Transformer, params, blocks, batch: Batch, dial: Dial, **options: Any):
    places = {"positions": batch.positions, "segments": batch.segments}
    return forward(model, params, batch.tokens, dial, blocks, **places, **options)


def _code(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    out = _out(model, params, blocks, batch, dial)
    code = jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0)
    gated, always, total = pairs_of(out, batch, model.config)
    perception, filing = perception_share(batch, model.config), filing_of(params, model.config)
    share = measures.open_share(at_path(params, GATES), gated, always, total, perception, filing)
    return code.sum(1), share


def _greedy(model: Transformer, params, blocks, batch: Batch, dial: Dial, at):
    return _out(model, params, blocks, batch, dial, read_at=at).logits.argmax(-1)


def _logits(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    return _out(model, params, blocks, batch, dial).logits


def _blocks(model: Transformer, params, blocks, batch: Batch, dial: Dial):
    return _out(model, params, blocks, batch, dial).blocks

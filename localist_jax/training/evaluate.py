"""Evaluation of a model: code length and attention statistics at any dial, and the sweep over dials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial, measures
from localist_jax.model import Transformer, forward
from localist_jax.training.state import GATES, at_path, filing_of
from localist_jax.training.step import pairs_of, perception_share
from localist_jax.types import PyTree

SWEEP = (0.0, 0.3, 0.6, 0.9, 0.99, 0.999, 1.0)
STATISTICS = ("entropy_bits", "fidelity", "gated_mass", "price_bits")


class Evaluator:
    """Evaluator of one architecture, compiled once for all parameters and dials.

    Args:
      model: the network.
      byte_lengths: int [V], bytes of each token.
    """

    def __init__(self, model: Transformer, byte_lengths: np.ndarray):
        self._layers, self._heads = model.config.layers, model.config.heads
        self._with_statistics = jax.jit(partial(_sums, model, jnp.asarray(byte_lengths), "dense"))
        self._code_length = jax.jit(partial(_sums, model, jnp.asarray(byte_lengths), "none"))

    @property
    def compile_count(self) -> int:
        """How often the function with statistics was compiled so far (`_cache_size` of the jitted function)."""
        return self._with_statistics._cache_size()  # type: ignore[attr-defined]

    def bits_per_token(self, params: PyTree, blocks: Blocks, batches: Iterable[Batch], dial: Dial) -> dict:
        """Return only {"bits_per_token", "bits_per_byte", "accuracy"}."""
        return _ratios(self._total(self._code_length, params, blocks, batches, dial))

    def measure(self, params: PyTree, blocks: Blocks, batches: Iterable[Batch], dial: Dial) -> dict[str, Any]:
        """Return code length, perplexity, attention statistics (over all layers, and by layer) and open share.

        `open_share` is the share of causal pairs with non-zero odds at λ=1, over all layers, window and sink
        included, for the blocks that this dial's states were routed to.
        """
        return _ratios(self._total(self._with_statistics, params, blocks, batches, dial))

    def sweep(
        self,
        params: PyTree,
        blocks: Blocks,
        batches: Sequence[Batch],
        localities: Sequence[float] = SWEEP,
    ) -> list[dict[str, Any]]:
        """Call `measure` at each λ, without recompiling."""
        return [{"locality": x, **self.measure(params, blocks, batches, Dial(x))} for x in localities]

    def _total(self, function, params, blocks, batches, dial):
        total = None
        for batch in batches:
            full = dial.broadcast(batch.tokens.shape[0], self._layers, self._heads)
            sums = function(params, blocks, batch, full)
            total = sums if total is None else jax.tree.map(jnp.add, total, sums)
        if total is None:
            raise ValueError("evaluate: no batches; give a corpus with validation text")
        return jax.tree.map(np.asarray, total)


def window_for_share(model: config.Model, batches: Sequence[Batch], share: float) -> int:
    """Return the smallest window of all layers that, with the sink, opens at least this share of causal pairs.

    It is a control for gates: the same number of open pairs, chosen without learning.
    """
    low, high = 1, max(batch.tokens.shape[1] for batch in batches)
    count = jax.jit(measures.pair_counts, static_argnums=4)
    while low < high:
        middle, opened, total = (low + high) // 2, 0.0, 0.0
        for batch in batches:
            block = jnp.where(batch.positions < model.sink, 0, 1)
            _, near, pairs = count(block, batch.positions, batch.segments, middle, 2)
            opened, total = opened + float(near), total + float(pairs)
        low, high = (low, middle) if opened >= share * total else (middle + 1, high)
    return low


def _sums(model: Transformer, byte_lengths, stats, params, blocks: Blocks, batch: Batch, dial: Dial):
    """Return the sums over one batch that `_ratios` divides, in float32."""
    out = forward(
        model,
        params,
        batch.tokens,
        dial,
        blocks,
        positions=batch.positions,
        segments=batch.segments,
        stats=stats,
    )
    valid = batch.scored
    sums = {
        "bits": jnp.where(valid, bits.code_length(out.logits, batch.targets), 0.0).sum(),
        "tokens": valid.sum(),
        "bytes": jnp.where(valid, byte_lengths[batch.targets], 0).sum(),
        "hits": (valid & (out.logits.argmax(-1) == batch.targets)).sum(),
    }
    if stats == "none":
        return sums
    per_layer = {
        name: jnp.where(valid[:, None], getattr(out.stats, name), 0.0).mean(2).sum((1, 2))
        for name in STATISTICS
    }
    gated, always, total = pairs_of(out, batch, model.config)
    gates = at_path(params, GATES)
    share = measures.open_share(
        gates, gated, always, total, perception_share(batch, model.config), filing_of(params, model.config)
    )
    return {**sums, "layers": per_layer, "open_pairs": share * total, "pairs": total}


def _ratios(sums: dict[str, Any]) -> dict[str, Any]:
    tokens = float(sums["tokens"])
    per_token = float(sums["bits"]) / tokens
    figures: dict[str, Any] = {
        "bits_per_token": per_token,
        "bits_per_byte": float(sums["bits"]) / float(sums["bytes"]),
        "accuracy": float(sums["hits"]) / tokens,
    }
    if "layers" in sums:
        layers = {name: np.asarray(total, np.float64) / tokens for name, total in sums["layers"].items()}
        figures |= {"perplexity": 2.0**per_token, **{name: float(x.mean()) for name, x in layers.items()}}
        figures["open_share"] = float(sums["open_pairs"] / sums["pairs"])
        figures["by_layer"] = {name: [float(y) for y in x] for name, x in layers.items()}
    return figures

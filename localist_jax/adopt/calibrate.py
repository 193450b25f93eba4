"""Localising a pretrained model by looking at it: router, filing and gates from a few thousand tokens, no training.

States → k-means → a router. One pass per batch, in which attention also reads the keys' blocks → the attention mass
that every gate would let through (T17: the gradient of Σ lse with respect to ln ω) → where each head files its keys,
and which gates to open for a budget of pairs. λ=0 stays the original.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import config
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial, budget, clusters, measures
from localist_jax.model import Transformer, forward
from localist_jax.training.state import FILING, GATES, with_leaf
from localist_jax.training.step import pairs_of, perception_share
from localist_jax.types import Key, PyTree

WINDOW, PERCEPTION_WINDOW, SINK = (
    32,
    128,
    4,
)  # as measured on SmolLM2-135M: a small window leaves more pairs to gates
TOKENS_PER_BLOCK = 16  # fewer positions than this for each block, and k-means has nothing to go by
PINNED = 50.0  # nats by which an anchor outweighs every state
Report = Callable[[str, int, int], None]  # stage, batches done, batches in all


@dataclasses.dataclass(frozen=True)
class Look:
    """The findings of a look at some text; gates for every budget can be chosen from them.

    Attributes:
      router: kernel [D, K] and bias [K]; block 0 is the sink's and never chosen.
      blocks: active blocks, with the anchors that were pinned.
      mass: float64 [F, L, N, K, K]; attention mass beyond the always-open pairs under each filing, at λ=0.
      pairs: float64 [F, K, K]; the causal pairs that a gate decides.
      always: pairs that are open whatever the gates are, summed over layers.
      causal: causal pairs of a layer.
      tokens: positions looked at.
      positions: float64 [K]; positions in each block; empty if not kept.
      centres: float32 [K-1, D], unit vectors: the centres of the blocks, without the sink's; empty if not kept.
    """

    router: dict[str, np.ndarray]
    blocks: Blocks
    mass: np.ndarray
    pairs: np.ndarray
    always: float
    causal: float
    tokens: int
    positions: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    centres: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0)))

    def plus(self, more: Mapping[str, Any]) -> Look:
        """Return this look with the tables and counts of more text added, as `MassReader` returns them."""
        return dataclasses.replace(self, **{name: getattr(self, name) + x for name, x in more.items()})


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The findings of a calibration.

    Attributes:
      router: kernel [D, K] and bias [K]; block 0 is the sink's and never chosen.
      filing: int32 [L, G]; where each key/value head files its keys.
      gates: float32 [L, N, K, K]; 0 or 1.
      blocks: active blocks, with the anchors that were pinned.
      tokens: positions looked at.
      mass: share of the attention mass beyond the always-open pairs that the gates let through at λ=0.
    """

    router: dict[str, np.ndarray]
    filing: np.ndarray
    gates: np.ndarray
    blocks: Blocks
    tokens: int
    mass: float

    def describe(self) -> dict[str, float]:
        """The figures for a run's record."""
        return {
            "tokens_calibrated": self.tokens,
            "mass_let_through": round(self.mass, 4),
            "filing_share": round(float(self.filing.mean()), 4),
            "gates_open": round(float(self.gates[..., 1:, 1:].mean()), 4),
        }

    def put_into(self, params: PyTree) -> PyTree:
        """Parameters with this router, filing and gates."""
        params = with_router(params, self.router)
        params = with_leaf(params, FILING, jnp.asarray(self.filing, jnp.float32))
        return with_leaf(params, GATES, jnp.asarray(self.gates))


def shape_of(model: config.Model, blocks: int, delta_rank: int = 0) -> config.Model:
    """The model that a calibration fills in: `blocks` blocks beside the sink's, and a dial on all layers."""
    return dataclasses.replace(
        model, blocks=blocks + 1, block_capacity=blocks + 1, background=False, block_units=0, router_bias=True,
        filings=2, sink=SINK, window=WINDOW, perception_window=PERCEPTION_WINDOW, perception_dialled=True,
        delta_rank=delta_rank,
    )  # fmt: skip


def check(model: config.Model, batches: Sequence[Batch], open_share: float) -> None:
    """Refuses what cannot be calibrated.

    Raises:
      ValueError: a text with too few tokens for the blocks, or an open share that leaves no pair to the gates.
    """
    tokens = sum(int((np.asarray(batch.segments) > 0).sum()) for batch in batches)
    blocks = model.blocks - 1
    if tokens < TOKENS_PER_BLOCK * blocks:
        raise ValueError(
            f"{tokens} tokens to calibrate on are too few for {blocks} blocks; give a corpus of at least "
            f"{TOKENS_PER_BLOCK * blocks} tokens, or ask for at most {max(1, tokens // TOKENS_PER_BLOCK)} blocks"
        )
    least, _, _ = _always_open(model, batches)
    if not least < open_share <= 1:
        raise ValueError(
            f"open_share {open_share:g} must lie between {least:.3f}, what window and sink hold open in rows "
            "of this length, and 1; ask for more, or use a longer context"
        )


def calibrate(
    model: Transformer,
    params: PyTree,
    batches: Sequence[Batch],
    *,
    open_share: float,
    key: Key,
    anchors: Mapping[str, Sequence[int]] | None = None,
    report: Report = lambda *_: None,
) -> Calibration:
    """Finds router, filing and gates of a model at λ=0, by looking at some text.

    Args:
      model: of the shape that `shape_of` makes.
      params: the trunk's weights; router, filing and gates are not read.
      batches: of text, a few thousand positions and more.
      open_share: of all causal pairs of all layers at λ=1, window and sink included.
      key: of k-means.
      anchors: name → token ids; each gets a block of its own, the first ones, to which its tokens always go.
      report: told of progress.

    Raises:
      ValueError: as `check`, or more anchors than blocks.
    """
    check(model.config, batches, open_share)
    return choose(
        model.config, look(model, params, batches, key=key, anchors=anchors, report=report), open_share
    )


def look(
    model: Transformer,
    params: PyTree,
    batches: Sequence[Batch],
    *,
    key: Key,
    anchors: Mapping[str, Sequence[int]] | None = None,
    report: Report = lambda *_: None,
) -> Look:
    """Finds the router, and what each gate would let through; arguments as of `calibrate`."""
    blocks, router, centres, params = _router(model, params, batches, key, anchors or {}, report)
    read, (L, N, K) = MassReader(model), _gates_of(model.config)
    F = model.config.filings
    nothing = np.zeros((F, L, N, K, K)), np.zeros((F, K, K)), 0.0, 0.0, 0, np.zeros(K)
    seen = Look(router, blocks, *nothing, centres)
    for done, batch in enumerate(batches):
        report("attention mass", done, len(batches))
        seen = seen.plus(read(params, blocks, batch))
    report("attention mass", len(batches), len(batches))
    return seen


def _gates_of(model: config.Model) -> tuple[int, int, int]:
    return model.layers - model.router_layer, model.heads, model.block_capacity


class MassReader:
    """A compiled pass over a batch that reads what each gate would let through.

    Args:
      model: of the shape that `shape_of` makes.
    """

    def __init__(self, model: Transformer):
        self._config = model.config
        self._look = jax.jit(partial(_tables, model))

    def __call__(self, params: PyTree, blocks: Blocks, batch: Batch) -> dict[str, Any]:
        """Return mass, pairs, always, causal, tokens and positions of a batch, as in `Look`."""
        mass, pairs, positions = (np.asarray(x, np.float64) for x in self._look(params, blocks, batch))
        _, always, causal = _always_open(self._config, [batch])
        counts = {"always": always, "causal": causal, "tokens": int(positions.sum())}
        return {"mass": mass, "pairs": pairs, "positions": positions, **counts}


def choose(model: config.Model, seen: Look, open_share: float) -> Calibration:
    """Chooses filing and gates for an open share.

    Raises:
      ValueError: a share below what window and sink hold open.
    """
    room = open_share * model.layers * seen.causal - seen.always
    if room < 0:
        least = seen.always / (model.layers * seen.causal)
        raise ValueError(f"open_share {open_share:g} is below {least:.3f}, what window and sink hold open")
    filing, gates, share = _gates(model, seen.mass, seen.pairs, room)
    return Calibration(seen.router, filing, gates, seen.blocks, seen.tokens, share)


def with_router(params: PyTree, router: dict[str, np.ndarray]) -> PyTree:
    """Parameters with this router, on states that are normalised and not weighed."""
    params = _with_plain_states(params)
    leaves = {name: jnp.asarray(x, jnp.float32) for name, x in router.items()}
    return {**params, "router": {**params["router"], **leaves}}


def _with_plain_states(params: PyTree) -> PyTree:
    ones = jnp.ones_like(params["router"]["norm"]["gain"])
    return {**params, "router": {**params["router"], "norm": {"gain": ones}}}


def _always_open(model: config.Model, batches: Sequence[Batch]) -> tuple[float, float, float]:
    """The share of pairs open under closed gates; these pairs, summed over layers; and the causal pairs of a layer."""
    opened = total = 0.0
    for batch in batches:
        block = jnp.where(batch.positions < model.sink, 0, 1)
        _, near, pairs = measures.pair_counts(block, batch.positions, batch.segments, model.window, 2)
        opened += float(perception_share(batch, model).sum() * pairs)
        opened += float(near) * (model.layers - model.router_layer)
        total += float(pairs)
    return opened / max(1.0, model.layers * total), opened, total


def _router(model, params, batches, key, anchors, report):
    """Return blocks (with anchors), the router's leaves, their centres, and parameters with that router."""
    c, params = model.config, _with_plain_states(params)
    blocks = Blocks.create(c.blocks, c.block_capacity, c.anchor_capacity)
    if len(anchors) >= c.blocks - 1:
        raise ValueError(
            f"{len(anchors)} anchored blocks leave none of {c.blocks - 1} to be found; ask for more blocks"
        )
    read = jax.jit(partial(_states, model))
    states, tokens = [], []
    for done, batch in enumerate(batches):
        report("states", done, len(batches))
        keep = np.asarray((batch.segments > 0) & (batch.positions >= c.sink))
        states.append(np.asarray(read(params, blocks, batch), np.float32)[keep])
        tokens.append(np.asarray(batch.tokens)[keep])
    x, token = jnp.asarray(np.concatenate(states)), np.concatenate(tokens)
    standard = clusters.Standard.of(x)
    directions = np.asarray(standard.directions(x))
    free, centres = np.ones(len(token), bool), []
    for nth, ids in enumerate(anchors.values()):
        blocks = blocks.anchored(1 + nth, dict.fromkeys(ids, PINNED))
        mine = np.isin(token, list(ids))
        free &= ~mine
        centres.append(directions[mine].sum(0) if mine.any() else np.zeros(c.width))
    found, _ = clusters.spherical_kmeans(key, jnp.asarray(directions[free]), c.blocks - 1 - len(centres))
    pinned = np.array(centres, np.float32).reshape(-1, c.width)
    pinned /= np.maximum(np.linalg.norm(pinned, axis=-1, keepdims=True), 1e-12)
    directions = np.concatenate([pinned, np.asarray(found)])
    kernel, bias = clusters.router_of(jnp.asarray(directions), standard)
    router = {"kernel": np.pad(kernel, ((0, 0), (1, 0))), "bias": np.pad(bias, (1, 0))}
    return blocks, router, directions, with_router(params, router)


def _states(model: Transformer, params: PyTree, blocks: Blocks, batch: Batch) -> jax.Array:
    """Return what the router reads at λ=0; the layers above it are never computed."""
    return _read(model, params, blocks, batch)[0].states


def _read(model: Transformer, params: PyTree, blocks: Blocks, batch: Batch, **options: Any):
    c = model.config
    dial = Dial(0.0).broadcast(batch.tokens.shape[0], c.layers, c.heads)
    places = {"positions": batch.positions, "segments": batch.segments}
    if not options:
        return forward(model, params, batch.tokens, dial, blocks, **places), None
    return model.apply({"params": params}, batch.tokens, dial, blocks, **places, **options)


def _tables(model, params, blocks, batch):
    """Return mass [F, L, N, K, K] and pairs [F, K, K] that gates decide in a batch, and positions by block [K]."""
    out, sown = _read(model, params, blocks, batch, mutable=["mass"])
    mass = sown["mass"]["localist"]["attention"]["beyond"][0]
    gated, _, _ = pairs_of(out, batch, model.config)
    counted = (batch.segments > 0).astype(jnp.int32).ravel()
    positions = jnp.bincount(out.blocks.ravel(), counted, length=model.config.block_capacity)
    return mass.swapaxes(0, 1).at[..., 0].set(0.0), gated, positions  # the sink's column is open anyway


def _gates(model: config.Model, mass, pairs, room: float):
    """Filing, gates, and the share of the mass that they let through; `room` pairs may be opened in all."""
    decided = float(pairs[0].sum()) * model.heads * (model.layers - model.router_layer)
    share = room * model.heads / max(1.0, decided)
    filing = budget.choose_filing(mass, pairs, min(1.0, share), model.kv_heads)
    mass, pairs = budget.chosen_tables(mass, pairs, filing)
    opened = budget.open_by_mass(mass, pairs, room * model.heads)
    gates = opened.astype(np.float32)
    gates[..., 0] = 1.0
    return filing, gates, float(np.where(opened, mass, 0.0).sum() / max(mass.sum(), 1e-12))

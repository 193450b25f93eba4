"""Controls at the same open share: other gates, other blocks, other text, and the bound of best keys."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments.localise.subject import Condition, Subject
from experiments.told import telling
from localist_jax.adopt.calibrate import Calibration, Look, choose
from localist_jax.locality import budget
from localist_jax.model import layers

KINDS = {  # by name: seconds for a row, about
    "heads": 6.0, "shuffled": 6.0, "own-filing": 6.0, "other-text": 60.0, "random-blocks": 70.0, "word-blocks": 70.0,
    "neighbours": 60.0, "best-keys": 40.0,
}  # fmt: skip
MULTIPLIER = 2654435761  # of Knuth's hash


def made(
    subject: Subject,
    kind: str,
    share: float,
    context: int,
    seed: int,
    names: Sequence[str],
    other: Sequence[str],
) -> Condition:
    """Return a control by its kind, at an open share over all layers."""
    shape = subject.shape()
    if kind == "other-text":
        return subject.calibrated(share, context, seed, other)
    if kind == "best-keys":
        return _best_keys(subject, share, context)
    if kind == "neighbours":  # static blocks, whose gates are chosen by the same masses
        near = dataclasses.replace(shape, neighbours=-(-context // subject.sizes.blocks))
        seen, _ = subject.look(names, context, seed, shape=near, kind=kind)
        return subject.localist(choose(shape, seen, share), model=subject.network(near))
    seen, _ = subject.look(names, context, seed)
    if kind in ("random-blocks", "word-blocks"):
        within = _assigned(kind, _usage(seen), seed)
        seen, _ = subject.look(names, context, seed, within=within, kind=kind)
        return subject.localist(choose(shape, seen, share), within=within)
    if kind == "own-filing":
        return subject.localist(
            choose(shape, dataclasses.replace(seen, mass=seen.mass[:1], pairs=seen.pairs[:1]), share)
        )
    found = choose(shape, seen, share)
    gates = _whole_heads(shape, seen, share) if kind == "heads" else _shuffled(seen, found, seed)
    filing = np.zeros_like(found.filing) if kind == "heads" else found.filing
    return subject.localist(dataclasses.replace(found, gates=gates, filing=filing))


def _whole_heads(shape, seen: Look, share: float) -> np.ndarray:
    """Gates of one block for all: a head sees everything or its window, by mass per pair, for the same budget."""
    mass, pairs = seen.mass[0].sum((-1, -2)), np.full(seen.mass.shape[1:3], seen.pairs[0].sum())
    room = (share * shape.layers * seen.causal - seen.always) * shape.heads
    opened = budget.open_by_mass(mass, pairs, room)
    gates = np.broadcast_to(opened[..., None, None], seen.mass.shape[1:]).astype(np.float32).copy()
    gates[..., 0] = 1.0
    return gates


def _shuffled(seen: Look, found: Calibration, seed: int) -> np.ndarray:
    """Gates drawn at random in each head until it has as many open pairs as it had."""
    rng = np.random.default_rng([seed, 41])
    _, pairs = budget.chosen_tables(seen.mass, seen.pairs, found.filing)
    gates = np.zeros_like(found.gates)
    for layer, head in np.ndindex(gates.shape[:2]):
        counts, opened = pairs[layer, head].ravel(), found.gates[layer, head].ravel() > 0
        order = rng.permutation(np.flatnonzero(counts))
        enough = np.searchsorted(np.cumsum(counts[order]), (counts * opened).sum(), side="right")
        gates[layer, head].ravel()[order[:enough]] = 1.0
    gates[..., 0] = 1.0
    return gates


def _usage(seen: Look) -> np.ndarray:
    """Sizes of the blocks as shares, read off the pairs: a block's queries, near enough, are its positions."""
    queries = seen.pairs[0].sum(-1)
    queries[0] = 0.0
    return queries / queries.sum()


@cache
def _context(
    kind: str, usage: tuple[float, ...], seed: int
) -> Callable[[], contextlib.AbstractContextManager]:
    edges = jnp.cumsum(jnp.asarray(usage))[:-1]

    def block_of(tokens: jax.Array, _: Any) -> jax.Array:
        if kind == "word-blocks":  # each word has one block, drawn once
            draws = (tokens.astype(jnp.uint32) + 1 + seed) * jnp.uint32(MULTIPLIER)
            draw = ((draws >> 8).astype(jnp.float32) + 0.5) / 2.0**24
        else:  # each position has one, whatever stands there; rows differ by their first token
            keys = jax.vmap(lambda first: jax.random.fold_in(jax.random.key(seed), first))(tokens[:, 0])
            draw = jax.vmap(lambda key: jax.random.uniform(key, tokens.shape[1:]))(keys)
        return jnp.maximum(1, jnp.searchsorted(edges, draw, side="right"))

    return lambda: telling(block_of)


def _assigned(kind: str, usage: np.ndarray, seed: int) -> Callable[[], contextlib.AbstractContextManager]:
    """Return the context in which positions are in random blocks of these sizes; the same one for the same sizes."""
    return _context(kind, tuple(usage.tolist()), seed)


def _best_keys(subject: Subject, share: float, context: int) -> Condition:
    """The bound: beyond the window, each query of each head reads the keys that it would attend to most."""
    shape = subject.shape()
    window = subject.window(share, context)
    positions = np.arange(context)
    always = np.minimum(
        positions + 1, shape.window + np.minimum(shape.sink, np.maximum(0, positions + 1 - shape.window))
    )
    perception = np.minimum(positions + 1, shape.perception_window + shape.sink)
    total, localist = (positions + 1).sum(), shape.layers - shape.router_layer
    wanted = (share * shape.layers * total - shape.router_layer * perception.sum()) / localist
    far = positions + 1 - always

    def opened(count: int) -> float:
        return float((always + np.minimum(far, count)).sum())

    count = max(range(context), key=lambda k: (opened(k) <= wanted, k))
    open_share = (localist * opened(count) + shape.router_layer * perception.sum()) / (shape.layers * total)
    params = window.params  # all gates closed
    about = {"best_keys": count, "open_share": float(open_share)}
    return Condition(
        subject.network(shape),
        params,
        subject.blocks,
        1.0,
        within=_attending_to(count, shape.window),
        about=about,
    )


@cache
def _attending_to(count: int, window: int) -> Callable[[], contextlib.AbstractContextManager]:
    usual = layers.attend

    def attend(q, k, v, **call):
        if call["window"] != window:  # of perception
            return usual(q, k, v, **call)
        return best_keys(q, k, v, call["odds"], call["q_block"], count, window), None

    @contextlib.contextmanager
    def within() -> Iterator[None]:
        with mock.patch.object(layers, "attend", attend):
            yield

    return within


def best_keys(q, k, v, odds, block, count: int, window: int) -> jax.Array:
    """Return attention over window, sink (block 0) and, of each query and head, the `count` best keys beyond them.

    Rows are one segment each; scores are a [T, T] array for each head.
    """
    T, groups = q.shape[1], q.shape[2] // k.shape[2]
    k, v = (jnp.repeat(x, groups, 2) for x in (k, v))
    scores = jnp.einsum("BTNH,BSNH->BNTS", q, k, preferred_element_type=jnp.float32) * q.shape[-1] ** -0.5
    gap = jnp.arange(T)[:, None] - jnp.arange(T)
    always = ((gap >= 0) & (gap < window)) | ((gap >= 0) & (block == 0)[:, None, None, :])
    far = jnp.where((gap >= 0) & ~always, scores, -jnp.inf)
    least = jax.lax.top_k(far, count)[0][..., -1:] if count else jnp.full((*scores.shape[:3], 1), jnp.inf)
    scores = jnp.where(always | ((far >= least) & jnp.isfinite(far)), scores, -jnp.inf)
    return jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores, -1), v.astype(jnp.float32)).astype(q.dtype)

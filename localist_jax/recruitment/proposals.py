"""Proposals: which block could be divided, along what, and how many bits that might save. Cheap; a trial decides.

A *survey* reads a few batches and keeps, for every position, the state that the router saw and the slope of its code
length at the last hidden state. Each block in use is then divided in three ways:

- `hard`: its badly coded stretches of text against the others, by the direction in the router's space that tells them
  apart;
- `slow`: along what changes most slowly in its text, the directions in which the mean state of a stretch varies most
  beside single states (slow feature analysis, Wiskott and Sejnowski 2002): what is spoken of outlasts a word;
- `concept`: the positions of tokens that a user, or a rule, named.

Directions are found on one half of the survey and ranked on the other, by one figure: the bits that a correction of the
last hidden state, one for each side, could save to second order (Rao's score statistic), less what it would seem to
save on noise. Ranked where they were found, those with the most freedom to fit noise would win. A model that is still
learning gains something by any division: one that does not stand out from its placebos is not worth a trial. A concept
that somebody named is tried all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from localist_jax import bits
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial
from localist_jax.locality.lineage import RESERVE
from localist_jax.model import Transformer, forward
from localist_jax.parallel import hosts
from localist_jax.types import PyTree

KINDS = ("hard", "slow", "concept")
WAYS = len(KINDS)  # in which a block may be divided
SMALLEST = 32  # positions on either side of a division
RIDGE = 1e-2  # relative, of the regression that turns sides into a direction
CONFIDENCE = 3.0  # nats: mean |margin| of a newcomer over its parent's positions
SIGNIFICANT = 2.0  # standard deviations of the placebos' estimated gains
MOST = 1 << 17  # positions of a survey that are kept
NEARBY = 8  # positions on either side that make a stretch of text
SLOWEST = 3  # directions that are looked at


@dataclasses.dataclass(frozen=True)
class Concept:
    """A named concept that wants a block: token ids and their log-odds in nats."""

    name: str
    anchors: dict[int, float]


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A block divided.

    Attributes:
      kind: hard, slow or concept.
      parent: the block.
      direction: float32 [D]; a position goes to the newcomer where state·direction (+ anchors) exceeds `RESERVE`.
      share: of the parent's positions that do.
      gain_bits: estimate for that half of the surveyed positions on which it was not found.
      positions: of the parent, in the survey.
      name, anchors: of a concept.
    """

    kind: str
    parent: int
    direction: np.ndarray
    share: float
    gain_bits: float
    positions: int
    name: str = ""
    anchors: dict[int, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Survey:
    """n positions as the model sees them at λ=1.

    Attributes:
      states: what the router reads.
      slopes: ∂(code length)/∂(last hidden state), nats.
      block, token: of each position.
      bits: mean code length of the tokens that follow it and its neighbours in the text.
      slow: mean state of it and its neighbours.
    """

    states: Float[np.ndarray, "n D"]
    slopes: Float[np.ndarray, "n D"]
    block: Int[np.ndarray, "n"]
    token: Int[np.ndarray, "n"]
    bits: Float[np.ndarray, "n"]
    slow: Float[np.ndarray, "n D"]


def make_reader(model: Transformer, positions: int = 0):
    """The jitted function that reads one batch for `survey`; compiled once per architecture.

    Args:
      model: the network.
      positions: in a whole survey; of more than `MOST` every so many in the text are kept, since hosts read them all.
    """
    return jax.jit(partial(_read, model, every=max(1, -(-positions // MOST))))


def survey(reader, params: PyTree, blocks: Blocks, batches: Iterable[Batch]) -> Survey:
    """Reads `batches`; positions that are padding, sinks or not scored are left out."""
    parts = []
    for batch in batches:
        *arrays, keep = hosts.whole(reader(params, blocks, batch))
        parts.append([x[keep] for x in arrays])
    states, slopes, block, code, token, slow = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Survey(states, slopes, block, token, code, slow)


def proposals(found: Survey, active: Sequence[bool], concepts: Sequence[Concept] = ()) -> list[Proposal]:
    """Divisions of every block in use, the most promising first."""
    made = []
    for parent in np.flatnonzero(active)[1:]:
        if not can_be_divided(found, parent):
            continue
        halves = _halves(found, parent)
        states, code = found.states[halves[0]], found.bits[halves[0]]
        sides = code > _between_two_levels(code)
        divisions = [("hard", sides)] + [("slow", x) for x in _slow(states, found.slow[halves[0]], code)]
        for kind, sides in divisions:
            if min(sides.sum(), (~sides).sum()) >= SMALLEST:
                made.append(_along(found, halves[1], kind, _direction(states, sides)))
        made += [_of_concept(found, halves[1], concept) for concept in concepts]
    return sorted((p for p in made if p is not None), key=lambda p: -p.gain_bits)


def of_one_parent(ranked: list[Proposal]) -> list[Proposal]:
    """The best proposal, and the best of each other kind (or concept) for the same parent."""
    best: dict[tuple[str, str], Proposal] = {}
    for proposal in ranked:
        if proposal.parent == ranked[0].parent:
            best.setdefault((proposal.kind, proposal.name), proposal)
    return list(best.values())


def filled(candidates: list[Proposal], places: int) -> list[Proposal]:
    """In each place of a trial a candidate; copies that nobody counts where there are fewer."""
    return candidates + candidates[:1] * (places - len(candidates))


def can_be_divided(found: Survey, parent: int) -> bool:
    """Whether enough positions of a block are there, in both halves of the survey."""
    return min(half.sum() for half in _halves(found, parent)) >= 2 * SMALLEST


def worth_a_trial(found: Survey, proposal: Proposal, directions: Sequence[np.ndarray]) -> bool:
    """Whether its gain stands out from what its placebos would gain, or somebody asked for it."""
    mine = _halves(found, proposal.parent)[1]
    states, slopes = found.states[mine], found.slopes[mine]
    random = np.array([gain_bits(slopes, _taken(states, direction)) for direction in directions])
    return bool(proposal.name) or proposal.gain_bits > random.mean() + SIGNIFICANT * random.std(ddof=1)


def estimates(found: Survey, proposal: Proposal, directions: Sequence[np.ndarray]) -> list[float]:
    """`gain_bits` of the proposal, then of other directions, on another survey than that which proposed it."""
    mine = found.block == proposal.parent
    states, slopes, token = found.states[mine], found.slopes[mine], found.token[mine]
    taken = _taken(states, proposal.direction) | np.isin(token, list(proposal.anchors))
    return [gain_bits(slopes, taken), *(gain_bits(slopes, _taken(states, d)) for d in directions)]


def placebos(found: Survey, proposal: Proposal, rng: np.random.Generator, count: int) -> list[np.ndarray]:
    """Directions [D] that divide the proposal's parent in the same proportion, at random.

    They are drawn among those that know nothing of the proposal's division: on either side of it, a placebo takes as
    many of its positions. A random direction left as it is would often have a part of what the proposal has found.
    """
    mine = found.block == proposal.parent
    states, token = found.states[mine], found.token[mine]
    taken = _taken(states, proposal.direction) | np.isin(token, list(proposal.anchors))
    known, white = taken - taken.mean(), _whitened(states)

    def one() -> np.ndarray:
        along = white @ rng.normal(size=states.shape[1])
        along -= known * (along @ known) / max(known @ known, 1e-12)
        direction = _direction(states, along > np.quantile(along, 1 - proposal.share))
        least = np.quantile(states @ direction, 1 - proposal.share)  # of the positions that it is to take
        return direction * np.float32(RESERVE / least if least > 0 else 1.0)

    return [one() for _ in range(count)]


def gain_bits(slopes: Float[np.ndarray, "n D"], sides: Bool[np.ndarray, "n"]) -> float:
    """Rao's score statistic of a correction per side, beyond one for both, in bits; its mean on noise is taken off.

    ½ Σ_s (Σ_{i∈s} g_i)ᵀ F_s⁻¹ (Σ_{i∈s} g_i) with F_s = Σ_{i∈s} g_i g_iᵀ; each term has mean D/2 nats
    where g has mean 0.
    """
    return _score(slopes[sides]) + _score(slopes[~sides]) - _score(slopes)


def _halves(found: Survey, parent: int) -> tuple[np.ndarray, np.ndarray]:
    """The positions of a block on which directions are found, and those on which they are ranked."""
    mine, finding = found.block == parent, np.arange(len(found.block)) < len(found.block) // 2
    return mine & finding, mine & ~finding


def _taken(states: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """Which positions the router will give to a newcomer in this direction."""
    return states @ direction > RESERVE


def _score(slopes: np.ndarray) -> float:
    n, D = slopes.shape
    total, fisher = slopes.sum(0), slopes.T @ slopes
    ridge = 1e-3 * np.trace(fisher) / D + 1e-12
    nats = 0.5 * total @ np.linalg.solve(fisher + ridge * np.eye(D), total)
    return float(bits.from_nats(nats - 0.5 * min(n, D)))


def _along(found: Survey, mine: np.ndarray, kind: str, direction: np.ndarray) -> Proposal | None:
    return _ranked(found, mine, _taken(found.states[mine], direction), kind=kind, direction=direction)


def _slow(states: np.ndarray, slow: np.ndarray, code: np.ndarray) -> list[np.ndarray]:
    """Sides along the slowest directions; those are taken that are coded worse."""
    stretches = (slow - slow.mean(0)) @ _whitening(states)
    axes = np.linalg.eigh(stretches.T @ stretches).eigenvectors[:, -SLOWEST:]
    made = []
    for along in (stretches @ axes).T:
        sides = along > _between_two_levels(along)
        made.append(sides if (code - code.mean()) @ sides >= 0 else ~sides)
    return made


def _of_concept(found: Survey, mine: np.ndarray, concept: Concept) -> Proposal | None:
    taken = np.isin(found.token[mine], list(concept.anchors))
    nowhere = np.zeros(found.states.shape[1], np.float32)
    return _ranked(
        found, mine, taken, kind="concept", direction=nowhere, name=concept.name, anchors=concept.anchors
    )


def _ranked(found: Survey, mine: np.ndarray, taken: np.ndarray, **what: Any) -> Proposal | None:
    """The proposal with its figures; None if a side would have next to nothing."""
    if min(taken.sum(), (~taken).sum()) < SMALLEST:
        return None
    return Proposal(
        parent=int(found.block[mine][0]), share=float(taken.mean()), positions=int(mine.sum()),
        gain_bits=gain_bits(found.slopes[mine], taken), **what,
    )  # fmt: skip


def _direction(states: np.ndarray, sides: np.ndarray) -> np.ndarray:
    """The direction whose sign tells the sides apart, by ridge regression; the sides weigh the same."""
    weight = np.where(sides, 0.5 / max(1, sides.sum()), 0.5 / max(1, (~sides).sum()))
    weighted = states * weight[:, None]
    gram = states.T @ weighted
    ridge = RIDGE * np.trace(gram) / len(gram)
    direction = np.linalg.solve(gram + ridge * np.eye(len(gram)), weighted.T @ np.where(sides, 1.0, -1.0))
    scale = np.abs(states @ direction).mean()
    return (direction * CONFIDENCE / max(scale, 1e-12)).astype(np.float32)


def _between_two_levels(x: np.ndarray) -> float:
    """The threshold that tells two levels apart best: it has the largest variance between the sides (Otsu 1979)."""
    ordered = np.sort(x)
    below = np.arange(1, len(x))
    excess = np.cumsum(ordered)[:-1] - below * ordered.mean()
    at = np.argmax(np.square(excess) / (below * (len(x) - below)))
    return float(ordered[at : at + 2].mean())


def _whitened(x: np.ndarray) -> np.ndarray:
    """Centred, and scaled along its principal axes to unit variance (with a ridge)."""
    return (x - x.mean(0)) @ _whitening(x)


def _whitening(x: np.ndarray) -> np.ndarray:
    """The matrix [D, D] that does so."""
    centred = x - x.mean(0)
    values, axes = np.linalg.eigh(centred.T @ centred / len(x))
    return axes / np.sqrt(np.maximum(values, 0) + RIDGE * max(values.mean(), 1e-12))


def _read(model: Transformer, params: PyTree, blocks: Blocks, batch: Batch, every: int):
    c = model.config
    dial = Dial(1.0).broadcast(batch.tokens.shape[0], c.layers, c.heads)
    out = forward(
        model, params, batch.tokens, dial, blocks, positions=batch.positions, segments=batch.segments
    )
    logits, targets = out.logits[:, ::every], batch.targets[:, ::every]
    excess = jax.nn.softmax(logits) - jax.nn.one_hot(targets, logits.shape[-1])
    head = params["embedding"] if c.tied else params["head"]
    slopes = jnp.einsum("BTV,VD->BTD", excess, head)
    states, keep = out.states.astype(jnp.float32), batch.scored & (batch.positions >= c.sink)
    code = bits.code_length(out.logits, batch.targets)
    code, slow = _around(code[..., None], batch)[..., 0], _around(states, batch)
    rest = (out.blocks, code, batch.tokens, slow, keep)
    return states[:, ::every], slopes, *(x[:, ::every] for x in rest)


def _around(x: Float[jax.Array, "B T D"], batch: Batch) -> jax.Array:
    """Means over the scored positions of the same segment that are at most `NEARBY` away."""
    place = jnp.arange(x.shape[1])
    near = jnp.abs(place[:, None] - place) <= NEARBY
    near = near & (batch.segments[:, :, None] == batch.segments[:, None]) & batch.scored[:, None]
    x = jnp.where(batch.scored[..., None], x, 0)  # what is not scored may be anything
    return jnp.einsum("Bts,BsD->BtD", near.astype(x.dtype), x) / jnp.maximum(1, near.sum(-1))[..., None]

"""Growth: a state gains a block (or, by the same code, an ensemble gains a member), and no output changes at birth.

A newcomer is a copy, but for its localist units. Along every axis that counts blocks, in parameters, optimizer moments
and running means, its place is filled with its parent's, found by the leaf's path and the names of its axes. Its
positions go on through its parent's units; its own are fresh ones beside them, without output yet. So it codes every
text as its parent did (T15). Its units begin without momentum and with their parent's second moments, so that its first
optimizer steps are no larger than its parent's. Inside the capacity only values change, so nothing is compiled again;
beyond it the axes are widened first, and everything is placed anew by its logical axes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from localist_jax import config
from localist_jax.locality import gates as gating
from localist_jax.locality import lineage
from localist_jax.parallel import sharding
from localist_jax.training.state import GATES, ROUTER, TrainState, at_path, optimizer, with_leaf
from localist_jax.types import Numeric, PyTree, struct

BLOCK_AXES = ("block", "block_q", "block_k", "router_block")
SPECIALIST_AXES = ("specialist",)
OWN = ("localist", "units")  # what a newcomer does not share with its parent

# Axes of the leaves that carry no box with their names.
UNBOXED = {
    "blocks/active": ("block",),
    "blocks/parent": ("block",),
    "blocks/born": ("block",),
    "blocks/anchor_tokens": ("block", "anchor"),
    "blocks/anchor_log_odds": ("block", "anchor"),
    "pricing/pairs": ("block_q", "block_k"),
    "pricing/gradient": ("layers", "heads", "block_q", "block_k"),
}

Names = tuple[
    tuple[str, tuple[str | None, ...]], ...
]  # (path, names of its axes), of the leaves that have names


@struct
class Birth:
    """A block to be: all of it traced, so that every birth runs through one compiled program.

    Attributes:
      child, parent: int32; its place, and the block whose positions it will divide.
      number: int32, of its birth in this run, from 1.
      share: float32 in [0, 1], of the parent's positions that it will take.
      direction: float32 [D]; what its router column has beyond its parent's, nats per unit of the router's state.
      units: {"in": [L, D, U], "out": [L, U, D]}, its own, beside those of its ancestors.
      opt_state: of the run's optimizer, for {"localist": {"units": units}}.
    """

    child: chex.Array
    parent: chex.Array
    number: chex.Array
    share: chex.Array
    direction: chex.Array
    units: PyTree
    opt_state: PyTree

    @classmethod
    def blank(cls, settings: config.Config) -> Birth:
        """Zeros of the right shapes."""
        c, whole = settings.model, jnp.zeros((), jnp.int32)
        layers = c.layers - c.router_layer
        units = {
            "in": jnp.zeros((layers, c.width, c.block_units)),
            "out": jnp.zeros((layers, c.block_units, c.width)),
        }
        moments = optimizer(settings).init(with_leaf({"localist": {}}, OWN, units))
        return cls(
            child=whole, parent=whole, number=whole, share=jnp.zeros(()), direction=jnp.zeros(c.width),
            units=units, opt_state=moments,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class GrowthReport:
    """The report of a growth.

    Attributes:
      births: (child, parent) of each newcomer.
      capacity: blocks allocated, before and after.
      copied, widened: leaves in which a newcomer got its parent's place; leaves that got larger.
      parameters: that newcomers bring into use.
      seconds: it took, with placing.
    """

    births: tuple[tuple[int, int], ...]
    capacity: tuple[int, int]
    copied: int
    widened: int
    parameters: int
    seconds: float


def axis_names(boxed: PyTree) -> Names:
    """The axis names of every leaf that has some, by path; `boxed` as `training.run.boxed_state` makes it."""
    found: dict[str, tuple[str | None, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box):
        name = _path(path)
        if _is_box(leaf):
            found[name] = tuple(leaf.names)
        elif name in UNBOXED:
            found[name] = UNBOXED[name]
    return tuple(found.items())


def copied(tree: PyTree, names: Names, axes: Sequence[str], source: Numeric, target: Numeric) -> PyTree:
    """`tree` with place `target` along all of `axes` filled with what stands at `source`; may be traced."""

    def along(leaf: jax.Array, axis: int) -> jax.Array:
        slice_ = jax.lax.dynamic_index_in_dim(leaf, source, axis)
        return jax.lax.dynamic_update_index_in_dim(leaf, slice_, target, axis)

    return _on_axes(tree, names, axes, along)


def widened(tree: PyTree, names: Names, axes: Sequence[str], capacity: int) -> PyTree:
    """`tree` with `axes` padded to `capacity`: zeros, which no active block reads."""

    def along(leaf: jax.Array, axis: int) -> jax.Array:
        room = [(0, capacity - leaf.shape[axis] if i == axis else 0) for i in range(leaf.ndim)]
        return jnp.pad(leaf, room)

    return _on_axes(tree, names, axes, along)


def fresh(blank: Birth, names: Names, state: TrainState, parent: Numeric, number: Numeric) -> Birth:
    """`blank` with the units of a newcomer below `parent` and what the optimizer knows of them; may be traced.

    Args:
      blank: as `Birth.blank` makes it.
      names: of the axes of the state's leaves.
      state: that it will join; its key and `number`, of the birth, decide what the units read.
      parent: of the newcomer.
    """
    by_path, known = dict(names), dict(_flat(state.opt_state))

    def moment(path: Any, _: jax.Array) -> jax.Array:
        name = _path(path)
        leaf, axes = known[name], by_path.get(f"opt_state/{name}", ())
        if "block" not in axes:
            return leaf  # a count
        parents = jax.lax.dynamic_index_in_dim(leaf, parent, axes.index("block"), keepdims=False)
        return parents if "/nu/" in name else jnp.zeros_like(parents)

    reads = jax.random.normal(jax.random.fold_in(state.key, number), blank.units["in"].shape)
    return dataclasses.replace(
        blank,
        units={**blank.units, "in": reads * reads.shape[1] ** -0.5},
        opt_state=jax.tree_util.tree_map_with_path(moment, blank.opt_state),
    )


def grow(
    state: TrainState, births: Sequence[Birth], boxed: TrainState, mesh: Mesh, generations: int
) -> tuple[TrainState, GrowthReport]:
    """A state with these newcomers, in the order given; pure.

    Args:
      state: before; its arrays are left alone.
      births: may be empty, to only widen.
      boxed: the abstract state of the capacity wanted (`training.run.boxed_state`), at least the present one.
      mesh: where the state will lie.
      generations: of the model: how many blocks in a line of descent add up their units.

    Raises:
      ValueError: a capacity below the present one, or a place or parent that does not fit, by name.
    """
    begun = time.perf_counter()
    before, after = state.blocks.active.size, boxed.blocks.active.size
    _check(state, births, before, after, generations)
    names = axis_names(boxed)
    larger = 0
    if after > before:
        state = _with_room(state, names, before, after)
        larger = _count(names)
    for birth in births:
        state = _born(names, state, birth)
    state = jax.device_put(state, sharding.state_shardings(boxed, mesh))
    jax.block_until_ready(state)
    pairs = tuple((int(b.child), int(b.parent)) for b in births)
    size = parameters_of_a_block(boxed)
    copies = _count(names) if births else 0
    seconds = time.perf_counter() - begun
    return state, GrowthReport(pairs, (before, after), copies, larger, size * len(pairs), seconds)


def retire(state: TrainState, block: Numeric) -> TrainState:
    """A state without `block`, which has no children: its parent takes back positions and pairs. May be traced."""
    parent = state.blocks.parent[block]
    pricing = state.pricing
    folded = {
        name: _fold(_fold(getattr(pricing, name), block, parent, -2), block, parent, -1)
        for name in ("pairs", "gradient")
    }
    return dataclasses.replace(
        state, blocks=state.blocks.without(block), pricing=dataclasses.replace(pricing, **folded)
    )


def born_params(params: PyTree, names: Names, birth: Birth) -> PyTree:
    """Parameters after a birth: gates as they act, so that a child of block 0 is as open as block 0."""
    gates = at_path(params, GATES)
    acting = jnp.where(birth.parent == 0, gating.with_open_column(gates), gates)
    params = copied(with_leaf(params, GATES, acting), names, BLOCK_AXES, birth.parent, birth.child)
    own = {name: w.at[:, birth.child].set(birth.units[name]) for name, w in at_path(params, OWN).items()}
    params = with_leaf(params, OWN, own)
    kernel = at_path(params, ROUTER)
    return with_leaf(params, ROUTER, kernel.at[:, birth.child].add(birth.direction))


def parameters_of_a_block(boxed: TrainState) -> int:
    """Parameters that one more block brings into use: everything at one place of a block axis."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed.params, is_leaf=_is_box):
        sizes = [n for n, name in zip(leaf.value.shape, leaf.names, strict=True) if name in BLOCK_AXES]
        if sizes:
            assert len(set(sizes)) == 1, _path(path)
            n, all_of_it = sizes[0], leaf.value.size
            rest = all_of_it // n ** len(sizes)
            total += rest * (n ** len(sizes) - (n - 1) ** len(sizes))
    return total


@partial(jax.jit, static_argnums=0)
def _born(names: Names, state: TrainState, birth: Birth) -> TrainState:
    within = partial(_below, names)
    moments = copied(state.opt_state, within("opt_state"), BLOCK_AXES, birth.parent, birth.child)
    moments = _with_moments(moments, within("opt_state"), birth)
    pricing = copied(state.pricing, within("pricing"), BLOCK_AXES, birth.parent, birth.child)
    part = jnp.ones(state.blocks.active.size)
    part = part.at[birth.parent].set(1 - birth.share).at[birth.child].set(birth.share)
    both = part[:, None] * part
    return dataclasses.replace(
        state,
        params=born_params(state.params, within("params"), birth),
        opt_state=moments,
        pricing=dataclasses.replace(pricing, pairs=pricing.pairs * both, gradient=pricing.gradient * both),
        blocks=state.blocks.with_child(birth.child, birth.parent, birth.number),
    )


def _with_moments(opt_state: PyTree, names: Names, birth: Birth) -> PyTree:
    """The newcomer's own moments in their place."""
    by_path, own = dict(names), dict(_flat(birth.opt_state))

    def put(path: Any, leaf: jax.Array) -> jax.Array:
        axes = by_path.get(name := _path(path), ())
        if name not in own or "block" not in axes:
            return leaf
        return jax.lax.dynamic_update_index_in_dim(leaf, own[name], birth.child, axes.index("block"))

    return jax.tree_util.tree_map_with_path(put, opt_state)


def _flat(tree: PyTree) -> list[tuple[str, jax.Array]]:
    return [(_path(path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def _with_room(state: TrainState, names: Names, before: int, after: int) -> TrainState:
    """Room for more blocks; the new places are roots of their own that are not in use."""
    state = widened(state, names, BLOCK_AXES, after)
    blocks = state.blocks
    place = jnp.arange(after, dtype=jnp.int32)
    empty = (place >= before)[:, None]
    return dataclasses.replace(
        state,
        blocks=dataclasses.replace(
            blocks,
            parent=jnp.where(place < before, blocks.parent, place),
            anchor_tokens=jnp.where(empty, -1, blocks.anchor_tokens),
        ),
    )


def _check(state: TrainState, births: Sequence[Birth], before: int, after: int, generations: int) -> None:
    if after < before:
        raise ValueError(f"grow: block_capacity {after} is below the state's {before}; growth never shrinks")
    active = set(jnp.flatnonzero(state.blocks.active).tolist())
    depth = dict(enumerate(lineage.depth(state.blocks.parent).tolist()))
    for birth in births:
        child, parent = int(birth.child), int(birth.parent)
        if not 0 < child < after or child in active:
            raise ValueError(
                f"grow: expected a place for the child in 1 … {after - 1} that is not in use, got {child}"
            )
        if parent not in active:
            raise ValueError(f"grow: expected a parent that is in use, got block {parent}")
        depth[child] = depth[parent] + 1
        if depth[child] >= generations:
            raise ValueError(
                f"grow: block {child} would stand {depth[child]} generations below its root, and "
                f"config.model.generations = {generations} counts the root; raise it, or divide an elder block"
            )
        active.add(child)


def _fold(leaf: jax.Array, source: Numeric, target: Numeric, axis: int) -> jax.Array:
    """Adds place `source` of an axis to place `target`, and leaves 0 there."""
    rows = jnp.moveaxis(leaf, axis, 0)
    return jnp.moveaxis(rows.at[target].add(rows[source]).at[source].set(0.0), 0, axis)


def _on_axes(tree: PyTree, names: Names, axes: Sequence[str], change: Any) -> PyTree:
    by_path = dict(names)

    def on(path, leaf):
        for axis, name in enumerate(by_path.get(_path(path), ())):
            if name in axes:
                leaf = change(leaf, axis)
        return leaf

    return jax.tree_util.tree_map_with_path(on, tree)


def _below(names: Names, head: str) -> Names:
    """The names of the leaves of one field of the state, by their path inside it."""
    return tuple((path.removeprefix(f"{head}/"), n) for path, n in names if path.startswith(f"{head}/"))


def _count(names: Names) -> int:
    return sum(any(name in BLOCK_AXES for name in n) for _, n in names)


def _is_box(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")

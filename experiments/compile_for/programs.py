"""The programs of a run, lowered from shapes alone: the training step, a generation step, and growth."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from localist_jax import config
from localist_jax.data import Batch
from localist_jax.locality import Dial
from localist_jax.model import Transformer
from localist_jax.model.cache import Cache
from localist_jax.model.generate import read_tokens
from localist_jax.parallel import sharding
from localist_jax.parallel.flops import matrix_flops
from localist_jax.recruitment import growth
from localist_jax.training.run import abstract_state, boxed_state
from localist_jax.training.step import make_train_step

# Products of [T, H] with [H, T] or [T, T] with [T, H] per attention layer: scores and values; backward the scores,
# the gradients of scores, values, queries and keys, the first two of them twice.
FORWARD, BACKWARD = 2, 7


@dataclasses.dataclass(frozen=True)
class Lowered:
    """A program for all devices: each specialist's, side by side.

    Attributes:
      lowered: ready to compile.
      tokens: that one call reads or makes.
      flops: matrix products of one call, over all devices, attention as dense as λ=0 makes it.
      model_flops: 6 (or 2) per parameter and token, and attention's: what any implementation must do.
    """

    lowered: jax.stages.Lowered
    tokens: int
    flops: float
    model_flops: float


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A configuration on a mesh; `state` is of one specialist."""

    settings: config.Config
    mesh: Mesh
    model: Transformer
    state: Any

    @classmethod
    def of(cls, settings: config.Config, mesh: Mesh) -> Shapes:
        """Raises ValueError where a size does not divide."""
        rows, parts = settings.data.batch, sharding.shards("batch", mesh)
        if rows % parts:
            raise ValueError(
                f"config.data.batch: {rows} rows do not divide over the {parts} shards of config.mesh"
            )
        model = Transformer(settings.model, settings.data.vocab_size, parts, mesh)
        return cls(settings, mesh, model, abstract_state(model, settings, mesh))

    @property
    def specialists(self) -> int:
        """LLMs that run side by side."""
        return self.mesh.shape["specialist"]

    def trace(self, function: Callable[..., Any], *trees: Any, donate: tuple[int, ...] = ()):
        """`function` of one specialist's trees, traced for all specialists."""
        every = jax.jit(sharding.for_each_specialist(function, self.mesh), donate_argnums=donate)
        return every.trace(*sharding.stacked(trees, self.mesh))

    def array(self, shape: tuple[int, ...], *names: str | None, dtype: Any = jnp.int32):
        """An array split by logical axes."""
        spec = PartitionSpec(*(name and (sharding.mesh_axes(name, self.mesh) or None) for name in names))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(self.mesh, spec))

    @property
    def parameters(self) -> int:
        """Return how many parameters one LLM has."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.state.params))

    @property
    def used_parameters(self) -> int:
        """Return how many parameters one position meets: its own block's units only, and no table of embeddings."""
        c, p = self.settings.model, self.state.params
        units = sum(leaf.size for leaf in jax.tree.leaves(p["localist"].get("units", {})))
        gates = p["localist"]["attention"]["gates"].size
        table = 0 if c.tied else p["embedding"].size
        return self.parameters - gates - table - round(units * (1 - 1 / c.block_capacity))

    def attention_flops(self, queries: int, products: int, cached: bool = False) -> float:
        """Return the operations of `products` products over all layers: causal pairs in localist ones, else the window.

        Args:
          queries: of all specialists.
          products: of [T, H] with [H, T], or the like.
          cached: each query sees a whole context.
        """
        c, T = self.settings.model, self.settings.data.context
        dense = T if cached else (T + 1) / 2
        near = min(c.perception_window, dense) if c.perception_window else dense
        pairs = queries * (near * c.router_layer + dense * (c.layers - c.router_layer))
        return 2.0 * products * pairs * c.heads * c.head_size


def train(s: Shapes) -> Lowered:
    """The training step, its state donated."""
    c, d = s.settings.model, s.settings.data
    rows = s.array((d.batch, d.context), "batch")
    step = make_train_step(s.model, s.settings, np.ones(d.vocab_size, np.int32))
    traced = s.trace(step, s.state, Batch(rows, rows, rows, rows), donate=(0,))
    tokens = s.specialists * d.batch * d.context
    again = FORWARD if c.remat else 0
    return Lowered(
        lowered=traced.lower(),
        tokens=tokens,
        flops=matrix_flops(traced.jaxpr) + s.attention_flops(tokens, FORWARD + BACKWARD + again),
        model_flops=6.0 * s.used_parameters * tokens + s.attention_flops(tokens, 6),
    )


def generate(s: Shapes) -> Lowered:
    """One new token for each of `data.batch` requests that have read `data.context` positions."""
    d, c = s.settings.data, s.settings.model
    cache = jax.eval_shape(partial(Cache.create, c, d.batch, d.context))

    def split(leaf):
        keys = leaf.ndim == 5  # [L, B, S, G, H]
        names = (None, "batch", None, "kv_heads") if keys else ("batch",)
        return s.array(leaf.shape, *names, dtype=leaf.dtype)

    token = s.array((d.batch, 1), "batch")
    dial = jax.tree.map(
        lambda leaf: s.array(leaf.shape, "batch", dtype=leaf.dtype),
        jax.eval_shape(lambda: Dial(0.5).broadcast(d.batch, c.layers, c.heads)),
    )

    def read(params, blocks, cache, token, position, segment, at, dial):
        return read_tokens(
            s.model, params, blocks, cache, token, position, segment, at, dial, None, stats="none"
        )

    traced = s.trace(
        read, s.state.params, s.state.blocks, jax.tree.map(split, cache), token, token, token,
        s.array((d.batch,), "batch"), dial, donate=(2,),
    )  # fmt: skip
    requests = s.specialists * d.batch
    attention = s.attention_flops(requests, FORWARD, cached=True)
    return Lowered(
        lowered=traced.lower(),
        tokens=requests,
        flops=matrix_flops(traced.jaxpr) + attention,
        model_flops=2.0 * s.used_parameters * requests + attention,
    )


def grow(s: Shapes) -> Lowered:
    """A birth beyond the capacity: block axes are doubled, the newcomer is copied, everything is placed anew."""
    before = s.settings.model.block_capacity
    wide = s.settings.replace(model={"block_capacity": 2 * before})
    boxed = boxed_state(dataclasses.replace(s.model, config=wide.model), wide)
    names = growth.axis_names(boxed)

    def born(state, birth):
        return growth._born(names, growth._with_room(state, names, before, 2 * before), birth)

    birth = jax.tree.map(
        lambda x: s.array(x.shape, dtype=x.dtype), jax.eval_shape(partial(growth.Birth.blank, wide))
    )
    after = sharding.stacked(
        abstract_state(dataclasses.replace(s.model, config=wide.model), wide, s.mesh), s.mesh
    )
    every = jax.jit(
        sharding.for_each_specialist(born, s.mesh),
        out_shardings=jax.tree.map(lambda leaf: leaf.sharding, after),
    )
    return Lowered(every.trace(*sharding.stacked((s.state, birth), s.mesh)).lower(), 0, 0.0, 0.0)


PROGRAMS: dict[str, Callable[[Shapes], Lowered]] = {"train": train, "generate": generate, "grow": grow}

"""The contenders that are timed: `attend` and JAX's own attention, compiled and ready to be called."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import blocks_of
from localist_jax.attention import attend
from localist_jax.attention.tiles import Marks, by_block
from localist_jax.model.cache import page_size

WINDOW = 8
PRODUCTS, PRODUCT_PAIRS = (
    40,
    1 << 19,
)  # of tiles alone: how many in a call, and pairs of queries and keys of each


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes at which each figure is measured.

    Attributes:
      batch, heads, head_size, dtype: of all calls.
      implementation: of ours.
      capacity: blocks that the odds have room for; 0: as many as there are. With room for all that are measured, one
        program serves them.
      dense, density, long, decode: tokens, and blocks where there are two.
      details, reference, flex: up to how many tokens also λ=0.9 and statistics, the reference implementation, and
        FlexAttention, whose mask is made from every pair of positions.
      blocks, flex_blocks: 1/density.
    """

    batch: int = 1
    heads: int = 4
    head_size: int = 64
    dtype: str = "float32"
    implementation: str = "sparse"
    capacity: int = 0
    dense: tuple[int, ...] = tuple(1 << n for n in range(9, 17))
    details: int = 8192
    reference: int = 2048
    flex: int = 16384
    density: int = 8192
    blocks: tuple[int, ...] = (4, 8, 16, 32, 64)
    flex_blocks: tuple[int, ...] = (4, 8, 16, 32)
    long: tuple[int, ...] = (65536, 64)
    decode: tuple[int, ...] = tuple(1 << n for n in range(10, 17))


@dataclasses.dataclass(frozen=True)
class Contender:
    """A call that is ready to be timed.

    Attributes:
      once: makes the call; seconds.
      memory: bytes of its results and of what it needs on the way, as XLA counts them; None where unknown.
    """

    once: Callable[[], float]
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled function f(*inputs, *rest), with or without the gradients in its inputs."""

    run: Callable
    rest: tuple
    memory: int

    @classmethod
    def make(cls, f: Callable, inputs: tuple, rest: tuple, way: str) -> Compiled:
        """For inputs of these shapes. Cotangents are arguments, lest the compiler simplify them away."""

        def forward(inputs, rest):
            return f(*inputs, *rest)

        def both(inputs, rest, cotangents):
            out, pull = jax.vjp(lambda *x: f(*x, *rest), *inputs)
            return out, pull(cotangents)

        arguments: tuple = (rest,)
        if way == "fwdbwd":
            shapes = jax.eval_shape(forward, inputs, rest)
            arguments = (rest, jax.tree.map(lambda x: _normal(9, *x.shape).astype(x.dtype), shapes))
        run = jax.jit(both if way == "fwdbwd" else forward).lower(inputs, *arguments).compile()
        used: Any = run.memory_analysis()
        return cls(run, arguments, used.temp_size_in_bytes + used.output_size_in_bytes)

    def on(self, *inputs) -> Contender:
        """The contender that runs it on these inputs."""

        def once() -> float:
            begun = time.perf_counter()
            jax.block_until_ready(self.run(inputs, *self.rest))
            return time.perf_counter() - begun

        return Contender(once, self.memory)


def _normal(seed: int, *shape: int):
    return jax.random.normal(jax.random.key(seed), shape)


def _inputs(sizes: Sizes, queries: int, keys: int):
    shapes = ((sizes.batch, length, sizes.heads, sizes.head_size) for length in (queries, keys, keys))
    return tuple(_normal(i, *shape).astype(sizes.dtype) for i, shape in enumerate(shapes))


@functools.cache
def _compiled(
    sizes: Sizes, queries: int, keys: int, capacity: int, way: str, stats: Any, name: str | None
) -> Callable:
    """(inputs, places by name) → `Compiled`, made once: the odds have room for all blocks."""

    def f(q, k, v, odds, rest):
        return attend(q, k, v, odds=odds, window=WINDOW, stats=stats, implementation=name, **rest)

    made: list[Compiled] = []

    def compiled(inputs: tuple, rest: dict[str, Any]) -> Compiled:
        if not made:
            made.append(Compiled.make(f, inputs, (rest,), way))
        return dataclasses.replace(made[0], rest=((rest,), *made[0].rest[1:]))

    return compiled


def ours(
    sizes: Sizes,
    queries: int,
    keys: int,
    blocks: int,
    dials: Sequence[float],
    way: str,
    stats: Any = "none",
    implementation: str | None = "",
) -> list[Contender]:
    """`attend` at each dial, compiled once: the dial is an argument. `implementation`: "" is that of the sizes.

    Fewer queries than keys are the last, and find the keys where the model's cache keeps them: on pages by block.
    """
    places = {
        "block": jnp.asarray(blocks_of(keys, blocks))[None],
        "pos": jnp.arange(keys)[None],
        "seg": jnp.ones((1, keys), jnp.int32),
    }
    capacity = max(sizes.capacity, blocks + 1)
    gates = np.broadcast_to(np.eye(capacity, dtype=bool), (1, sizes.heads, capacity, capacity)).copy()
    gates[..., 0] = True
    rest = {f"q_{name}": x[:, -queries:] for name, x in places.items()}
    if queries < keys:
        pages = by_block(places["block"], blocks + 1, page_size(keys, blocks + 1))
        kept = pages.mark(Marks(**places))
        places = {name: getattr(kept, name).reshape(1, -1) for name in places}
    rest |= {f"k_{name}": x for name, x in places.items()}
    rest = {name: jnp.broadcast_to(x, (sizes.batch, *x.shape[1:])) for name, x in rest.items()}
    rest["relevant"] = jnp.asarray(gates)
    name = sizes.implementation if implementation == "" else implementation
    q, k, v = _inputs(sizes, queries, places["pos"].shape[1])
    odds = [jnp.where(gates, 1.0, 1.0 - dial).astype(jnp.float32) for dial in dials]
    whole = _compiled(sizes, queries, keys, capacity, way, stats, name)((q, k, v, odds[0]), rest)
    return [whole.on(q, k, v, x) for x in odds]


def products(sizes: Sizes, queries: int, keys: int) -> Contender:
    """The products of logits and values in tiles of this size, `PRODUCTS` times, with nothing between them."""
    lanes = PRODUCT_PAIRS // (queries * keys)

    def f(q, k):
        def both(_, q):
            logits = jnp.einsum("pqh,pkh->pqk", q, k)
            return jnp.einsum("pqk,pkh->pqh", logits, k) / PRODUCT_PAIRS

        return jax.lax.fori_loop(0, PRODUCTS // 2, both, q)

    inputs = tuple(_normal(i, lanes, length, sizes.head_size) for i, length in enumerate((queries, keys)))
    return Compiled.make(f, inputs, (), "fwd").on(*inputs)


def operations(sizes: Sizes) -> float:
    """Return the operations of a call of `products`."""
    return 2.0 * PRODUCTS * PRODUCT_PAIRS * sizes.head_size


def jaxnn(sizes: Sizes, queries: int, keys: int, way: str, **options) -> Contender:
    """`jax.nn.dot_product_attention`: causal, or one query that sees every key."""

    def f(q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=queries == keys, **options)

    inputs = _inputs(sizes, queries, keys)
    return Compiled.make(f, inputs, (), way).on(*inputs)

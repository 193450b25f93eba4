"""Generation with a KV cache and a dial per request; one batch may mix any dials.

The loop over tokens runs on the host, so that dials, rules and requests may change between two steps; each step is one
compiled function whose dial is traced.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from localist_jax import bits
from localist_jax.attention.stats import Stats
from localist_jax.locality import Blocks, Dial
from localist_jax.model.cache import Cache
from localist_jax.model.constraint import Constraint, Function
from localist_jax.model.transformer import Transformer, forward, unrolled
from localist_jax.types import Numeric, PyTree

# Prompts and caches have this length, or twice, four times … as much, so that few lengths are compiled.
SHORTEST = 64
PAD, BOS = 0, 1  # token ids of our own tokenizer, which are never sampled
# Why no token can be drawn for a request, by the code that `_sample` returns.
NO_TOKEN = ("", "nothing allowed", "logits not finite")
SEEDS = 1 << 32  # number of different seeds
MAX_TOKENS = 1 << 31


@dataclasses.dataclass
class Generation:
    """The result of one request.

    Attributes:
      tokens: new token ids.
      bits: code length of each token under the model, before temperature, nucleus and constraint.
      price_bits, fidelity: attention statistics of the step that chose each token, mean over layers and heads;
        empty if not requested.
      finish: "length" (`max_new` tokens), "context" (the context is full), "stop" (a token of `stop`, which is not
        among the tokens), a constraint's reason, "nothing allowed" (a constraint left no token), or "logits not
        finite" (NaN or +∞ came from the model or a constraint).
    """

    tokens: list[int] = dataclasses.field(default_factory=list)
    bits: list[float] = dataclasses.field(default_factory=list)
    price_bits: list[float] = dataclasses.field(default_factory=list)
    fidelity: list[float] = dataclasses.field(default_factory=list)
    finish: str = "length"


def generate(
    model: Transformer,
    params: PyTree,
    blocks: Blocks,
    prompts: Sequence[Sequence[int]],
    dial: Dial | Sequence[float | Dial],
    *,
    context: int,
    max_new: int = 64,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
    stats: Stats = "dense",
    constraint: Constraint | Callable | None = None,
    bos: int | None = BOS,
    silent: np.ndarray | None = None,
    stop: Sequence[int] = (),
    on_tokens: Callable[[Sequence[int]], None] | None = None,
    along: Callable[..., jax.Array] | None = None,
) -> list[Generation]:
    """Continue every prompt.

    Args:
      model, params, blocks: the network.
      prompts: token ids without BOS; a prompt may be empty if there is a BOS.
      dial: one for all requests, or one per request.
      context: positions of the cache, BOS included.
      max_new: the most new tokens per request.
      temperature: finite; 0 takes the likeliest token.
      top_p: samples from the smallest set of tokens with at least this mass.
      seed: in 0 … 2³² − 1; request r draws from its own stream (seed, r), whatever else is in the batch.
      stats: what to measure: "dense" price and fidelity; "open" fidelity alone, so that a localist layer at λ=1 reads
        only the cache pages of open blocks; "none" nothing.
      constraint: a function (logits [B, V], tokens so far by request) → logits, or a `Constraint`, by which rules act.
      bos: the token in front of every prompt; None: none.
      silent: bool [V], tokens that are never sampled; None: PAD and BOS of our own tokenizer.
      stop: tokens that end a request.
      on_tokens: called with the new token of every request after each step.
      along: a function that mixes in other models: (logits, then the arguments of `read_tokens` after the cache) →
        logits.

    Raises:
      ValueError: if there are no prompts, a prompt does not fit the context, a setting is out of range, or the number
        of dials is neither 1 nor the number of prompts.
    """
    max_new = min(max_new, MAX_TOKENS)
    opening = [] if bos is None else [bos]
    opened = [[*opening, *prompt] for prompt in prompts]
    _check(opened, context, max_new, temperature, top_p, seed, len(opening))
    B = len(prompts)
    if silent is None:
        silent = np.arange(model.vocab_size) <= BOS
    if not isinstance(dial, Dial):
        dial = Dial.for_requests(dial)
    dial = dial.broadcast(B, model.config.layers, model.config.heads)
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(B))

    done = [Generation() for _ in prompts]
    lengths = np.array([len(prompt) for prompt in opened])
    budgets = np.minimum(max_new, context - lengths + 1)
    guide = constraint if isinstance(constraint, Constraint) else Function(constraint or _unchanged)
    guide.start(prompts, budgets.tolist(), context)
    written = [generation.tokens for generation in done]
    open_ended = np.ones(B, bool)
    tokens, positions, segments = _pad(opened, context)
    cache = Cache.create(model.config, B, _length(int(lengths.max()) + max_new, context))
    last = lengths - 1  # index of the token that predicts the next one
    read = partial(read_tokens, model, params, blocks, stats=stats)
    for step in range(max_new):
        rules = guide.steering(written)
        if step == 1 and _pays_unrolled(model):
            alone = dataclasses.replace(model, unrolled=True)
            read = partial(read_tokens, alone, _unrolled_once(params), blocks, stats=stats)
            cache = cache.unrolled()
        if step == 1 and rules is not None:
            _run_once(read, cache, tokens, positions, segments, last, dial, None)
        logits, figures, by_layer, cache = read(
            cache, tokens, positions, segments, last, dial, rules, opening=step == 0
        )
        if along is not None:
            logits = along(logits, tokens, positions, segments, last, rules)
        drawn = _sample(guide(logits, written), logits, silent, keys, step, temperature, top_p)
        (chosen, code, none), figures, fetched = jax.device_get((drawn, figures, guide.wanted(by_layer)))
        reasons = guide.ended(fetched) or [""] * B
        for r in np.flatnonzero(open_ended & (step < budgets)).tolist():
            if reason := reasons[r] or NO_TOKEN[none[r]] or ("stop" if int(chosen[r]) in stop else ""):
                done[r].finish, open_ended[r] = reason, False
        running = open_ended & (step < budgets)
        for r in np.flatnonzero(running).tolist():
            done[r].tokens.append(int(chosen[r]))
            done[r].bits.append(float(code[r]))
            for name, values in figures.items():
                getattr(done[r], name).append(float(values[r]))
        if on_tokens is not None:
            on_tokens(chosen.tolist())
        next_position = lengths + step
        tokens, positions = chosen[:, None].astype(np.int32), next_position[:, None].astype(np.int32)
        segments = (running & (next_position < context)).astype(np.int32)[:, None]
        last = np.zeros(B, np.int32)
        if not segments.any():
            break
    for r in np.flatnonzero(open_ended).tolist():
        done[r].finish = "length" if budgets[r] == max_new else "context"
    return done


def _pays_unrolled(model: Transformer) -> bool:
    """Return whether to read single tokens layer by layer.

    On CPU a step then takes a third of the time (SmolLM2-135M), at the cost of a second copy of the weights.
    """
    return jax.default_backend() == "cpu" and (model.mesh is None or model.mesh.size == 1)


_split: tuple[list[weakref.ref], PyTree] | None = None


def _unrolled_once(params: PyTree) -> PyTree:
    """Return `unrolled(params)`; it is cached for the next request until one of the parameters is freed."""
    global _split
    leaves = jax.tree.leaves(params)
    if not all(isinstance(leaf, jax.Array) for leaf in leaves):
        return unrolled(params)
    known = [] if _split is None else [ref() for ref in _split[0]]
    if len(known) != len(leaves) or any(x is not y for x, y in zip(known, leaves, strict=True)):
        _split = None  # frees memory before the next copy
        _split = [weakref.ref(leaf, _forget) for leaf in leaves], jax.jit(unrolled)(params)
    return _split[1]  # type: ignore[index]


def _forget(gone: weakref.ref) -> None:
    global _split
    if _split is not None and gone in _split[0]:
        _split = None


_ran: set[Any] = set()


def _run_once(read: partial, cache: Cache, *step: Any) -> None:
    """Compile a step for later by running it on a copy of the cache, unless that was done before."""
    if len(_ran) > read_tokens._cache_size():  # type: ignore[attr-defined]
        _ran.clear()  # compiled programs were evicted
    leaves, kind = jax.tree.flatten((read.args[1:], cache, step))
    key = (
        read.args[0],
        *read.keywords.values(),
        kind,
        *((x.shape, x.dtype, getattr(x, "sharding", None)) for x in leaves),
    )
    if key not in _ran:
        read(jax.tree.map(jnp.copy, cache), *step)
        _ran.add(key)


def _unchanged(logits, written):
    return logits


def _check(prompts, context, max_new, temperature, top_p, seed, opening) -> None:
    if not prompts:
        raise ValueError("generate: no prompts were given")
    for r, prompt in enumerate(prompts):
        if not prompt:
            raise ValueError(f"generate: prompt {r} is empty, and this model has no BOS token; give a prompt")
        if len(prompt) > context:
            after = " after BOS" if opening else ""
            raise ValueError(
                f"generate: prompt {r} has {len(prompt) - opening} tokens, but the context holds "
                f"{context - opening}{after}; shorten the prompt, or use a larger config.data.context"
            )
    if max_new < 1:
        raise ValueError(f"generate: max_new must be at least 1, got {max_new}")
    if not 0 <= temperature <= float(np.finfo(np.float32).max):
        raise ValueError(f"generate: temperature must be a finite number of at least 0, got {temperature}")
    if not 0 <= seed < SEEDS:
        raise ValueError(f"generate: seed must lie in 0 … {SEEDS - 1}, got {seed}")
    if not 0 < top_p <= 1:
        raise ValueError(f"generate: top_p must lie in (0, 1], got {top_p}")


def _length(positions: int, context: int) -> int:
    """Return the length of prompt or cache that so many positions get."""
    return min(context, SHORTEST << ((positions - 1) // SHORTEST).bit_length())


def _pad(prompts, context):
    """Pad the prompts to a common length; return tokens, positions, segments [B, T]."""
    width = _length(max(len(prompt) for prompt in prompts), context)
    tokens = np.full((len(prompts), width), PAD, np.int32)
    segments = np.zeros_like(tokens)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = prompt
        segments[row, : len(prompt)] = 1
    return tokens, np.broadcast_to(np.arange(width, dtype=np.int32), tokens.shape), segments


@partial(jax.jit, static_argnames=("model", "stats", "opening"), donate_argnames=("cache",))
def read_tokens(
    model: Transformer,
    params,
    blocks,
    cache,
    tokens,
    positions,
    segments,
    last,
    dial,
    rules,
    *,
    stats: Stats = "dense",
    opening: bool = False,
):
    """Read tokens into the cache (an empty one if `opening`); return logits and statistics at index `last`.

    The statistics are means over layers and heads, [B]; under rules also by layer and head, [2, L, B, N].
    """
    out = forward(
        model,
        params,
        tokens,
        dial,
        blocks,
        positions=positions,
        segments=segments,
        cache=cache,
        stats=stats,
        rules=rules,
        read_at=last[:, None],
        opening=opening,
    )
    figures: dict[str, jax.Array] = {}
    for name in ("price_bits", "fidelity"):
        values = getattr(out.stats, name, None)
        if values is not None:
            figures[name] = _select(values.mean((0, 2)), last)
    by_layer = None
    if rules is not None and out.stats is not None:
        seen = jnp.stack((out.stats.gated_mass, out.stats.fidelity))
        by_layer = jnp.moveaxis(_select(jnp.moveaxis(seen, (2, 4), (0, 1)), last), 0, 2)
    return out.logits[:, 0], figures, by_layer, out.cache


def _select(values: Float[Array, "B T *more"], index: Int[Array, " B"]) -> Float[Array, "B *more"]:
    """Return values[b, index[b]].

    It uses no gather, on which the TPU compiler (jaxlib 0.10.2) aborts beside axes mapped by hand.
    """
    chosen = (jnp.arange(values.shape[1]) == index[:, None]).reshape(
        *values.shape[:2], *[1] * (values.ndim - 2)
    )
    return jnp.where(chosen, values, 0).sum(1)


@jax.jit
def _sample(
    free: Float[Array, "B V"],
    logits: Float[Array, "B V"],
    silent,
    keys,
    step: Numeric,
    temperature: Numeric,
    top_p: Numeric,
) -> tuple[Int[Array, " B"], Float[Array, " B"], Int[Array, " B"]]:
    """Draw from the nucleus of softmax(free/temperature).

    Returns:
      Tokens, their code lengths under softmax(logits), and codes of `NO_TOKEN`.
    """
    free = jnp.where(silent, -jnp.inf, free)
    sound = ((free < jnp.inf) & (logits < jnp.inf)).all(-1)  # false for NaN too
    none = jnp.where(sound, jnp.where((free > -jnp.inf).any(-1), 0, 1), 2)
    scaled = free / jnp.maximum(temperature, 1e-6)
    by_rank = jnp.sort(jax.nn.softmax(scaled), descending=True)
    before = jnp.cumsum(by_rank, -1) - by_rank
    smallest = jnp.min(jnp.where(before < top_p, by_rank, jnp.inf), -1, keepdims=True)
    nucleus = jnp.where(jax.nn.softmax(scaled) >= smallest, scaled, -jnp.inf)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
    drawn = jax.vmap(jax.random.categorical)(step_keys, nucleus)
    chosen = jnp.where(temperature > 0, drawn, jnp.argmax(free, -1)).astype(jnp.int32)
    return chosen, bits.code_length(logits, chosen), none

"""A plain Flax transformer, as anyone would write it: what the training step is compared with.

Llama's layers (RMSNorm, rotary positions, SwiGLU, tied embeddings), `jax.nn.dot_product_attention`, cross-entropy and
AdamW of optax. Nothing of this house is in it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

PEAK, DECAY, CLIP = 1e-3, 0.1, 1.0


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes of a model and its batches."""

    layers: int = 4
    width: int = 256
    heads: int = 4
    hidden: int = 640
    vocabulary: int = 4096
    context: int = 256
    batch: int = 8
    dtype: str = "float32"

    @property
    def tokens(self) -> int:
        """Return the tokens of one step."""
        return self.batch * self.context

    @property
    def parameters(self) -> int:
        """Return the parameters of the plain model: embeddings, layers, gains."""
        layer = 4 * self.width**2 + 3 * self.width * self.hidden + 2 * self.width
        return self.vocabulary * self.width + self.layers * layer + self.width

    @property
    def flops(self) -> float:
        """Return the operations of a step: 6 per parameter and token, and those of causal attention."""
        attention = 6 * self.layers * self.tokens * (self.context + 1) * self.width
        return 6.0 * (self.parameters - (2 * self.layers + 1) * self.width) * self.tokens + attention


def _turned(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None, None] * 10_000.0 ** (-jnp.arange(half) / half)
    a, b = jnp.split(x.astype(jnp.float32), 2, -1)
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Layer(nn.Module):
    """One layer."""

    sizes: Sizes

    @nn.compact
    def __call__(self, x):
        """x → x + attention, then + feed-forward."""
        s = self.sizes

        def dense(features, name):
            return nn.DenseGeneral(features, axis=-1, use_bias=False, dtype=s.dtype, name=name)

        h = nn.RMSNorm(dtype=s.dtype, name="attention_norm")(x)
        shape = (s.heads, s.width // s.heads)
        q, k, v = (dense(shape, name)(h) for name in ("query", "key", "value"))
        y = jax.nn.dot_product_attention(_turned(q), _turned(k), v, is_causal=True)
        x = x + dense(s.width, "out")(y.reshape(*y.shape[:2], -1))
        h = nn.RMSNorm(dtype=s.dtype, name="feed_forward_norm")(x)
        return x + dense(s.width, "down")(jax.nn.silu(dense(s.hidden, "gate")(h)) * dense(s.hidden, "up")(h))


class Plain(nn.Module):
    """The model: tokens [B, T] → logits [B, T, V]."""

    sizes: Sizes

    @nn.compact
    def __call__(self, tokens):
        """Logits in float32."""
        s = self.sizes
        table = nn.Embed(s.vocabulary, s.width, dtype=s.dtype, name="embedding")
        x = table(tokens)
        for i in range(s.layers):
            x = Layer(s, name=f"layer_{i}")(x)
        return table.attend(nn.RMSNorm(dtype=s.dtype, name="norm")(x)).astype(jnp.float32)


def make(sizes: Sizes, key: jax.Array) -> tuple[dict[str, Any], dict[str, Any]]:
    """Its state, and three functions of (state, tokens, targets): "forward", "gradient" and "step"."""
    model = Plain(sizes)
    tx = optax.chain(optax.clip_by_global_norm(CLIP), optax.adamw(PEAK, b2=0.99, weight_decay=DECAY))
    params = jax.jit(model.init)(key, jnp.zeros((1, sizes.context), jnp.int32))
    state = {"params": params, "moments": jax.jit(tx.init)(params)}

    def loss(params, tokens, targets):
        logits = model.apply(params, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def step(state, tokens, targets):
        value, grads = jax.value_and_grad(loss)(state["params"], tokens, targets)
        updates, moments = tx.update(grads, state["moments"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "moments": moments}, value

    functions = {
        "forward": jax.jit(lambda state, *batch: loss(state["params"], *batch)),
        "gradient": jax.jit(lambda state, *batch: jax.value_and_grad(loss)(state["params"], *batch)),
        "step": jax.jit(step, donate_argnums=0),
    }
    return state, functions

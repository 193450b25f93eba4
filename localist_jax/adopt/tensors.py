"""Names of a checkpoint's tensors ↔ leaves of our parameters.

A checkpoint has one tensor per layer, [out, in]; ours are [in, out] with heads apart and layers stacked, in two
stacks. Rotary pairs are channels h and h + H/2 in both, so nothing is permuted.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator

from localist_jax import config

LAYER = {  # of one layer: tensor → leaf
    "input_layernorm": ("attention_norm", "gain"),
    "self_attn.q_proj": ("attention", "query"),
    "self_attn.k_proj": ("attention", "key"),
    "self_attn.v_proj": ("attention", "value"),
    "self_attn.o_proj": ("attention", "out"),
    "self_attn.q_norm": ("attention", "query_norm", "gain"),
    "self_attn.k_norm": ("attention", "key_norm", "gain"),
    "post_attention_layernorm": ("feed_forward_norm", "gain"),
    "mlp.gate_proj": ("feed_forward", "gate"),
    "mlp.up_proj": ("feed_forward", "up"),
    "mlp.down_proj": ("feed_forward", "down"),
}
BIASES = {  # the same, where queries, keys and values have biases
    "self_attn.q_proj": ("attention", "query_bias"),
    "self_attn.k_proj": ("attention", "key_bias"),
    "self_attn.v_proj": ("attention", "value_bias"),
}
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Buffers that old files carry along; computed from config.json by everyone who reads them.
COMPUTED = re.compile(r"(model\.layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint.

    Attributes:
      name, shape: in the checkpoint.
      path: of the leaf that holds it.
      layer: its place on the leaf's leading axis; None where the leaf is not stacked.
      part: shape of its place in the leaf.
      transposed: whether the place holds it as [in, out].
    """

    name: str
    shape: tuple[int, ...]
    path: tuple[str, ...]
    layer: int | None
    part: tuple[int, ...]
    transposed: bool


def tensors(model: config.Model, vocab_size: int) -> Iterator[Tensor]:
    """Every tensor of a checkpoint, in the order of the layers."""
    c, D = model, model.width
    yield _whole(EMBEDDING, (vocab_size, D), ("embedding",))
    parts = {
        "query": (D, c.heads, c.head_size),
        "key": (D, c.kv_heads, c.head_size),
        "value": (D, c.kv_heads, c.head_size),
        "out": (c.heads, c.head_size, D),
        "gate": (D, c.feed_forward),
        "up": (D, c.feed_forward),
        "down": (c.feed_forward, D),
    }
    for layer in range(c.layers):
        localist = layer >= c.router_layer
        stack, nth = ("localist", layer - c.router_layer) if localist else ("perception", layer)
        for name, path in LAYER.items():
            if path[-1] == "gain":
                head = path[0] == "attention"
                if head and not c.qk_norm:
                    continue
                part: tuple[int, ...] = (c.head_size if head else D,)
                shape = part
            else:
                part = parts[path[-1]]
                rows = part[0] * part[1] if path[-1] == "out" else part[0]
                shape = (part[-1] if path[-1] == "out" else _size(part) // rows, rows)
            full = f"model.layers.{layer}.{name}.weight"
            yield Tensor(full, shape, (stack, *path), nth, part, path[-1] != "gain")
        for name, path in BIASES.items() if c.qkv_bias else ():
            part = parts[path[-1].removesuffix("_bias")][1:]
            yield Tensor(
                f"model.layers.{layer}.{name}.bias", (_size(part),), (stack, *path), nth, part, False
            )
    yield _whole("model.norm.weight", (D,), ("final_norm", "gain"))
    if not c.tied:
        yield _whole(HEAD, (vocab_size, D), ("head",))


def _whole(name: str, shape: tuple[int, ...], path: tuple[str, ...]) -> Tensor:
    return Tensor(name, shape, path, None, shape, False)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size

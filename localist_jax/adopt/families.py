"""Families of checkpoints: `config.json` ↔ `config.Model`, strict about everything that changes the function.

A key that we read must have the right type; a key that would alter what the network computes and that we do not
compute must have the value that switches it off. Keys about training, generation or code are ignored.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from localist_jax import config


@dataclasses.dataclass(frozen=True)
class Family:
    """The conventions that distinguish one model family.

    Attributes:
      architecture: class of `transformers`.
      qk_norm, qkv_bias: has it a norm, or biases, of queries and keys?
      head: head size of a config.json that does not say; 0: width over heads.
      tied: does it read logits off the embedding, where config.json does not say?
      rope_base: of a config.json that does not say.
      windowed: does its `sliding_window` count wherever it is set?
    """

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    head: int = 0
    tied: bool = False
    rope_base: float = 10_000.0
    windowed: bool = False


FAMILIES = {  # by `model_type`; a model goes out as the first that fits it
    "llama": Family("LlamaForCausalLM"),
    "mistral": Family("MistralForCausalLM", windowed=True),
    "qwen2": Family("Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family("Qwen3ForCausalLM", qk_norm=True, head=128),
    "smollm3": Family("SmolLM3ForCausalLM", tied=True, rope_base=2_000_000.0),
}
SMOLLM3_INTERVAL = 4  # every so-manyth layer of a SmolLM3 that does not say has no rotary positions
SIZES = {  # fields of `config.Model` ← keys
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}
SWITCHED_OFF: dict[str, tuple] = {  # what these may be; anything else is another function
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "use_sliding_window": (False, None),
    "partial_rotary_factor": (1, None),
    "quantization_config": (None,),
    "is_decoder": (True, None),
}
SCALINGS = {"default": "none", "linear": "linear", "llama3": "llama3"}
LLAMA3_KEYS = ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's config.json.

    Raises:
      ValueError: no such file, or no JSON object in it.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder}: no config.json here; give the folder of a Hugging Face checkpoint")
    return _object(path)


def _object(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({str(error)[:120]}); copy it again") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected an object with keys, got {type(raw).__name__}")
    return raw


def model_of(raw: dict[str, Any], *, router_layer: int = 1, dtype: str = "float32") -> config.Model:
    """The model that a config.json describes, with one block that everyone sees: at every dial the original.

    Args:
      raw: contents of config.json.
      router_layer: layers before the router, for a later localisation.
      dtype: of activations.

    Raises:
      ValueError: a family, or a setting, that this model does not compute; by its name.
    """
    name = raw.get("model_type")
    if name not in FAMILIES:
        raise ValueError(
            f"config.json: model_type: expected one of {', '.join(FAMILIES)}, got {name!r}; "
            "other families compute other functions"
        )
    family = FAMILIES[name]
    for key, allowed in SWITCHED_OFF.items():
        if raw.get(key, allowed[0]) not in allowed:
            raise ValueError(f"config.json: {key}: expected {allowed[0]!r}, got {raw[key]!r}; not supported")
    other = sorted(set(raw.get("layer_types") or []) - {"full_attention"})
    if other:
        raise ValueError(f"config.json: layer_types: expected full_attention alone, got {', '.join(other)}")
    sizes: dict[str, Any] = {field: _integer(raw, key) for field, key in SIZES.items()}
    base, scaling = _rope(raw, family.rope_base)
    return config.Model(
        **sizes,
        kv_heads=_integer(raw, "num_key_value_heads", sizes["heads"]),
        head_size=_integer(raw, "head_dim", family.head or sizes["width"] // sizes["heads"]),
        norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_base=base,
        rope_scaling=scaling,
        tied=bool(raw.get("tie_word_embeddings", family.tied)),
        qk_norm=family.qk_norm,
        qkv_bias=family.qkv_bias,
        unturned_every=_unturned(raw, sizes["layers"]) if name == "smollm3" else 0,
        router_layer=router_layer,
        dtype=dtype,
        blocks=1,
        block_capacity=1,
        background=True,
        block_units=0,
        dialled_units=True,
        window=1,
        perception_window=0,
    )


def context_of(raw: dict[str, Any], asked: int, longest: int) -> int:
    """Tokens of a row: those asked for, or (0) as many as it was trained at, `longest` at most.

    Raises:
      ValueError: a sliding window that is shorter.
    """
    context = asked or min(longest, raw.get("max_position_embeddings") or longest)
    windowed = raw.get("model_type") in FAMILIES and FAMILIES[raw["model_type"]].windowed
    if windowed and 0 < (raw.get("sliding_window") or 0) < context:
        raise ValueError(
            f"config.json: sliding_window: expected null or at least the context of {context} tokens, "
            f"got {raw['sliding_window']}; ask for a --context of at most so many"
        )
    return context


def _unturned(raw: dict[str, Any], layers: int) -> int:
    """Every how manyth layer has no rotary positions; 0: all have them."""
    turned = raw.get("no_rope_layers")
    if turned is None:
        return _integer(raw, "no_rope_layer_interval", SMOLLM3_INTERVAL)
    every = turned.index(0) + 1 if isinstance(turned, list) and 0 in turned else 0
    regular = [int(not every or (i + 1) % every != 0) for i in range(layers)]
    if turned != regular:
        raise ValueError(
            f"config.json: no_rope_layers: expected 1 for each of {layers} layers, and 0 for every so-manyth; "
            f"got {turned!r}"
        )
    return every


def _rope(raw: dict[str, Any], default: float) -> tuple[float, config.RopeScaling]:
    """Base and scaling; `rope_parameters` holds both in newer files, `rope_theta` and `rope_scaling` in older."""
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"config.json: rope_scaling: expected an object, got {rope!r}")
    base = _number(rope if "rope_theta" in rope else raw, "rope_theta", default)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in SCALINGS:
        raise ValueError(
            f"config.json: rope_scaling: expected one of {', '.join(SCALINGS)}, got {kind!r}; not supported"
        )
    if rope.get("partial_rotary_factor", 1) not in SWITCHED_OFF["partial_rotary_factor"]:
        raise ValueError("config.json: partial_rotary_factor: expected 1: all channels turn")
    if kind == "default":
        return base, config.RopeScaling()
    factor = _number(rope, "factor")
    if kind == "linear":
        return base, config.RopeScaling(kind="linear", factor=factor)
    low, high, context = (_number(rope, key) for key in LLAMA3_KEYS)
    return base, config.RopeScaling("llama3", factor, low, high, int(context))


def _integer(raw: dict[str, Any], key: str, default: int | None = None) -> int:
    value = default if raw.get(key) is None else raw[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {key}: expected an integer of at least 1, got {value!r}")
    return value


def _number(raw: dict[str, Any], key: str, default: float | None = None) -> float:
    value = default if raw.get(key) is None else raw[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
        raise ValueError(f"config.json: {key}: expected a number above 0, got {value!r}")
    return float(value)


def vocabulary_of(raw: dict[str, Any]) -> int:
    """V: rows of the embedding, which may be more than the tokenizer has tokens."""
    return _integer(raw, "vocab_size")


def stops_of(raw: dict[str, Any], folder: Path) -> tuple[int, ...]:
    """Tokens that end a text: those that generation_config.json names, or else config.json.

    That is what `transformers` does, except that it takes none where generation_config.json is there and names none.

    Args:
      raw: contents of config.json.
      folder: that may hold a generation_config.json.

    Raises:
      ValueError: an `eos_token_id` that is no token or list of tokens, or a file that is not JSON.
    """
    path = folder / "generation_config.json"
    beside = _object(path).get("eos_token_id") if path.is_file() else None
    name, stops = ("config.json", raw.get("eos_token_id")) if beside is None else (path.name, beside)
    listed = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if not all(type(stop) is int and stop >= 0 for stop in listed):
        raise ValueError(f"{name}: eos_token_id: expected a token id, or a list of some, got {stops!r}")
    return tuple(listed)


def config_of(
    model: config.Model, vocab_size: int, context: int, dtype: str, preferred: str = ""
) -> dict[str, Any]:
    """The config.json of a model at λ=0: the inverse of `model_of`.

    Args:
      model: of one of the families.
      vocab_size: V.
      context: tokens that it was trained at.
      dtype: of the tensors.
      preferred: family, where it fits; else the first that does.

    Raises:
      ValueError: a model of none of the families.
    """
    fits = [name for name in FAMILIES if _fits(name, model)]
    if not fits:
        raise ValueError(
            "export: no family of checkpoints has these settings of qk_norm, qkv_bias and unturned_every"
        )
    family = preferred if preferred in fits else fits[0]
    rope: dict[str, Any] = {"rope_theta": model.rope_base, "rope_type": "default"}
    scaling = model.rope_scaling
    if scaling.kind != "none":
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= dict(zip(LLAMA3_KEYS, (scaling.low, scaling.high, scaling.context), strict=True))
    return {
        "architectures": [FAMILIES[family].architecture],
        "model_type": family,
        **{key: getattr(model, field) for field, key in SIZES.items()},
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_size,
        "vocab_size": vocab_size,
        "max_position_embeddings": context,
        "rms_norm_eps": model.norm_eps,
        "rope_parameters": rope,
        # Older readers know these two only.
        "rope_theta": model.rope_base,
        "rope_scaling": None
        if scaling.kind == "none"
        else {k: v for k, v in rope.items() if k != "rope_theta"},
        "tie_word_embeddings": model.tied,
        "hidden_act": "silu",
        "attention_bias": False,
        **({"mlp_bias": False} if family in ("llama", "smollm3") else {}),
        **(_turned(model) if family == "smollm3" else {}),
        "attention_dropout": 0.0,
        "use_cache": True,
        "dtype": dtype,
        "torch_dtype": dtype,
    }


def _fits(name: str, model: config.Model) -> bool:
    family = FAMILIES[name]
    return (family.qk_norm, family.qkv_bias) == (model.qk_norm, model.qkv_bias) and (
        name == "smollm3" or not model.unturned_every
    )


def _turned(model: config.Model) -> dict[str, Any]:
    every = model.unturned_every
    turned = [int(not every or (i + 1) % every != 0) for i in range(model.layers)]
    return {"no_rope_layers": turned, "no_rope_layer_interval": every or model.layers + 1}

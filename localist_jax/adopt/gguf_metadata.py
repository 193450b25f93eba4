"""A GGUF file's metadata as the small files of a checkpoint folder: config.json, tokenizer and chat template.

So everything after it (families, tokenizer, the way back to Hugging Face's format) reads one kind of checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from localist_jax import config
from localist_jax.adopt.families import SMOLLM3_INTERVAL
from localist_jax.adopt.gguf_file import EMBEDDING, GGUF, HEAD, ROPE_FACTORS
from localist_jax.adopt.gguf_tokenizer import specials_of, tokenizer_json
from localist_jax.model.layers import frequencies

ARCHITECTURES = ("llama", "qwen2", "qwen3", "smollm3")  # by `general.architecture`
SIZES = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "sliding_window": "attention.sliding_window",
}
SWITCHED_OFF: dict[str, tuple] = {  # keys that change what is computed, and what they may be
    "expert_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attn_logit_softcapping": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "embedding_scale": (0, 1),
    "residual_scale": (0, 1),
    "use_parallel_residual": (False,),
    "rope.scaling.attn_factor": (0, 1),
    "nextn_predict_layers": (0,),
}
LLAMA3 = (1.0, 4.0, 8192)  # slow, fast and first context of every Llama 3 whose factors are on record
CONFIG, TOKENIZER, TOKENIZER_CONFIG, CHAT = (
    "config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
)  # fmt: skip


def write_folder(file: GGUF, folder: Path) -> None:
    """Writes config.json, tokenizer.json, tokenizer_config.json and (if there is one) chat_template.jinja.

    Raises:
      ValueError: an architecture, setting or tokenizer that is not supported; by its name.
    """
    try:
        raw = config_of(file)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{file.path}: metadata of another kind than expected ({error}); convert it anew"
        ) from error
    try:
        specials, text = specials_of(file.metadata), tokenizer_json(file.metadata)
    except ValueError as error:
        raise ValueError(f"{file.path}: {error}") from error
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **specials}
    about["model_max_length"] = raw.get("max_position_embeddings")
    for name, value in ((CONFIG, raw), (TOKENIZER_CONFIG, about)):
        (folder / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    template = file.metadata.get("tokenizer.chat_template")
    if isinstance(template, str) and template:
        (folder / CHAT).write_text(template, encoding="utf-8")


def config_of(file: GGUF) -> dict[str, Any]:
    """The config.json that a file's metadata and table of tensors stand for.

    Raises:
      ValueError: an architecture or setting that is not supported, or a key that is missing; by its name.
    """
    family = file.metadata.get("general.architecture")
    if family not in ARCHITECTURES:
        raise ValueError(
            f"{file.path}: general.architecture: expected one of {', '.join(ARCHITECTURES)}, got {family!r}; "
            "other architectures compute other functions"
        )
    prefix = f"{family}."
    keys = {k.removeprefix(prefix): v for k, v in file.metadata.items() if k.startswith(prefix)}
    for key, allowed in SWITCHED_OFF.items():
        if keys.get(key, allowed[0]) not in allowed:
            raise ValueError(
                f"{file.path}: {family}.{key}: expected {allowed[0]!r}, got {keys[key]!r}; not supported"
            )
    sizes = {ours: _one(file, family, theirs, keys.get(theirs)) for ours, theirs in SIZES.items()}
    if EMBEDDING not in file.tensors:
        raise ValueError(f"{file.path}: lacks {EMBEDDING}; it is not a language model")
    if not sizes["hidden_size"] or not sizes["num_attention_heads"]:
        missing = SIZES["num_attention_heads" if sizes["hidden_size"] else "hidden_size"]
        raise ValueError(f"{file.path}: {family}.{missing} is missing; convert it anew")
    head = keys.get("attention.key_length") or sizes["hidden_size"] // sizes["num_attention_heads"]
    if keys.get("attention.value_length", head) != head:
        raise ValueError(
            f"{file.path}: {family}.attention.value_length: expected {head}, the length of keys; not supported"
        )
    turning = keys.get("rope.dimension_count", head)
    raw = {
        "model_type": family,
        **{key: value for key, value in sizes.items() if value is not None},
        "head_dim": head,
        "vocab_size": file.tensors[EMBEDDING].shape[0],
        "tie_word_embeddings": HEAD not in file.tensors,
        "rope_theta": round(keys.get("rope.freq_base", 10_000.0), 6),
        "bos_token_id": file.metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": _stops(file.metadata),
        "pad_token_id": file.metadata.get("tokenizer.ggml.padding_token_id"),
    }
    if "rms_norm_eps" in raw:  # float32 there: 1e-5 comes as 9.999999747e-06
        raw["rms_norm_eps"] = float(f"{raw['rms_norm_eps']:.6g}")
    if turning != head:
        raw["partial_rotary_factor"] = turning / head
    scaling = _scaling(file, family, keys, raw)
    if scaling:
        raw["rope_scaling"] = scaling
    if family == "smollm3":
        raw["no_rope_layer_interval"] = SMOLLM3_INTERVAL
    return raw


def _one(file: GGUF, family: str, key: str, value: Any) -> Any:
    """A value that may stand there once per layer; then all must be one."""
    if not isinstance(value, list):
        return value
    if len(set(value)) != 1:
        raise ValueError(f"{file.path}: {family}.{key}: expected one value for all layers; not supported")
    return value[0]


def _stops(metadata: dict[str, Any]) -> int | list[int] | None:
    """Tokens that end a text: the end of the text, and the end of a turn where that is another."""
    named = (metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom"))
    stops = list(dict.fromkeys(stop for stop in named if stop is not None))
    return stops if len(stops) > 1 else stops[0] if stops else None


def _scaling(file: GGUF, family: str, keys: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any] | None:
    """The `rope_scaling` of config.json; families.model_of refuses kinds that are not supported."""
    kind = keys.get("rope.scaling.type") or ("linear" if keys.get("rope.scale_linear", 1) != 1 else "none")
    if ROPE_FACTORS in file.tensors:
        return _llama3(file, raw)
    if kind == "none":
        return None
    return {"rope_type": kind, "factor": keys.get("rope.scaling.factor", keys.get("rope.scale_linear"))}


def _llama3(file: GGUF, raw: dict[str, Any]) -> dict[str, Any]:
    """Llama 3's scaling, which such a file keeps as what each frequency is divided by."""
    factors = file.rows(ROPE_FACTORS).reshape(-1)
    factor = float(factors.max())
    low, high, context = LLAMA3
    half, base = raw["head_dim"] // 2, raw["rope_theta"]
    same = False
    if factors.size == half and factor >= 1:
        scaled = frequencies(half, base, config.RopeScaling("llama3", factor, low, high, context))
        same = np.allclose(factors * scaled, frequencies(half, base, config.RopeScaling()), rtol=1e-4)
    if not same:
        raise ValueError(f"{file.path}: {ROPE_FACTORS}: expected the factors of Llama 3; not supported")
    return {
        "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }  # fmt: skip

"""Tiny checkpoints with random weights, written without the package: names and shapes as they are in the wild."""

import json
import re

import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file
from tokenizers import decoders, models, pre_tokenizers, processors

V, D, N, L, F = 288, 32, 4, 3, 48
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
VARIANTS = {
    "llama, grouped queries": {"model_type": "llama", "num_key_value_heads": 2},
    "llama, tied, linear": {
        "model_type": "llama", "num_key_value_heads": 4, "tie_word_embeddings": True,
        "rope_scaling": {"type": "linear", "factor": 2.0},
    },
    "llama, one key head, llama3": {
        "model_type": "llama", "num_key_value_heads": 1, "rope_theta": 500_000.0, "rope_scaling": LLAMA3,
        "rms_norm_eps": 1e-5,
    },
    "qwen3, tied": {
        "model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
    },
    "qwen3, untied": {"model_type": "qwen3", "num_key_value_heads": 4, "head_dim": 12},
    "mistral": {"model_type": "mistral", "num_key_value_heads": 2, "head_dim": 12, "sliding_window": 256},
    "qwen2, biases": {
        "model_type": "qwen2", "num_key_value_heads": 2, "tie_word_embeddings": True, "sliding_window": 16,
        "use_sliding_window": False,
    },
    "smollm3, a layer without rotary positions": {
        "model_type": "smollm3", "num_key_value_heads": 2, "tie_word_embeddings": True, "no_rope_layers": [1, 0, 1],
        "no_rope_layer_interval": 2, "pad_token_id": None,
    },
}  # fmt: skip


def config_of(variant):
    return {
        "hidden_size": D, "num_attention_heads": N, "num_hidden_layers": L, "intermediate_size": F, "vocab_size": V,
        "max_position_embeddings": 256, "hidden_act": "silu", "head_dim": D // N, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 10_000.0,
        "attention_bias": False, **VARIANTS[variant],
    }  # fmt: skip


def weights_of(raw, dtype="float32", seed=0):
    """Tensors by name; norms near 1, everything else of a size that keeps all layers awake."""
    rng = np.random.default_rng(seed)
    H, G, N = raw["head_dim"], raw["num_key_value_heads"], raw["num_attention_heads"]
    D, L, F = raw["hidden_size"], raw["num_hidden_layers"], raw["intermediate_size"]
    shapes = {"model.embed_tokens": (V, D)}
    for i in range(L):
        at = f"model.layers.{i}."
        shapes |= {
            f"{at}input_layernorm": (D,), f"{at}post_attention_layernorm": (D,),
            f"{at}self_attn.q_proj": (N * H, D), f"{at}self_attn.k_proj": (G * H, D),
            f"{at}self_attn.v_proj": (G * H, D), f"{at}self_attn.o_proj": (D, N * H),
            f"{at}mlp.gate_proj": (F, D), f"{at}mlp.up_proj": (F, D), f"{at}mlp.down_proj": (D, F),
        }  # fmt: skip
        if raw["model_type"] == "qwen3":
            shapes |= {f"{at}self_attn.q_norm": (H,), f"{at}self_attn.k_norm": (H,)}
    shapes["model.norm"] = (D,)
    if not raw["tie_word_embeddings"]:
        shapes["lm_head"] = (V, D)
    values = {}
    for name, shape in shapes.items():
        drawn = rng.standard_normal(shape)
        scaled = 1 + 0.2 * drawn if len(shape) == 1 else drawn * (2 / shape[-1]) ** 0.5
        values[f"{name}.weight"] = scaled.astype(np.float32).astype(np.dtype(dtype))
    for name in [x for x in values if raw["model_type"] == "qwen2" and re.search(r"\.[qkv]_proj\.", x)]:
        bias = rng.standard_normal(values[name].shape[0]).astype(np.float32)
        values[name.replace("weight", "bias")] = bias.astype(np.dtype(dtype))
    return values


def tokenizer_json(bos=True):
    """Byte-level BPE without merges; `bos` puts `<s>` before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {"<s>": 0, "</s>": 1} | {c: i + 2 for i, c in enumerate(alphabet)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>"])
    if bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return inner.to_str()


def write(folder, variant, *, dtype="float32", shards=1, bos=True):
    """A checkpoint folder; with more than one shard, an index too."""
    folder.mkdir(parents=True)
    raw = config_of(variant)
    (folder / "config.json").write_text(json.dumps(raw))
    (folder / "tokenizer.json").write_text(tokenizer_json(bos))
    weights = weights_of(raw, dtype)
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    table = {name: f"model-{i % shards}.safetensors" for i, name in enumerate(weights)}
    for file in set(table.values()):
        part = {name: weights[name] for name in table if table[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": table}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def changed(folder, **keys):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **keys}))


def edited(folder, edit):
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")

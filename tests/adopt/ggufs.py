"""Tiny GGUF files with random weights, written as llama.cpp's converter writes them."""

import checkpoints
import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from tokenizers import pre_tokenizers

D, N, G, H, L, F = 256, 4, 2, 64, 2, 256  # rows of a K-quant are multiples of 256
NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}  # where scales stand
TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}<s>assistant\n"


def raw_of(family="llama", **changes):
    """The config.json of the same checkpoint."""
    raw = checkpoints.config_of("llama, grouped queries") | {
        "model_type": family, "hidden_size": D, "num_attention_heads": N, "num_key_value_heads": G, "head_dim": H,
        "num_hidden_layers": L, "intermediate_size": F, "rms_norm_eps": 1e-5, "rope_theta": 100_000.0,
        "tie_word_embeddings": True,
    }  # fmt: skip
    if family == "smollm3":
        raw |= {"no_rope_layer_interval": 4}
    return raw | changes


def name_of(name):
    stem, _, suffix = name.rpartition(".")
    if stem in NAMES:
        return f"{NAMES[stem]}.{suffix}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.{suffix}"


def stored(values, kind, rng):
    """A matrix as blocks; for K-quants, which the package cannot make, any blocks with scales of a fair size."""
    if kind not in HALVES:
        return quants.quantize(values, Kind[kind])
    length, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    blocks = rng.integers(0, 256, (values.shape[0], values.shape[1] // length, size), np.uint8)
    for at in HALVES[kind]:
        scales = rng.uniform(1e-4, 4e-4, blocks.shape[:2]).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(values.shape[0], -1)


def turned(values, heads):
    """Rotary pairs side by side, as the converter of the llama family puts them."""
    return values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)


def write(path, kind="F32", family="llama", raw=None, edit=lambda metadata, tensors: None, weights=None):
    """Writes a file; returns the weights it stands for, by the names of a checkpoint folder."""
    raw, rng = raw or raw_of(family), np.random.default_rng(3)
    exact, tensors = {}, {}
    for name, values in (weights or checkpoints.weights_of(raw)).items():
        heads = N if ".q_proj.w" in name else G if ".k_proj.w" in name else 0
        permuted = heads and family in ("llama", "smollm3")
        values = turned(values, heads) if permuted else values
        how = kind if values.ndim == 2 else "F32"
        blocks = np.ascontiguousarray(stored(values, how, rng))
        tensors[name_of(name)] = blocks, Kind[how]
        back = quants.dequantize(blocks.view(np.uint8), Kind[how])
        if permuted:
            back = back.reshape(heads, -1, 2, back.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        exact[name] = back
    metadata = metadata_of(raw, family)
    edit(metadata, tensors)
    put(path, metadata, tensors)
    return exact


def metadata_of(raw, family):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, "Ġt", "Ġ1"]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), raw["vocab_size"])]
    texts = len(alphabet) + 2
    return {
        "general.architecture": family,
        f"{family}.block_count": raw["num_hidden_layers"],
        f"{family}.context_length": raw["max_position_embeddings"],
        f"{family}.embedding_length": raw["hidden_size"],
        f"{family}.feed_forward_length": raw["intermediate_size"],
        f"{family}.attention.head_count": raw["num_attention_heads"],
        f"{family}.attention.head_count_kv": raw["num_key_value_heads"],
        f"{family}.attention.key_length": raw["head_dim"],
        f"{family}.attention.value_length": raw["head_dim"],
        f"{family}.rope.dimension_count": raw["head_dim"],
        f"{family}.attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
        f"{family}.rope.freq_base": raw["rope_theta"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3] + [1] * texts + [5] * (len(tokens) - texts - 2),
        "tokenizer.ggml.merges": ["Ġ t", "Ġ 1"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def put(path, metadata, tensors):
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)
    for name, (blocks, kind) in tensors.items():
        writer.add_tensor(name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

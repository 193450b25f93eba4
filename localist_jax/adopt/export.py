"""From a run back to a Hugging Face checkpoint: the trunk, which is the model at λ=0."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import processors

from localist_jax.adopt import families, shards
from localist_jax.adopt.load import KEPT, ORIGIN
from localist_jax.adopt.tensors import tensors
from localist_jax.data import Tokenizer
from localist_jax.training.run import Run, write_json
from localist_jax.training.state import at_path

TAKEN = ("config.json", "tokenizer*.json", "*.safetensors*")  # what must not be there: it would be read too
DTYPES = ("float32", "bfloat16", "float16")


def export(run: Run, out: str | Path, dtype: str = "") -> Path:
    """Writes config.json, safetensors and tokenizer.json that `transformers` loads.

    Router, gates and dialled units have no place in that format: what is written is the model at λ=0.

    Args:
      run: with dense perception layers, and units that come in with the dial (or none).
      out: folder; must not hold a checkpoint.
      dtype: of the tensors; empty: that of the checkpoint the run was adopted from, or float32.

    Raises:
      ValueError: a model whose λ=0 is not of these families, a folder that is taken, or an unknown dtype.
    """
    out, model = Path(out), run.settings.model
    there = [path.name for kind in TAKEN for path in out.glob(kind)]
    if there:
        raise ValueError(f"{out}: holds a checkpoint already ({there[0]}); choose another folder")
    if model.perception_window and not model.perception_dialled:
        raise ValueError(
            "export: config.model.perception_window must be 0; with a window λ=0 is not of these families"
        )
    if model.block_units and not model.dialled_units:
        raise ValueError(
            "export: localist units add to λ=0 unless config.model.dialled_units; set it, or train with block_units=0"
        )
    origin = run.workdir / ORIGIN
    before: dict[str, Any] = families.read_config(origin) if origin.is_dir() else {}
    dtype = dtype or before.get("dtype", "float32")
    if dtype not in DTYPES:
        raise ValueError(f"export: dtype: expected one of {', '.join(DTYPES)}, got {dtype!r}")
    out.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (origin / name).is_file():
            shutil.copyfile(origin / name, out / name)
    vocab_size, context = run.tokenizer.vocab_size, run.settings.data.context
    shards.write(out, _tensors(run, dtype))
    about = families.config_of(
        model,
        vocab_size,
        before.get("max_position_embeddings", context),
        dtype,
        preferred=before.get("model_type", ""),
    )
    specials = {"bos_token_id": run.tokenizer.bos, "eos_token_id": list(run.tokenizer.stop) or None}
    write_json(out / "config.json", {**specials, **before, **about})
    if not (out / "tokenizer.json").exists():
        (out / "tokenizer.json").write_text(_with_opener(run.tokenizer), encoding="utf-8")
        fast = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "pad_token": "<pad>"}
        write_json(out / "tokenizer_config.json", fast)
    return out


def _tensors(run: Run, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    for tensor in tensors(run.settings.model, run.tokenizer.vocab_size):
        leaf = at_path(run.state.params, tensor.path)
        part = np.asarray(leaf if tensor.layer is None else leaf[tensor.layer])
        if tensor.transposed:
            part = part.reshape(tensor.shape[::-1]).T
        yield tensor.name, np.ascontiguousarray(part.reshape(tensor.shape).astype(jnp.dtype(dtype)))


def _with_opener(tokenizer: Tokenizer) -> str:
    """Our own tokenizer in a form that puts BOS before every text by itself, as others expect it."""
    inner = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    inner.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", Tokenizer.BOS)]
    )
    return inner.to_str()

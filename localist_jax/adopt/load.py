"""From a checkpoint to a run: weights streamed in strips, tokenizer, configuration."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util

from localist_jax import config
from localist_jax.adopt import families, sources
from localist_jax.adopt.gguf_file import Weights
from localist_jax.adopt.shards import Shards
from localist_jax.adopt.tensors import tensors
from localist_jax.data import Tokenizer
from localist_jax.model import Transformer
from localist_jax.parallel import mesh as meshes
from localist_jax.training import state as states
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import Run, abstract_state
from localist_jax.training.state import TrainState, in_trunk

LONGEST = 2048  # default context of an adopted model, if it was trained at more
DEEP = 4  # layers from which on the router stands after the second, not the first
ORIGIN = "origin"  # folder in the run that keeps the checkpoint's own small files
UNFINISHED = ".adopting"  # stands in the folder until the run is whole
KEPT = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja",
)  # fmt: skip


def load(folder: str | Path, settings: config.Config) -> tuple[TrainState, str]:
    """The state whose trunk holds a checkpoint's weights; router and gates are fresh.

    Leaves are filled in place, strip by strip, so that less than one large tensor lies in memory beside the model.

    Args:
      folder: of the checkpoint, or a GGUF file.
      settings: with the model of `families.model_of` and the vocabulary's size.

    Returns:
      the state, and the dtype of the checkpoint's tensors ("float32" where they differ).

    Raises:
      ValueError: as `Shards` and `Weights`.
    """
    vocab_size = settings.data.vocab_size
    model = Transformer(settings.model, vocab_size)
    mesh = meshes.make_mesh(config.Mesh(), jax.devices()[:1])
    wanted, path = list(tensors(settings.model, vocab_size)), Path(folder)
    with Weights(path, wanted, settings.model) if path.is_file() else Shards(path, wanted) as shards:
        state = _empty(model, settings, mesh)(jax.random.key(settings.train.seed))
        flat = traverse_util.flatten_dict(state.params)
        state = dataclasses.replace(
            state, params={}
        )  # `flat` alone holds the leaves: filling one frees the one before
        for tensor, start, strip in shards:
            layer = tensor.layer or 0
            flat[tensor.path] = _put(
                flat[tensor.path], strip, layer, start, shape=tensor.shape, turn=tensor.transposed
            )
            flat[tensor.path].block_until_ready()  # else strips are read faster than written, and pile up
            del strip
        dtype = shards.dtype
    return dataclasses.replace(state, params=traverse_util.unflatten_dict(flat)), dtype


@functools.lru_cache(maxsize=2)
def _empty(model: Transformer, settings: config.Config, mesh: jax.sharding.Mesh) -> Callable[..., TrainState]:
    """Makes a fresh state whose trunk is zeros: initial weights that nobody will use are never drawn."""
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, settings, mesh))

    def create(key):
        state = nn.unbox(states.create(model, settings, key))
        flat = traverse_util.flatten_dict(state.params)
        empty = {path: jnp.zeros_like(x) if in_trunk(path) else x for path, x in flat.items()}
        return dataclasses.replace(state, params=traverse_util.unflatten_dict(empty))

    return jax.jit(create, out_shardings=wanted)


@functools.partial(jax.jit, donate_argnums=0, static_argnames=("shape", "turn"))
def _put(leaf, strip, layer, start, *, shape, turn):
    """`leaf` with the rows from `start` on of a tensor of this shape in their place, transposed if they `turn`."""
    tensors = leaf.reshape(-1, *(shape[::-1] if turn else shape))
    strip = (strip.T if turn else strip)[None].astype(leaf.dtype)
    at = (0, start) if turn else (start, *(0 for _ in shape[1:]))
    return jax.lax.dynamic_update_slice(tensors, strip, (layer, *at)).reshape(leaf.shape)


def adopt(
    checkpoint: str | Path,
    out: str | Path,
    *,
    context: int = 0,
    router_layer: int = 0,
    dtype: str = "float32",
    corpus: str = "",
    command: str = "",
) -> Run:
    """Makes a run of a checkpoint: at every dial the original model, until it is made localist.

    Args:
      checkpoint: a folder with config.json, safetensors and tokenizer.json, a GGUF file, or `smollm2`.
      out: folder of the run; must not hold one.
      context: tokens of a row and of the cache; 0: as trained, 2048 at most.
      router_layer: layers before the router; 0: two, or one of fewer than four.
      dtype: of activations.
      corpus: what evaluations and a later localisation read.
      command: what the user typed, for the record.

    Raises:
      ValueError: a family, setting, file, tensor or tokenizer that does not fit; a run that is there already.
    """
    out = Path(out)
    if (out / "config.json").exists() and not (out / UNFINISHED).exists():
        raise ValueError(f"{out}: holds a run already; choose another --out")
    with sources.found(checkpoint) as source:
        return _adopt(source, out, context, router_layer, dtype, corpus, command)


def _adopt(
    source: sources.Source, out: Path, context: int, router_layer: int, dtype: str, corpus: str, command: str
) -> Run:
    folder = source.folder
    raw = families.read_config(folder)
    deep = raw.get("num_hidden_layers")
    router_layer = router_layer or (2 if isinstance(deep, int) and deep >= DEEP else 1)
    model = families.model_of(raw, router_layer=router_layer, dtype=dtype)
    vocab_size = families.vocabulary_of(raw)
    tokenizer = Tokenizer.load(
        folder / "tokenizer.json", vocab_size=vocab_size, stop=families.stops_of(raw, folder)
    )
    check_vocabulary(folder, tokenizer)
    data: dict[str, Any] = {
        "vocab_size": vocab_size,
        "tokenizer": str(out.absolute() / "tokenizer.json"),
        "context": families.context_of(raw, context, LONGEST),
        **({"corpus": corpus} if corpus else {}),
    }
    settings = config.Config(model=model).replace(
        data=data, optimizer={"trunk": 0.0, "kind": "adamw"}, dial={"mode": "fixed", "locality": 0.0}
    )
    state, stored = load(source.weights, settings)
    mesh = meshes.make_mesh(config.Mesh(), jax.devices()[:1])
    run = Run(out, settings, Transformer(settings.model, vocab_size), tokenizer, state, mesh)
    _begin(out)
    with Checkpoints(out / "checkpoints", keep=1) as checkpoints:
        checkpoints.save(0, state, manifest=run.manifest(), cursor={})
    keep_origin(folder, out / ORIGIN, stored)
    run.record(command, {"corpus": f"adopted from {source.name}"})
    (out / UNFINISHED).unlink()
    return run


def _begin(out: Path) -> None:
    """Makes the folder; what an adoption that was killed in mid-way left there is removed, and nothing else."""
    if (out / UNFINISHED).is_file():
        for name in ("checkpoints", ORIGIN):
            shutil.rmtree(out / name, ignore_errors=True)
    if (out / "checkpoints").exists():
        raise ValueError(
            f"{out}: holds checkpoints, but no config.json that says of what; remove them, or choose another --out"
        )
    out.mkdir(parents=True, exist_ok=True)
    (out / UNFINISHED).touch()


def check_vocabulary(folder: Path, tokenizer: Tokenizer) -> None:
    """Makes sure that a vocab.json beside tokenizer.json names the same tokens.

    Raises:
      ValueError: it does not: the files are of two saves.
    """
    path = folder / "vocab.json"
    if not path.is_file():
        return
    try:
        other = json.loads(path.read_text(encoding="utf-8")).items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not a vocabulary ({error}); copy it again, or remove it") from error
    known = tokenizer.ids
    odd = next((name for name, at in other if known.get(name) != at), None)
    if odd is not None:
        raise ValueError(
            f"{path}: token {odd!r} is {dict(other)[odd]} there and {known.get(odd)} in tokenizer.json, so they are of "
            "two saves; remove vocab.json if tokenizer.json is the one that is meant, else copy both again"
        )


def keep_origin(folder: Path, origin: Path, dtype: str) -> None:
    """Keeps the checkpoint's own small files, for the way back; config.json says which dtype its tensors had."""
    origin.mkdir(exist_ok=True)
    for name in KEPT:
        if (folder / name).is_file() and name != "config.json":
            shutil.copyfile(folder / name, origin / name)
    raw = families.read_config(folder) | {"dtype": dtype}
    (origin / "config.json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")

"""Everything a report needs, measured on a trained run and left in its folder as JSON and arrays.

One function per file: `sweep.json`, `samples.json`, `blocks.json` with `gates.npz`, `inspect.json`
with `inspect.npz`. Other programs may read them too.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import bits
from localist_jax.data import Batch, valid_batches
from localist_jax.locality import Dial, measures, reach
from localist_jax.locality.anchors import least_redundant, telling
from localist_jax.model import Output, Transformer, forward
from localist_jax.training.evaluate import STATISTICS, SWEEP, Evaluator, window_for_share
from localist_jax.training.run import Run, write_json
from localist_jax.training.state import GATES, at_path, filing_of, with_leaf

FEW = (0.0, 0.9, 0.99, 1.0)  # dials at which a pretrained model is measured: each takes a while
SAMPLED = (0.0, 0.9, 1.0)
REDUNDANT_AT = (0.9, 0.99, 0.999)  # dials, and the fidelity that is wanted of them
WANTED_FIDELITY = 0.9
NAMED_BY = 16_384  # positions, to name blocks by
NAME = 3  # of a block's anchors make its name


def collect(run: Run) -> None:
    """Measures a run and writes every file that `report.write` reads."""
    adopted = run.settings.model.perception_dialled
    measured = sweep(run, FEW if adopted else SWEEP)
    if adopted:  # all its layers follow the dial, so a window in all of them compares
        measured["window"] = window_control(run, measured["settings"][-1]["open_share"])
    write_json(run.workdir / "sweep.json", measured)
    write_json(run.workdir / "samples.json", samples(run, opening(run, tokens=32)))
    write_json(run.workdir / "blocks.json", blocks(run))
    gates = np.asarray(at_path(run.state.params, GATES))
    active = np.asarray(run.state.blocks.active)
    np.savez(
        run.workdir / "gates.npz", gates=gates, router_layer=run.settings.model.router_layer, active=active
    )
    figures, attention = inspect(run, opening(run), Dial(1.0))
    write_json(run.workdir / "inspect.json", figures)
    np.savez(run.workdir / "inspect.npz", attention=attention)


def read(workdir: Path, name: str) -> Any:
    """Return the data that `collect` wrote as `name`.json."""
    return json.loads((workdir / f"{name}.json").read_text(encoding="utf-8"))


def sweep(run: Run, localities: Sequence[float] = SWEEP) -> dict[str, Any]:
    """Validation figures at each λ, and how often the measuring function had to be compiled."""
    settings = run.evaluator.sweep(run.state.params, run.state.blocks, run.valid, localities)
    by_layer = {str(row["locality"]): row.pop("by_layer") for row in settings}
    tokens = sum(int(batch.scored.sum()) for batch in run.valid)
    return {
        "settings": settings,
        "by_layer": by_layer,
        "compile_count": run.evaluator.compile_count,
        "tokens": tokens,
    }


def window_control(run: Run, share: float) -> dict[str, float]:
    """Measure a plain window in all layers that leaves as large a share of pairs open as the gates do."""
    c = run.settings.model
    size = window_for_share(c, run.valid, share)
    model = Transformer(dataclasses.replace(c, window=size, perception_window=size), run.tokenizer.vocab_size)
    gates = jnp.zeros_like(at_path(run.state.params, GATES))
    closed = with_leaf(run.state.params, GATES, gates)
    evaluator = Evaluator(model, run.tokenizer.byte_lengths)
    figures = evaluator.bits_per_token(closed, run.state.blocks, run.valid, Dial(1.0))
    return {"window": size, "open_share": share, **figures}


def opening(run: Run, tokens: int = 80) -> str:
    """The first tokens of the first validation row: something real to read. At most half a context."""
    row, tokens = run.valid[0], min(tokens, run.settings.data.context // 2)
    ids = np.asarray(row.targets[0])[(np.asarray(row.segments[0]) == 1) & np.asarray(row.scored[0])]
    return run.tokenizer.decode(ids[:tokens])


def samples(run: Run, prompt: str, localities: Sequence[float] = SAMPLED, max_new: int = 80) -> list[dict]:
    """Continue the prompt at each dial, all in one batch, and say what each answer could read (T16)."""
    generations = run.generate([prompt] * len(localities), list(localities), max_new=max_new)
    texts = [run.text(prompt, generation)[len(prompt) :] for generation in generations]
    start = len(run.tokenizer.opened(run.tokenizer.encode(prompt).tolist()))
    return [
        {"locality": value, "prompt": prompt, "text": text, **readable(run, prompt + text, start, value)}
        for value, text in zip(localities, texts, strict=True)
    ]


def readable(run: Run, text: str, start: int, locality: float) -> dict[str, float]:
    """How much of what stands before them the tokens from `start` on could read, as shares, means over these tokens.

    `read_directly` counts the open keys of a layer and head; `reached` the positions whose state could have any part
    in the prediction, by however many layers (T16). Below λ=1 no gate closes anything.
    """
    c, ids = run.settings.model, run.tokenizer.opened(run.tokenizer.encode(text).tolist())
    ids = ids[: run.settings.data.context]
    if locality < 1 or len(ids) <= start:
        return {"read_directly": 1.0, "reached": 1.0}
    tokens = jnp.asarray([ids], jnp.int32)
    out = jax.jit(partial(_read_once, run.model))(run.state.params, run.state.blocks, tokens)
    at, segment = jnp.arange(len(ids))[None], jnp.ones_like(tokens)
    gates, filing = at_path(run.state.params, GATES), filing_of(run.state.params, c)
    keys = measures.open_keys(gates, out.blocks, at, segment, c.window, out.filed, filing)
    pairs = reach.open_pairs(gates, out.blocks, at, segment, c.window, out.filed, filing)
    seen = reach.reach(pairs)[0, start:].sum(-1)
    before = at[0, start:] + 1
    direct = keys[:, 0, :, start:].mean((0, 1))
    return {"read_directly": float((direct / before).mean()), "reached": float((seen / before).mean())}


def _read_once(model, params, chosen, tokens) -> Output:
    c = model.config
    return forward(model, params, tokens, Dial(1.0).broadcast(1, c.layers, c.heads), chosen)


def blocks(run: Run, dial: Dial | None = None) -> dict[str, Any]:
    """Return each block's share of positions, and its anchors: the tokens most informative about it (T9).

    Mutual information is the plug-in estimate less the Miller–Madow bias, over the validation rows, and over training
    rows too where these hold fewer than `NAMED_BY` positions.
    """
    c, V = run.settings.model, run.tokenizer.vocab_size
    K = c.block_capacity
    counts, attended = np.zeros((K, V)), np.zeros((K, K))
    read, route = (jax.jit(partial(function, run.model)) for function in (_read_blocks, _routed))
    enough = 0

    def count(ids, batch: Batch) -> int:
        valid = np.asarray(batch.segments) > 0
        np.add.at(counts, (np.asarray(ids)[valid], np.asarray(batch.tokens)[valid]), 1)
        return int(valid.sum())

    for batch in run.valid:
        at = (dial or Dial(1.0)).broadcast(batch.tokens.shape[0], c.layers, c.heads)
        ids, joint = read(run.state.params, run.state.blocks, batch, at)
        attended += np.asarray(joint, np.float64)
        enough += count(ids, batch)
    for batch in valid_batches(run.data.train, len(run.valid[0].tokens)):
        if enough >= NAMED_BY:
            break
        at = (dial or Dial(1.0)).broadcast(batch.tokens.shape[0], c.layers, c.heads)
        enough += count(route(run.state.params, run.state.blocks, batch, at), batch)
    content = counts.copy()
    content[:, run.tokenizer.silent] = 0
    parent = np.asarray(run.state.blocks.parent)
    said = np.flatnonzero(content.sum(0))
    rows = [
        {
            "block": int(block),
            "parent": int(parent[block]),
            "usage": float(counts[block].sum() / counts.sum()),
            **_anchored(run, content[:, said], said, int(block)),
        }
        for block in np.flatnonzero(np.asarray(run.state.blocks.active))
    ]
    return {
        "blocks": rows,
        "positions": int(content.sum()),
        "mutual_information_bits": _corrected_information(content),
        "block_entropy_bits": float(bits.entropy(jnp.asarray(content.sum(1) / max(content.sum(), 1)))),
        "attention_information_bits": float(bits.mutual_information(jnp.asarray(attended))),
        "redundancy": _redundancy(run.settings.data.context),
    }


def _anchored(run: Run, counts: np.ndarray, said: np.ndarray, block: int) -> dict[str, Any]:
    """Name and anchors of a block; counts are by block and by the tokens that were `said`."""
    told = telling(counts, block, vocabulary=run.tokenizer.vocab_size)
    tokens = [int(said[column]) for column in told.tokens]
    texts = [run.tokenizer.token_text(token) for token in tokens]
    words = list(dict.fromkeys(text.strip() or "␣" for text in texts))[:NAME]
    free = "without anchors" if counts[block].sum() else "unused"
    anchors = zip(tokens, texts, told.gains_bits, told.log_odds, strict=True)
    return {
        "name": "sink" if block == 0 else " · ".join(words) or free,
        "anchors": [
            {"token": token, "text": text, "gain_bits": gain, "log_odds": odds}
            for token, text, gain, odds in anchors
        ],
        "entropy_bits": told.entropy_bits,
        "information_bits": told.information_bits,
        "left_bits": told.left_bits,
    }


def _redundancy(keys: int) -> list[dict[str, float]]:
    """How many of so many keys must be open to hold the wanted fidelity at a dial, their logits being equal (T9)."""
    return [
        {
            "locality": value, "fidelity": WANTED_FIDELITY, "keys": keys,
            "least": int(least_redundant(keys, -math.log1p(-value), WANTED_FIDELITY)),
        }
        for value in REDUNDANT_AT
    ]  # fmt: skip


def _read_blocks(model, params, chosen, batch, dial):
    """Blocks of the positions, and the attention mass by query and key block, mean over localist layers and heads."""
    out, sown = model.apply(
        {"params": params}, batch.tokens, dial, chosen,
        positions=batch.positions, segments=batch.segments, mutable=["block_mass"],
    )  # fmt: skip
    return out.blocks, sown["block_mass"]["localist"]["attention"]["all"][0].mean((0, 1))


def _routed(model, params, chosen, batch, dial):
    """Blocks of the positions; the layers above the router are never computed."""
    places = {"positions": batch.positions, "segments": batch.segments}
    return forward(model, params, batch.tokens, dial, chosen, **places).blocks


def _corrected_information(counts: np.ndarray) -> float:
    """Plug-in I(block; token) less its Miller–Madow bias, bits; not below 0."""
    total = max(counts.sum(), 1)
    cells = [(counts > 0).sum(), (counts.sum(1) > 0).sum(), (counts.sum(0) > 0).sum()]
    bias = bits.from_nats((cells[0] - cells[1] - cells[2] + 1) / (2 * total))
    return float(max(0.0, bits.mutual_information(jnp.asarray(counts)) - bias))


def reading(run: Run, text: str, dial: Dial) -> tuple[Output, jax.Array, np.ndarray]:
    """One pass over a text: what the model returns (with all statistics), its tokens, and the attention.

    Returns:
      the output, tokens [1, T] with BOS first (if there is one), and attention [L, N, T, T].

    Raises:
      ValueError: an empty text, or one that does not fit the context.
    """
    ids = run.tokenizer.encode(text).tolist()
    opened, context = run.tokenizer.opened(ids), run.settings.data.context
    if not ids or len(opened) > context:
        room = context - len(opened) + len(ids)
        raise ValueError(f"inspect: the text has {len(ids)} tokens; give it 1 … {room}")
    c = run.settings.model
    tokens = jnp.asarray([opened], jnp.int32)
    read = jax.jit(partial(run.model.apply, stats="dense", mutable=["intermediates"]))
    at = dial.broadcast(1, c.layers, c.heads)
    out, sown = read({"params": run.state.params}, tokens, at, run.state.blocks)
    layers = [
        sown["intermediates"][stack]["attention"]["attention"][0] for stack in ("perception", "localist")
    ]
    return out, tokens, np.asarray(jnp.concatenate(layers)[:, 0].swapaxes(1, 2), np.float32)


def inspect(run: Run, text: str, dial: Dial) -> tuple[dict[str, Any], np.ndarray]:
    """How the model reads a text: per token its block, statistics and code length, and the attention.

    Returns:
      Figures per token (means over layers and heads), BOS first; and attention [L, N, T, T].

    Raises:
      ValueError: as `reading`.
    """
    out, tokens, attention = reading(run, text, dial)
    code = bits.code_length(out.logits[0, :-1], tokens[0, 1:])
    figures: dict[str, Any] = {
        "locality": float(dial.locality.mean()),
        "tokens": [run.tokenizer.token_text(int(token)) for token in tokens[0]],
        "blocks": out.blocks[0].tolist(),
        "bits": [None, *code.tolist()],
    }
    for name in STATISTICS:
        figures[name] = getattr(out.stats, name).mean((0, 2))[0].tolist()
    return figures, attention

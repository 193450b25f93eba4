"""The runs of the study: a stream in which fields appear one after another, and what a model makes of it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.agreement import adjusted_rand, contingency, normalised_information
from experiments.cases import Case, Figures, Store
from experiments.told import told
from experiments.words import one_token_each
from localist_jax.config import Config, resolve
from localist_jax.data import Batch, Prepared, Tokenizer, pack
from localist_jax.data.fields import Fields, lasting_shares
from localist_jax.data.fields import stream as fields_stream
from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.recruitment import record, recruiter
from localist_jax.training.loop import train
from localist_jax.training.run import Run

PHASE = 150  # steps from one field to the next
VALID_ROWS = 256
# One block that may grow, and one that may not; K* blocks from the start, left to the router, and as it is told.
CONDITIONS = ("recruits", "none", "oracle", "told")

BASE: dict[str, Any] = {
    "data": {"corpus": "fields", "context": 64, "batch": 16, "vocab_size": 4096, "shuffle": False, "valid_rows": 0},
    "model": {
        "layers": 3, "width": 32, "heads": 2, "kv_heads": 2, "head_size": 16, "feed_forward": 32, "block_units": 32,
        "window": 4, "perception_window": 8,
    },
    "dial": {"mode": "fixed", "locality": 1.0},
    "gates": {"open_share_target": 1.0},
    "optimizer": {"learning_rate": 6e-3, "final": 1.0},  # a stream has no end
    "router": {"switching_weight": 1.0},
    "recruitment": {"stop": 1.0, "horizon": 75, "placebos": 32},
}  # fmt: skip


def settings_of(condition: str, fields: int, seed: int, phase: int = PHASE) -> Config:
    """The configuration of a run."""
    blocks = 1 + (fields if condition in ("oracle", "told") else 1)
    return resolve(BASE).replace(
        model={"blocks": blocks, "block_capacity": max(blocks, 4), "generations": generations(condition, fields)},
        recruitment={"every": 10 if condition == "recruits" else 0, "start": 0.8 / fields},
        train={"steps": fields * phase, "seed": seed, "log_every": 10, "eval_every": fields * phase,
               "save_every": phase},
    )  # fmt: skip


def generations(condition: str, fields: int) -> int:
    """How many blocks may stand in one line: each field may be found below the one before it."""
    return max(2, fields) if condition == "recruits" else 1


def case(condition: str, fields: int, seed: int) -> Case:
    """Return the case of a condition in a world of so many fields."""
    about = {
        "condition": condition,
        "fields": fields,
        "config": settings_of(condition, fields, seed).to_dict(),
    }
    return Case(f"{condition}/{fields}/seed{seed}", about, measured, cost=fields)


def measured(store: Store, case: Case) -> Figures:
    """Return the figures of a run, which is trained or resumed first."""
    settings, fields = resolve(case.settings["config"]), case.settings["fields"]
    is_told = case.settings["condition"] == "told"
    with told(field_said(settings, fields)) if is_told else contextlib.nullcontext():
        return figures_of(trained(settings, store.own(case), fields), fields)


def field_said(settings: Config, fields: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """From tokens [B, T] to the last field, from 1, that had a word of its own said."""
    world = Fields.create(settings.train.seed, fields)
    tokenizer, ids = one_token_each(world.words)
    field = np.zeros(tokenizer.vocab_size, np.int32)
    field[ids[world.shared :]] = 1 + np.arange(fields * world.own) // world.own

    def block_of(tokens: jax.Array, _: jax.Array) -> jax.Array:
        said = jnp.asarray(field)[tokens]
        last = jax.lax.cummax(jnp.where(said > 0, jnp.arange(tokens.shape[1]), 0), axis=1)
        return jnp.maximum(1, jnp.take_along_axis(said, last, 1))

    return block_of


def stream(settings: Config, fields: int) -> tuple[Fields, Prepared, np.ndarray]:
    """The world, the stream with as many rows as the run reads, and the field of each position of the held-out rows."""
    seed, context = settings.train.seed, settings.data.context
    rows = settings.train.steps // fields * settings.data.batch
    world, streamed = fields_stream(seed, fields, rows, context)
    held_out, labels = world.sample(0, VALID_ROWS, context, lasting_shares(fields))
    tokenizer, ids = one_token_each(world.words)
    train_rows, valid_rows = (
        pack(list(ids[words]), context, Tokenizer.BOS) for words in (streamed, held_out)
    )
    sizes = {"train": rows * fields, "valid": VALID_ROWS}
    text = {"train": 5 * train_rows.token_count, "valid": 5 * valid_rows.token_count}
    prepared = Prepared("fields", tokenizer, train_rows, valid_rows, documents=sizes, bytes=text)
    return world, prepared, labels


def trained(settings: Config, folder: Path, fields: int) -> Run:
    """The run; resumed or taken up where it is."""
    _, prepared, _ = stream(settings, fields)
    return train(settings, folder, hooks=recruiter.hooks(settings), prepared=prepared)


def figures_of(run: Run, fields: int) -> dict[str, Any]:
    """Code length of the stream, and how the blocks of the held-out text agree with its fields."""
    _, prepared, labels = stream(run.settings, fields)
    records = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [r["bits_per_token"] for r in records if r["kind"] == "train"]
    tokens = run.settings.data.batch * run.settings.data.context
    table = contingency(*_fields_and_blocks(run, prepared, labels))
    moves = record.FILE
    path = run.workdir / moves
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return {
        "code_bits": float(np.sum(losses)) * tokens * run.settings.train.log_every,
        "bits_per_token": [round(float(x), 4) for x in losses],
        "ari": adjusted_rand(table),
        "nmi": normalised_information(table),
        "blocks": int(np.asarray(run.state.blocks.active).sum()) - 1,
        "blocks_used": int((table.sum(0) > 0.01 * table.sum()).sum()),
        "table": table.tolist(),
        "moves": lines,
    }


def _fields_and_blocks(run: Run, prepared: Prepared, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Field and block of every held-out position but the first, which is the sink."""
    read = jax.jit(forward, static_argnums=0)
    fields, blocks = [], []
    size = run.settings.data.batch
    for at in range(0, len(prepared.valid), size):
        batch: Batch = prepared.valid.take(np.arange(at, at + size))
        out = read(
            run.model, run.state.params, batch.tokens, Dial(1.0), run.state.blocks,
            positions=batch.positions, segments=batch.segments,
        )  # fmt: skip
        blocks.append(np.asarray(out.blocks)[:, 1:])
        fields.append(labels[at : at + size, :-1])  # the input at position t is word t − 1
    return np.concatenate(fields).ravel(), np.concatenate(blocks).ravel()

"""The runs of the study: one stream of books, read by models that may grow and by models that may not."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.agreement import adjusted_rand, contingency, normalised_information
from experiments.cases import Case, Figures, Store
from experiments.recruitment_recovery import runs as fields
from experiments.recruitment_text import senses
from experiments.recruitment_text.books import Shelf, Stream
from experiments.told import told
from localist_jax import bits
from localist_jax.config import Config, resolve
from localist_jax.data import Batch
from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.recruitment import record, recruiter
from localist_jax.training.journal import Journal, Records, read
from localist_jax.training.loop import Hook, train
from localist_jax.training.run import Run
from localist_jax.training.state import TrainState

PHASE = 120  # steps from one book to the next
EXAMS = "exams.jsonl"
CONDITIONS = ("recruits", "none", "from start", "told", "dense")
NULLS = ("one book", "shuffled")
RECRUITING = ("recruits", *NULLS)

# The model of `recruitment_recovery`, twice as wide.
BASE = resolve(fields.BASE).replace(
    data={"corpus": "books", "vocab_size": 2048},
    model={"width": 64, "head_size": 32, "feed_forward": 128, "block_units": 64},
    recruitment={"placebos": 16},
)


def settings_of(condition: str, books: int, seed: int) -> Config:
    """The configuration of a run; `dense` has the feed-forward units that make it as large as `from start`."""
    blocks = 1 + (books if condition in ("from start", "told") else 1)
    m, steps = BASE.model, books * PHASE
    more: dict[str, Any] = {}
    if condition == "dense":
        # What all blocks' units have beyond one block's, spread over all layers; SwiGLU has three matrices.
        spare = (books - 1) * (m.layers - m.router_layer) * 2 * m.block_units
        more = {
            "dial": {"mode": "fixed", "locality": 0.0},
            "model": {"perception_window": 0, "feed_forward": m.feed_forward + spare // (3 * m.layers)},
        }
    generations = books if condition in RECRUITING else 1
    return BASE.replace(
        model={"blocks": blocks, "block_capacity": max(blocks, 4), "generations": generations},
        recruitment={"every": 10 if condition in RECRUITING else 0, "start": 0.8 / books},
        train={"steps": steps, "seed": seed, "log_every": 10, "eval_every": steps, "save_every": PHASE},
    ).replace(**more)  # fmt: skip


@functools.cache
def shelf(corpus: str) -> Shelf:
    """The corpus; read once in a process."""
    data = BASE.data
    return Shelf(corpus, data.context, data.vocab_size)


def order_of(corpus: str, seed: int) -> list[int]:
    """A random order of the books; of seed 0 the alphabetical one."""
    count = len(shelf(corpus).books)
    return np.random.default_rng([seed, 30]).permutation(count).tolist() if seed else list(range(count))


def case(corpus: str, condition: str, seed: int) -> Case:
    """Return the case of a condition; its configuration is that of two books, since data say how many there are."""
    about = {"corpus": corpus, "condition": condition, "config": settings_of(condition, 2, seed).to_dict()}
    return Case(f"{corpus}/{condition.replace(' ', '-')}/seed{seed}", about, measured)


def measured(store: Store, case: Case) -> Figures:
    """Return the figures of a run, which is trained or resumed first."""
    corpus, condition = case.settings["corpus"], case.settings["condition"]
    seed = case.settings["config"]["train"]["seed"]
    order = order_of(corpus, seed)
    settings = settings_of(condition, len(order), seed)
    rows = PHASE * settings.data.batch
    if condition == "shuffled":
        stream = shelf(corpus).shuffled(order, rows, seed)
    elif condition == "one book":
        stream = shelf(corpus).stream(order[-1:], rows * len(order), seed)
    else:
        stream = shelf(corpus).stream(order, rows, seed)
    hooks = [*recruiter.hooks(settings), Exam(stream)]
    with told(_own_book) if condition == "told" else contextlib.nullcontext():
        run = train(settings, store.own(case), hooks=hooks, prepared=stream.prepared)
        return figures_of(run, stream, corpus, order)


def _own_book(tokens: jax.Array, segments: jax.Array | None) -> jax.Array:
    """The number of a row's one segment is that of its book; parameters are drawn without any."""
    return jnp.ones_like(tokens) if segments is None else segments


class Exam(Hook):
    """Bits per token of every book's held-out pieces, at the end of each phase."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def start(self, run: Run, journal: Journal, step: int) -> None:
        """Takes up the record."""
        self._run, self._records = run, Records(run.workdir / EXAMS, step)

    def __call__(self, step: int, state: TrainState, batch: Batch) -> TrainState:
        """Examines after each whole phase; the last one is examined with the finished run."""
        if (step - 1) % PHASE == 0 and step > 1:
            self._run.state = state
            self._run.fit()
            self._records.write({"step": step - 1, "bits": examined(self._run, self._stream)[0]})
        return state


def examined(run: Run, stream: Stream) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Bits per token by book, and block and token of every held-out position but the first."""
    size, rows = run.settings.data.batch, stream.prepared.valid
    code: list[np.ndarray] = []
    blocks: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    for at in range(0, len(rows), size):
        batch = rows.take(np.arange(at, min(at + size, len(rows))))
        found = _read(run.model, run.state.params, batch, run.state.blocks, run.settings.dial.locality)
        for kept, x in zip((code, blocks, tokens), (*found, batch.tokens), strict=True):
            kept.append(np.asarray(x))
    by_row = np.concatenate(code).mean(1)
    each = {str(book): round(float(by_row[stream.book == book].mean()), 4) for book in np.unique(stream.book)}
    return each, np.concatenate(blocks)[:, 1:], np.concatenate(tokens)[:, 1:]


@functools.partial(jax.jit, static_argnums=0)
def _read(model, params, batch: Batch, blocks, locality):
    dial = Dial(locality).broadcast(batch.tokens.shape[0], model.config.layers, model.config.heads)
    where = {"positions": jnp.asarray(batch.positions), "segments": jnp.asarray(batch.segments)}
    out = forward(model, params, jnp.asarray(batch.tokens), dial, blocks, **where)
    return bits.code_length(out.logits, jnp.asarray(batch.targets)), out.blocks


def figures_of(run: Run, stream: Stream, corpus: str, order: Sequence[int]) -> dict[str, Any]:
    """Code length of the stream, and how the blocks of held-out text agree with books, chapters and supersenses."""
    losses = [r["bits_per_token"] for r in read(run.workdir / "metrics.jsonl") if r["kind"] == "train"]
    data, names = run.settings.data, shelf(corpus).books
    last, blocks, tokens = examined(run, stream)
    exams = [*(r["bits"] for r in read(run.workdir / EXAMS)), last]
    path = run.workdir / record.FILE
    wide = np.broadcast_to(stream.book[:, None], blocks.shape).ravel()
    chapter = np.broadcast_to(stream.chapter[:, None], blocks.shape).ravel()
    table, sense = contingency(wide, blocks.ravel()), senses.supersenses(stream.prepared.tokenizer)
    embedding = np.asarray(run.state.params["embedding"])
    active = np.asarray(run.state.blocks.active)
    return {
        "order": [names[book] for book in order],
        "code_bits": float(np.sum(losses)) * data.batch * data.context * run.settings.train.log_every,
        "bits_per_token": [round(float(x), 4) for x in losses],
        "exams": [{names[int(book)]: x for book, x in exam.items()} for exam in exams],
        "blocks": int(active.sum()) - 1,
        "nmi_book": normalised_information(table),
        "nmi_chapter": normalised_information(contingency(chapter, blocks.ravel())),
        "ari_book": adjusted_rand(table),
        "table": {names[book]: table[book].tolist() for book in np.unique(stream.book)},
        "senses": None
        if sense is None
        else senses.agreement(tokens.ravel(), blocks.ravel(), sense, embedding, run.settings.train.seed),
        "parameters": int(sum(x.size for x in jax.tree.leaves(run.state.params))),
        "repeated": stream.repeated,
        "moves": [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else [],
    }

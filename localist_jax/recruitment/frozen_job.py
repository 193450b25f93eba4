"""`localist recruit`: an adopted model's blocks are recruited from a text, and a localist run is left behind.

The first rows of the text give cells and what pairs of them let through; the rows after them are the stream on which
divisions have to pay. Every decision is a line of `recruitment.jsonl`, and is saved with all that the search goes on
from, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import config
from localist_jax.adopt import localise
from localist_jax.adopt.calibrate import PINNED, TOKENS_PER_BLOCK, Look, MassReader, check, look, with_router
from localist_jax.data import Batch, Prepared, Rows, prepare
from localist_jax.locality import Blocks
from localist_jax.model import Transformer
from localist_jax.recruitment import chronicle
from localist_jax.recruitment.cells import Partition
from localist_jax.recruitment.frozen import FrozenRecruiter, SearchState, check_cost
from localist_jax.recruitment.record import FILE
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.journal import Journal, Records
from localist_jax.training.progress import Progress, Stages, human_time
from localist_jax.training.run import Run, fresh_state, write_json
from localist_jax.training.state import TrainState

SEARCH, ASKED = "search.npz", "search.json"  # what a stopped search goes on from, and what was asked for
CELLS, OPEN_SHARE = 256, 0.15


def settings_of(
    run: Run,
    *,
    corpus: str = "",
    cells: int = CELLS,
    blocks_at_most: int = 64,
    open_share: float = OPEN_SHARE,
) -> config.Config:
    """Return the configuration of the run that `recruit` makes; change what you like in it.

    Args:
      run: an adopted one.
      corpus: text, in the order in which it is read; empty: that of the run.
      cells: that blocks are made of.
      blocks_at_most: at which the search ends, besides the sink's.
      open_share: of all causal pairs of all layers at λ=1, for every partition.

    Raises:
      ValueError: a model without layers above the router, or settings out of range.
    """
    settings = localise.settings_of(run, corpus=corpus, blocks=blocks_at_most, open_share=open_share)
    return settings.replace(
        model={"router_cells": cells + 1, "blocks": 2},
        recruitment={
            "horizon": 4,
            "candidates": 6,
            "placebos": 2,
            "survey": 8,
            "blocks_at_most": blocks_at_most,
        },
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Search:
    """A search in its folder.

    Attributes:
      run: whose blocks are sought.
      settings, out: configuration and folder of the run that will be left.
      recruiter: decides.
      state: where the search begins, or goes on.
      stream: rows to try blocks on, one in a batch.
      model, fresh: network and training state of the run that will be left: trunk and router, but no blocks yet.
      prepared: the text.
      concepts: name → token ids.
    """

    run: Run
    settings: config.Config
    out: Path
    recruiter: FrozenRecruiter
    state: SearchState
    stream: Sequence[Batch]
    fresh: TrainState
    model: Transformer
    prepared: Prepared
    concepts: Mapping[str, Sequence[int]]


def recruit(
    run: Run,
    settings: config.Config,
    out: str | Path,
    *,
    rows: int = 0,
    anchors: Mapping[str, Sequence[str]] | None = None,
    command: str = "",
) -> Run:
    """Make a localist run of an adopted one, whose blocks are recruited; goes on if it was stopped.

    Args:
      run: whose weights and tokenizer stay as they are.
      settings: as `settings_of` makes them; `recruitment.survey` rows are read before the first trial.
      out: folder of the new run.
      rows: of the text on which blocks are tried, at most; 0: all.
      anchors: concept → words; each is proposed as a block of its own, before any other division.
      command: what the user typed, for the record.

    Raises:
      ValueError: a folder that is taken, a text that is too short, an anchor that is no token, or an open share below
        what window and sink hold open.
      CorpusError: a corpus that cannot be read.
    """
    if (Path(out) / "config.json").is_file():
        raise ValueError(f"{out}: holds a run already; choose another --out")
    search = begin(run, settings, out, rows=rows, anchors=anchors)
    state = searched(search)
    best = search.recruiter.contender(state.seen, state.partition)
    step, params = jnp.asarray(state.rows, jnp.int32), best.put_into(search.fresh.params)
    trained = dataclasses.replace(search.fresh, step=step, params=params, blocks=best.blocks)
    settings = search.settings.replace(train={"steps": max(1, state.rows)})
    made = Run(search.out, settings, search.model, run.tokenizer, trained, run.mesh, search.prepared)
    with Checkpoints(made.workdir / "checkpoints", keep=settings.train.keep) as checkpoints:
        checkpoints.save(state.rows, made.state, manifest=made.manifest(), cursor={})
    localise.copy_origin(run, made.workdir)
    about = {"recruitment": best.found.describe() | {"concepts": search.concepts}}
    made.record(command, {**search.prepared.describe(), **about})
    for name in (SEARCH, ASKED):
        (made.workdir / name).unlink()
    return made


def begin(
    run: Run,
    settings: config.Config,
    out: str | Path,
    *,
    rows: int = 0,
    anchors: Mapping[str, Sequence[str]] | None = None,
) -> Search:
    """Return a search that is ready to decide: its survey is done, or it goes on; arguments as of `recruit`.

    Bad input leaves no folder behind.
    """
    out, there = Path(out), Path(out).exists()
    try:
        return _begun(run, settings, out, rows, anchors or {})
    except ValueError:
        if not there:
            shutil.rmtree(out, ignore_errors=True)
        raise


def _begun(
    run: Run, settings: config.Config, out: Path, rows: int, anchors: Mapping[str, Sequence[str]]
) -> Search:
    check_cost(settings.recruitment)
    concepts = {name: localise.tokens_of(run, name, words) for name, words in anchors.items()}
    capacity = max(settings.model.anchor_capacity, sum(map(len, concepts.values())))
    settings = settings.replace(model={"anchor_capacity": capacity})
    asked = {"rows": rows, "concepts": concepts, "config": settings.to_dict()}
    _check(out, json.loads(json.dumps(asked)))
    prepared = prepare(settings.data, out / "cache", run.tokenizer)
    survey, stream = _rows(prepared.train, settings, rows)
    cells = settings.model.router_cells
    shape = dataclasses.replace(settings.model, router_cells=0, blocks=cells, block_capacity=cells)
    reader, reading = _network(run, settings, shape)
    model, fresh = _network(run, settings, settings.model)
    check(shape, survey, settings.gates.open_share_target)
    write_json(out / ASKED, asked)

    anchored = reading.blocks
    for nth, tokens in enumerate(concepts.values()):
        anchored = anchored.anchored(1 + nth, dict.fromkeys(tokens, PINNED))
    state = _loaded(out / SEARCH, [*survey, *stream], len(survey), anchored)
    if state is None:
        key, report = jax.random.key(settings.train.seed), Stages(settings.data.context)
        seen = look(reader, reading.params, survey, key=key, anchors=concepts, report=report)
        single = Partition.single(cells, settings.model.block_capacity)
        state = SearchState(seen, single, survey[-1])
        _save(out / SEARCH, state)
    fresh = dataclasses.replace(fresh, params=with_router(fresh.params, state.seen.router))
    read = partial(MassReader(reader), with_router(reading.params, state.seen.router), anchored)
    named = {1 + nth: concept for nth, concept in enumerate(concepts.items())}
    recruiter = FrozenRecruiter(model, fresh.params, read, state.seen.centres, settings, named)
    return Search(run, settings, out, recruiter, state, stream, fresh, model, prepared, concepts)


def _check(out: Path, asked: Any) -> None:
    """Refuse a folder that holds something else than this search."""
    note = out / ASKED
    if out.exists() and not note.is_file():
        raise ValueError(f"{out}: is there already, and holds no search; choose another --out")
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) != asked:
        raise ValueError(f"{out}: holds a search that was asked for otherwise; choose another --out")


def searched(search: Search) -> SearchState:
    """Search to the end, keep every decision, and return the last state."""
    state, stream, out = search.state, search.stream, search.out
    progress = Progress(len(stream), start=state.rows, tokens=stream[0].tokens.size, label="recruit")
    records, recruiter = Records(out / FILE, state.rows), search.recruiter
    with Journal(out, resume_step=state.rows) as journal:
        for state, record in recruiter.search(search.state, lambda n: stream[n] if n < len(stream) else None):
            records.write(record)
            _save(out / SEARCH, state)
            blocks = len(state.partition.blocks)
            figures = {"blocks": blocks, "llr_bits": record["llr_bits"], "seconds": record["seconds"]}
            journal.scalars(state.rows, "recruitment", figures)
            for line in chronicle.sentences([record]):
                print(f"recruit: {line} [{human_time(record['seconds'])}]", file=sys.stderr, flush=True)
            progress.update(state.rows, f"{blocks} blocks")
    progress.done()
    records.close()
    return state


def _rows(rows: Rows, settings: config.Config, most: int) -> tuple[list[Batch], list[Batch]]:
    """Return the rows of the survey and of the stream, one in a batch, in the order of the text.

    Raises:
      ValueError: too few of them.
    """
    survey, length, cells = settings.recruitment.survey, rows.tokens.shape[1], settings.model.router_cells
    if len(rows) <= survey or length * survey < TOKENS_PER_BLOCK * cells:
        raise ValueError(
            f"recruit: a survey of {survey} of {len(rows)} rows of {length} tokens is too little for {cells - 1} "
            "cells; give more text, set recruitment.survey, or ask for fewer --cells"
        )
    count = min(len(rows), survey + most) if most else len(rows)
    batches = [rows.take(np.array([nth])) for nth in range(count)]
    return batches[:survey], batches[survey:]


def _network(run: Run, settings: config.Config, shape: config.Model) -> tuple[Transformer, TrainState]:
    """Return a network of this shape, and a state of it with the run's trunk."""
    model = Transformer(shape, run.tokenizer.vocab_size)
    state = fresh_state(model, dataclasses.replace(settings, model=shape), run.mesh)
    return model, localise.with_trunk(state, run.state.params)


_TABLES = ("mass", "pairs", "positions", "centres")


def _save(path: Path, state: SearchState) -> None:
    """Write what the search goes on from, atomically."""
    seen, partition = state.seen, state.partition
    about = {
        "counts": [seen.always, seen.causal, seen.tokens],
        "capacity": partition.capacity,
        "search": [state.rows, state.trials, state.refusals, state.over],
        "refused": {cells.hex(): tokens for cells, tokens in state.refused.items()},
        "births": {str(block): birth for block, birth in state.births.items()},
    }
    temporary = path.with_suffix(".tmp.npz")
    tables = {name: getattr(seen, name) for name in _TABLES}
    arrays = {"block_of_cell": partition.block_of_cell, **seen.router, **tables}
    np.savez(temporary, allow_pickle=False, about=np.array(json.dumps(about)), **arrays)
    os.replace(temporary, path)


def _loaded(path: Path, rows: Sequence[Batch], survey: int, cells: Blocks) -> SearchState | None:
    """Return what `_save` wrote about a search with these rows; None if it did not."""
    if not path.is_file():
        return None
    with np.load(path) as stored:
        about = json.loads(str(stored["about"]))
        router = {name: stored[name] for name in ("kernel", "bias")}
        tables = {name: stored[name] for name in _TABLES}
        partition = Partition(stored["block_of_cell"], about["capacity"])
    always, causal, tokens = about["counts"]
    done, trials, refusals, over = about["search"]
    return SearchState(
        Look(router, cells, always=always, causal=causal, tokens=tokens, **tables),
        partition,
        rows[survey + done - 1],
        done,
        trials,
        refusals,
        {bytes.fromhex(cells): tokens for cells, tokens in about["refused"].items()},
        {int(block): tuple(birth) for block, birth in about["births"].items()},
        over,
    )

"""Making an adopted model localist: calibrated in minutes, then, if asked, distilled towards the original.

Calibration finds router, filing and gates by looking at a text; distilling trains low-rank deltas that weigh λ. The
trunk is frozen throughout, so λ=0 stays the original model.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from localist_jax import config
from localist_jax.adopt.calibrate import calibrate, check, shape_of
from localist_jax.adopt.distil import distil
from localist_jax.adopt.load import ORIGIN
from localist_jax.data import Batch, Rows, prepare
from localist_jax.model import Transformer
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.progress import Stages
from localist_jax.training.run import Run, fresh_state
from localist_jax.training.state import TrainState, in_trunk
from localist_jax.types import PyTree

TOKENS = 18_432  # to calibrate on: nine rows of 2,048
BLOCKS, OPEN_SHARE, DELTA_RANK = 128, 0.15, 16
DISTIL_CONTEXT = 1024  # tokens of a row while distilling: half of it in a quarter of the attention of 2,048
VALID_ROWS = 4  # of an evaluation at each dial


def settings_of(
    run: Run,
    *,
    corpus: str = "",
    blocks: int = BLOCKS,
    open_share: float = OPEN_SHARE,
    distil_steps: int = 0,
    delta_rank: int = DELTA_RANK,
) -> config.Config:
    """Return the configuration of the run that `localise` makes; change what you like in it.

    Args:
      run: an adopted one.
      corpus: text to calibrate and distil on, and to evaluate with; empty: that of the run.
      blocks: K, besides the sink's.
      open_share: of all causal pairs of all layers at λ=1.
      distil_steps: steps of distilling; 0: calibrated only.
      delta_rank: rank of the deltas, if there is distilling.

    Raises:
      ValueError: a model without layers above the router, or settings out of range.
    """
    c, s = run.settings.model, run.settings
    if c.layers <= c.router_layer:
        raise ValueError(
            f"{run.workdir}: has no layers above the router; adopt it with a smaller --router-layer"
        )
    model = shape_of(c, blocks, delta_rank if distil_steps else 0)
    return s.replace(
        data={"corpus": corpus or s.data.corpus, "batch": 1, "valid_rows": VALID_ROWS},
        model=dataclasses.asdict(model) | {"rope_scaling": model.rope_scaling},
        dial={"mode": "any", "share_distributed": 0.0, "share_localist": 0.6},
        gates={"open_share_target": open_share, "gate_bits": 0.0},
        optimizer={"kind": "adamw", "trunk": 0.0, "weight_decay": 0.0, "learning_rate": 2e-3, "final": 0.0},
        train={"steps": max(1, distil_steps), "save_every": 50, "log_every": 1},
    )  # fmt: skip


def localise(
    run: Run,
    settings: config.Config,
    out: str | Path,
    *,
    tokens: int = TOKENS,
    anchors: Mapping[str, Sequence[str]] | None = None,
    command: str = "",
) -> Run:
    """Makes a localist run of an adopted one; distilling that was interrupted goes on from its last checkpoint.

    Args:
      run: whose weights, tokenizer and rotary positions stay as they are.
      settings: as `settings_of` makes them.
      out: folder of the new run.
      tokens: positions to calibrate on, in whole rows; a smaller corpus is used whole.
      anchors: name → words; each gets a block of its own, to which these words always go.
      command: what the user typed, for the record.

    Raises:
      ValueError: a folder that is taken, an anchor that is no token, another shape of trunk, or as `calibrate`.
      CorpusError: a corpus that cannot be read.
    """
    out = Path(out)
    if out.absolute() == run.workdir.absolute():
        raise ValueError(f"{out}: is the run itself; choose another --out")
    begun, there = (out / "config.json").is_file(), out.exists()
    if begun and not settings.model.delta_rank:
        raise ValueError(f"{out}: holds a run already; choose another --out")
    asked = {
        "tokens": tokens,
        "anchors": {name: tokens_of(run, name, words) for name, words in (anchors or {}).items()},
    }
    try:
        made = _begun(out, settings, asked) if begun else _calibrated(run, settings, out, asked, command)
    except ValueError:
        if not there:
            shutil.rmtree(out, ignore_errors=True)
        raise
    if settings.model.delta_rank:
        context = min(DISTIL_CONTEXT, settings.data.context)
        short = dataclasses.replace(settings.data, context=context)
        distil(made, prepare(short, out / "cache", run.tokenizer).train)
    return made


def _begun(out: Path, settings: config.Config, asked: dict[str, Any]) -> Run:
    """The run whose distilling was interrupted."""
    made, about = Run.open(out), json.loads((out / "config.json").read_text(encoding="utf-8"))
    if made.settings != settings or about["data"]["calibration"]["asked"] != asked:
        raise ValueError(f"{out}: holds a run that was asked for otherwise; choose another --out")
    return made


def _calibrated(run: Run, settings: config.Config, out: Path, asked: dict[str, Any], command: str) -> Run:
    """The calibrated run, saved as step 0."""
    prepared = prepare(settings.data, out / "cache", run.tokenizer)
    batches = calibration_batches(prepared.train, asked["tokens"], settings.train.seed)
    open_share, seed = settings.gates.open_share_target, settings.train.seed
    check(settings.model, batches, open_share)
    model = Transformer(settings.model, run.tokenizer.vocab_size)
    state = with_trunk(fresh_state(model, settings, run.mesh), run.state.params)
    found = calibrate(
        model,
        state.params,
        batches,
        open_share=open_share,
        key=jax.random.key(seed),
        anchors=asked["anchors"],
        report=Stages(batches[0].tokens.size),
    )
    state = dataclasses.replace(state, params=found.put_into(state.params), blocks=found.blocks)
    made = Run(out, settings, model, run.tokenizer, state, run.mesh, prepared)
    _save(made, {**found.describe(), "asked": asked}, run, command)
    return made


def _save(made: Run, calibration: dict[str, Any], run: Run, command: str) -> None:
    with Checkpoints(made.workdir / "checkpoints", keep=made.settings.train.keep) as checkpoints:
        checkpoints.save(0, made.state, manifest=made.manifest(), cursor={})
    copy_origin(run, made.workdir)
    made.record(command, {**made.data.describe(), "calibration": calibration})


def copy_origin(run: Run, out: Path) -> None:
    """Copy what exporting and the chat template need of the adopted checkpoint to the folder of a run made of it."""
    if (run.workdir / ORIGIN).is_dir():
        shutil.copytree(run.workdir / ORIGIN, out / ORIGIN, dirs_exist_ok=True)


def calibration_batches(rows: Rows, tokens: int, seed: int) -> list[Batch]:
    """Return rows of the text, one in a batch, drawn at random until they hold so many positions."""
    order = np.random.default_rng(seed).permutation(len(rows))
    filled = np.count_nonzero(rows.segments[order], axis=1)
    count = int(np.searchsorted(np.cumsum(filled), tokens)) + 1
    return [rows.take(order[i : i + 1]) for i in range(min(count, len(rows)))]


def tokens_of(run: Run, name: str, words: Sequence[str]) -> list[int]:
    """Return the single tokens that a name's words are, as they stand alone and after a space.

    Raises:
      ValueError: a word that is no single token.
    """
    ids: list[int] = []
    for word in words:
        forms = [run.tokenizer.encode(form).tolist() for form in (word, f" {word}")]
        single = [form[0] for form in forms if len(form) == 1]
        if not single:
            raise ValueError(f"anchor {name}: {word!r} is no single token of this model; use another word")
        ids += single
    return list(dict.fromkeys(ids))


def with_trunk(state: TrainState, params: PyTree) -> TrainState:
    """A state with the trunk of other parameters.

    Raises:
      ValueError: a leaf of the trunk that is not there or has another shape, by its path.
    """
    flat: dict[tuple[str, ...], Any] = traverse_util.flatten_dict(state.params)
    other = traverse_util.flatten_dict(params)
    for path, leaf in flat.items():
        if in_trunk(path):
            shape = other[path].shape if path in other else None
            if shape != leaf.shape:
                raise ValueError(
                    f"localise: {'/'.join(path)}: expected shape {leaf.shape}, the run has {shape}; "
                    "keep the model's sizes and router_layer"
                )
            flat[path] = jnp.array(other[path])  # a copy: the step donates its state
    return dataclasses.replace(state, params=traverse_util.unflatten_dict(flat))

"""Making an adopted model localist: router, gates and (if wanted) units are trained, the trunk hardly or not at all.

It starts with all gates open and units that put out zero: the original at every dial. With a frozen trunk λ=0 stays
the original for good, since gates, blocks and dialled units have no say there.
"""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial
from pathlib import Path

import jax.numpy as jnp
from flax import traverse_util

from localist_jax import config
from localist_jax.adopt.load import ORIGIN
from localist_jax.data import prepare
from localist_jax.training.loop import train
from localist_jax.training.run import Run
from localist_jax.training.state import UNITS, TrainState, in_trunk
from localist_jax.types import PyTree

WINDOW = 8  # always-open window of localist layers


def settings_of(
    run: Run,
    *,
    corpus: str = "",
    steps: int = 500,
    blocks: int = 16,
    units: int = 0,
    trunk: float = 0.0,
    open_share: float = 0.5,
) -> config.Config:
    """The configuration that makes a run localist; change what you like in it.

    Args:
      run: an adopted one, or any whose λ=0 is to be kept.
      corpus: the text to learn from; empty: that of the run.
      steps: of training, any-dial.
      blocks: K.
      units: localist units per block; they weigh λ.
      trunk: learning rate of everything else, as a share; 0: frozen.
      open_share: of causal pairs at λ=1 over all layers. Layers before the router are dense and count as 1.

    Raises:
      ValueError: settings out of range, or an open share below what the dense layers alone hold open.
    """
    c, s = run.settings.model, run.settings
    least = c.router_layer / c.layers
    if not c.perception_window and open_share <= least:
        raise ValueError(
            f"localise: open_share {open_share} is below the {least:.2f} of the {c.router_layer} dense layer(s) "
            f"before the router; ask for more"
        )
    return s.replace(
        data={"corpus": corpus or s.data.corpus},
        model={
            "blocks": blocks, "block_capacity": blocks, "block_units": units, "background": False,
            "dialled_units": True, "window": WINDOW,
        },
        dial={"mode": "any"},
        gates={"open_share_target": open_share, "gate_bits": 0.0, "open_at_least": 0.1, "open_at_most": 0.2},
        optimizer={"kind": "adamw", "trunk": trunk, "weight_decay": 0.0, "learning_rate": 3e-3},
        train={"steps": steps},
    )  # fmt: skip


def localise(run: Run, settings: config.Config, out: str | Path, *, command: str = "") -> Run:
    """Trains a localist run from the trunk of another; resumes like any run.

    Args:
      run: whose weights to begin with; its tokenizer is used.
      settings: as `settings_of` makes them.
      out: folder of the new run.
      command: what the user typed, for the record.

    Raises:
      ValueError: another shape of trunk, or as `training.loop.train`.
    """
    out = Path(out)
    if out.absolute() == run.workdir.absolute():
        raise ValueError(f"{out}: is the run itself; choose another --out")
    prepared = prepare(settings.data, out / "cache", run.tokenizer)
    begin = partial(with_trunk, params=run.state.params)
    made = train(settings, out, command=command, prepared=prepared, begin=begin)
    if (run.workdir / ORIGIN).is_dir():
        shutil.copytree(run.workdir / ORIGIN, out / ORIGIN, dirs_exist_ok=True)
    return made


def with_trunk(state: TrainState, params: PyTree) -> TrainState:
    """A state with the trunk of other parameters, and units that put out zero.

    Raises:
      ValueError: a leaf of the trunk that is not there or has another shape, by its path.
    """
    flat, other = traverse_util.flatten_dict(state.params), traverse_util.flatten_dict(params)
    for path, leaf in flat.items():
        if in_trunk(path):
            shape = other[path].shape if path in other else None
            if shape != leaf.shape:
                raise ValueError(
                    f"localise: {'/'.join(path)}: expected shape {leaf.shape}, the run has {shape}; "
                    "keep the model's sizes and router_layer"
                )
            flat[path] = jnp.array(other[path])  # a copy: the step donates its state
        elif path == UNITS:
            flat[path] = jnp.zeros_like(leaf)
    return dataclasses.replace(state, params=traverse_util.unflatten_dict(flat))

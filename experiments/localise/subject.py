"""The model that is studied: adopted once, looked at once for each text, and every condition made of that."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from experiments.localise.texts import CORPORA, Texts, batches, together
from localist_jax import config
from localist_jax.adopt import adopt
from localist_jax.adopt.calibrate import Calibration, Look, choose, look, shape_of
from localist_jax.adopt.distil import distil
from localist_jax.adopt.localise import settings_of, with_trunk
from localist_jax.data import Batch
from localist_jax.locality import Blocks
from localist_jax.locality.measures import pair_counts
from localist_jax.model import Transformer
from localist_jax.training.progress import Progress
from localist_jax.training.run import Run, abstract_state, fresh_state
from localist_jax.training.state import GATES, at_path, in_trunk, with_leaf
from localist_jax.types import PyTree

LOOK_VERSION = 1  # raised when a look would find something else
Context = Callable[[], contextlib.AbstractContextManager[Any]]


@dataclasses.dataclass(frozen=True, eq=False)
class Condition:
    """A model at a dial, ready to be read.

    Attributes:
      model, params, blocks, dial: what `forward` takes.
      within: entered while it runs, where a control replaces a part of the model.
      about: further figures of it.
    """

    model: Transformer
    params: PyTree
    blocks: Blocks
    dial: float
    within: Context = contextlib.nullcontext
    about: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How large the study is.

    Attributes:
      context: tokens of a row.
      calibration_rows: of each corpus.
      blocks: besides the sink's.
    """

    context: int = 2048
    calibration_rows: int = 3
    blocks: int = 128


class Subject:
    """The adopted model, its texts, and what was found by looking at it.

    Args:
      checkpoint: what `adopt` takes.
      folder: where everything is kept.
      sizes: of the study.
    """

    def __init__(self, checkpoint: str | Path, folder: Path, sizes: Sizes):
        self.folder, self.sizes = folder, sizes
        if not (folder / "adopted" / "config.json").is_file():
            adopt(checkpoint, folder / "adopted", context=sizes.context)
        self.run = Run.open(folder / "adopted")
        self.texts = Texts(self.run.tokenizer, folder / "streams")

    @cached_property
    def fingerprint(self) -> str:
        """Tell this model and its texts from others."""
        embedding = np.asarray(self.run.state.params["embedding"][:64])
        return hashlib.sha256(embedding.tobytes() + self.texts.fingerprint.encode()).hexdigest()[:16]

    def shape(self, **changes: Any) -> config.Model:
        """Return the localist shape of the model."""
        return dataclasses.replace(shape_of(self.run.settings.model, self.sizes.blocks), **changes)

    def network(self, shape: config.Model) -> Transformer:
        """Return the network of a shape."""
        return Transformer(shape, self.run.tokenizer.vocab_size)

    @cached_property
    def trunk(self) -> PyTree:
        """The original's weights in the localist shape; router, filing and gates are 0."""
        settings = dataclasses.replace(self.run.settings, model=self.shape())
        wanted = abstract_state(self.network(self.shape()), settings, self.run.mesh).params
        mine = traverse_util.flatten_dict(self.run.state.params)
        flat = {
            path: mine[path] if in_trunk(path) else jnp.zeros(leaf.shape, leaf.dtype)
            for path, leaf in traverse_util.flatten_dict(wanted).items()
        }
        return traverse_util.unflatten_dict(flat)

    @cached_property
    def blocks(self) -> Blocks:
        """All blocks in use, none anchored."""
        c = self.shape()
        return Blocks.create(c.blocks, c.block_capacity, c.anchor_capacity)

    def original(self) -> Condition:
        """Return the model as it was adopted."""
        run = self.run
        return Condition(run.model, run.state.params, run.state.blocks, 0.0, about={"open_share": 1.0})

    def calibration(self, names: Sequence[str], context: int) -> list[Batch]:
        """Return the rows to calibrate on, evenly from these texts: as many positions whatever the length of a row."""
        positions = len(CORPORA) * self.sizes.calibration_rows * self.sizes.context
        each = max(1, round(positions / (context * len(names))))
        return batches(together([self.texts.rows(name, "train", context, each) for name in names]))

    def look(
        self,
        names: Sequence[str],
        context: int,
        seed: int,
        *,
        shape: config.Model | None = None,
        within: Context = contextlib.nullcontext,
        kind: str = "routed",
    ) -> tuple[Look, float]:
        """Return what a look at some text finds, and the seconds it took; kept on disk.

        Args:
          names: of corpora.
          context, seed: of the rows and of k-means.
          shape, within, kind: of a control.
        """
        s = self.sizes
        about = (
            LOOK_VERSION,
            self.fingerprint,
            s.context,
            s.calibration_rows,
            s.blocks,
            tuple(names),
            context,
            seed,
            kind,
        )
        path = self.folder / "looks" / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:16]}.npz"
        if not path.exists():
            begun = time.monotonic()
            with within():
                seen = look(
                    self.network(shape or self.shape()), self.trunk, self.calibration(names, context),
                    key=jax.random.key(seed), report=_reported(context),
                )  # fmt: skip
            _save(path, seen, time.monotonic() - begun)
        return self._load(path)

    def _load(self, path: Path) -> tuple[Look, float]:
        with np.load(path) as stored:
            mass = stored["mass"].astype(np.float64)
            router = {"kernel": stored["kernel"], "bias": stored["bias"]}
            always, causal, tokens, seconds = stored["counts"]
            seen = Look(router, self.blocks, mass, stored["pairs"], always, causal, int(tokens))
        return seen, float(seconds)

    def localist(self, found: Calibration, **options: Any) -> Condition:
        """Return the calibrated model at λ=1; `options` as of `Condition`."""
        options = {"model": self.network(self.shape()), "dial": 1.0, "blocks": found.blocks, **options}
        return Condition(params=found.put_into(self.trunk), **options)

    def calibrated(self, share: float, context: int, seed: int, names: Sequence[str]) -> Condition:
        """Return the model calibrated to an open share."""
        seen, seconds = self.look(names, context, seed)
        begun = time.monotonic()
        found = choose(self.shape(), seen, share)
        seconds += time.monotonic() - begun
        about = {**found.describe(), "calibration_seconds": seconds}
        return self.localist(found, about=about)

    def window(self, share: float, context: int) -> Condition:
        """Return the model with every gate closed and a window, the same in all layers, of this open share."""
        size, fitted = window_of(share, context, self.shape().sink)
        shape = self.shape(window=size, perception_window=size)
        gates = jnp.zeros_like(at_path(self.trunk, GATES)).at[..., 0].set(1.0)
        params = with_leaf(self.trunk, GATES, gates)
        about = {"window": size, "fitted_share": fitted}
        return Condition(self.network(shape), params, self.blocks, 1.0, about=about)

    def distilled(self, share: float, seed: int, steps: int, context: int, names: Sequence[str]) -> Condition:
        """Return the calibrated model after so many steps of distilling; goes on where it was stopped."""
        seen, _ = self.look(names, self.sizes.context, seed)
        found = choose(self.shape(), seen, share)
        settings = settings_of(
            self.run, blocks=self.sizes.blocks, open_share=share, distil_steps=steps
        ).replace(train={"seed": seed})
        folder = self.folder / "distilled" / f"{share:g}-{steps}-{seed}"
        begun = (folder / "config.json").is_file()
        if begun:
            run = Run.open(folder)
        else:
            model = self.network(settings.model)
            mine = jax.tree.map(jnp.copy, self.run.state.params)  # distilling gives its state's memory away
            state = with_trunk(fresh_state(model, settings, self.run.mesh), mine)
            state = dataclasses.replace(state, params=found.put_into(state.params), blocks=found.blocks)
            run = Run(folder, settings, model, self.run.tokenizer, state, self.run.mesh)
        each = -(-steps // len(names))
        rows = together([self.texts.rows(name, "train", context, each) for name in names])
        if int(run.state.step) < steps:
            distil(run, rows)
            run.record("", {"corpus": ", ".join(names)})
        about = {"tokens_distilled": steps * context}
        return Condition(run.model, run.state.params, run.state.blocks, 1.0, about=about)


def window_of(share: float, context: int, sink: int) -> tuple[int, float]:
    """Return the window whose open share in rows of this length is nearest to the one wanted, and its share."""
    positions = jnp.arange(context)[None]
    block, ones = jnp.where(positions < sink, 0, 1), jnp.ones_like(positions)

    def opened(size: int) -> float:
        _, always, total = pair_counts(block, positions, ones, size, 2)
        return float(always / total)

    enough = 1 + bisect_left(range(1, context), share, key=opened)
    size = min((max(1, enough - 1), enough), key=lambda size: abs(opened(size) - share))
    return size, opened(size)


def _save(path: Path, seen: Look, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp.npz")
    counts = np.array([seen.always, seen.causal, seen.tokens, seconds])
    mass = seen.mass.astype(np.float32)
    kernel, bias = seen.router["kernel"], seen.router["bias"]
    np.savez(temporary, mass=mass, pairs=seen.pairs, counts=counts, kernel=kernel, bias=bias)
    temporary.replace(path)


def _reported(context: int) -> Callable[[str, int, int], None]:
    """Return a report of a look's stages as lines of progress."""
    stages: dict[str, Progress] = {}

    def report(stage: str, done: int, total: int) -> None:
        progress = stages.setdefault(stage, Progress(total, tokens=context, label=stage))
        progress.update(done, "")

    return report

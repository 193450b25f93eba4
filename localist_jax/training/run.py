"""A run: its folder, configuration, tokenizer, model and state, opened for reading or being trained."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from localist_jax import config
from localist_jax.data import Batch, Prepared, Tokenizer, prepare, valid_batches
from localist_jax.locality import Dial
from localist_jax.model import Generation, Transformer, generate
from localist_jax.parallel import hosts, sharding
from localist_jax.parallel import mesh as meshes
from localist_jax.training import state as states
from localist_jax.training.checkpoint import CheckpointError, Checkpoints
from localist_jax.training.evaluate import Evaluator
from localist_jax.training.state import TrainState

RULES = Path("rules", "active.yaml")  # in a run's folder, the rules that it is served with
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "chex", "grain", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Python's version and those of the libraries a run depends on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


@cache
def code() -> str:
    """16 hex digits that identify the sources of this package, as they lie on this machine."""
    root = Path(__file__).parents[1]
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return found.hexdigest()[:16]


def compare_hosts(settings: config.Config, workdir: Path, **more: Any) -> None:
    """Makes sure that all processes of a job have the same settings, versions, sources and checkpoints.

    Raises:
      HostsDiffer: they have not.
    """
    if jax.process_count() > 1:
        there = sorted(int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit())
        facts = {"config": settings.to_dict(), "versions": {**versions(), "localist_jax": code()}}
        hosts.compare(**facts, checkpoints=there, **more)


def compare_data(prepared: Prepared) -> None:
    """Makes sure that all processes of a job have the same text, tokenizer and rows.

    Raises:
      HostsDiffer: they have not.
    """
    if jax.process_count() > 1:
        found = {"text": prepared.text, "tokenizer": prepared.tokenizer.fingerprint, "rows": prepared.digest}
        for (
            name,
            digest,
        ) in found.items():  # in this order: other text also makes another tokenizer and other rows
            hosts.compare(data={name: digest})


def machine() -> dict[str, Any]:
    """What the run is made on: processor, cores, platform, accelerators."""
    return {
        "cpu": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "platform": f"{platform.system()} {platform.machine()}",
        "devices": [device.device_kind for device in jax.devices()],
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [x for x in info.read_text().splitlines() if x.startswith("model name")] if info.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader sees the old file or the new one, never half of one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@dataclasses.dataclass
class Run:
    """Everything that belongs to one trained (or training) model.

    Attributes:
      workdir: its folder.
      settings: its resolved configuration.
      model, tokenizer, state: the network, its vocabulary, its parameters and what goes with them.
      mesh: where the state lies.
      prepared: what it is trained and evaluated on, in its own tokens; None: the corpus, read when it is asked for.
      rules: the rule file that was active when the checkpoint was saved that this run was opened at; "": none.
      seen: digest of the corpus that the checkpoint was trained on; "": of none.

    Raises:
      ValueError: `prepared` was made with another tokenizer.
    """

    workdir: Path
    settings: config.Config
    model: Transformer
    tokenizer: Tokenizer
    state: TrainState
    mesh: jax.sharding.Mesh
    prepared: Prepared | None = None
    rules: str = ""
    seen: str = ""

    def __post_init__(self):
        if self.prepared:
            check_tokenizer(self.prepared.tokenizer, self.tokenizer.fingerprint, "the data")

    @classmethod
    def open(cls, workdir: str | Path, step: int | None = None) -> Run:
        """Opens a run folder for evaluation, generation or inspection, at its last checkpoint or at `step`.

        Raises:
          ValueError: no run there.
          CheckpointError: no such checkpoint, one that cannot be read, or one of another tokenizer than the folder's.
        """
        workdir = Path(workdir)
        if not (workdir / "config.json").is_file():
            raise ValueError(f"{workdir}: no run here (config.json is missing); `localist train` makes one")
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            manifest = checkpoints.manifest(step)
            settings = config.resolve(manifest["config"])
            tokenizer = own_tokenizer(workdir, manifest["topology"]["tokenizer"])
            mesh = meshes.make_mesh(config.Mesh(), jax.devices()[:1])
            model = Transformer(settings.model, tokenizer.vocab_size)
            state, _ = checkpoints.restore(abstract_state(model, settings, mesh), manifest["step"])
        kept = {name: manifest.get(name, "") for name in ("rules", "seen")}
        return cls(workdir, settings, model, tokenizer, state, mesh, **kept)

    def record(self, command: str, data: dict[str, Any] | None = None) -> None:
        """Writes config.json and tokenizer.json: what the run is made of, with what, on what, when.

        Args:
          command: what the user typed.
          data: about what it was trained on; None: the corpus.
        """
        if not hosts.is_first():
            return
        self.tokenizer.save(self.workdir / "tokenizer.json")
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        write_json(
            self.workdir / "config.json",
            {
                "config": self.settings.to_dict(),
                "versions": versions(),
                "command": command,
                "machine": machine(),
                "date": datetime.date.today().isoformat(),
                "parameters": parameters,
                "data": self.data.describe() if data is None else data,
            },
        )

    def fit(self) -> None:
        """Fits settings and model to the state, which may have grown beyond their capacity."""
        capacity = self.state.blocks.active.size
        if capacity != self.settings.model.block_capacity:
            self.settings = self.settings.replace(model={"block_capacity": capacity})
            self.model = dataclasses.replace(self.model, config=self.settings.model)
            self.__dict__.pop("evaluator", None)

    def manifest(self) -> dict[str, Any]:
        """What a checkpoint says about itself: configuration, topology and rules it was saved with."""
        c = self.settings.model
        topology = {
            "active_blocks": int(np.asarray(self.state.blocks.active).sum()),
            "block_capacity": c.block_capacity,
            "specialists": 1,
            "tokenizer": self.tokenizer.fingerprint,
        }
        active = self.workdir / RULES
        rules = active.read_text(encoding="utf-8") if active.is_file() else self.rules
        seen = self.prepared.text if self.prepared else self.seen
        return {"config": self.settings.to_dict(), "topology": topology, "rules": rules, "seen": seen}

    @cached_property
    def data(self) -> Prepared:
        """The corpus, packed in the run's own tokens."""
        if self.prepared:
            return self.prepared
        prepared = prepare(self.settings.data, self.workdir / "cache", self.tokenizer)
        tell_new_text(prepared.corpus_name, prepared.text, self.seen)
        return prepared

    @cached_property
    def valid(self) -> list[Batch]:
        """The validation batches: the rows of each that this process reads."""
        data = self.settings.data
        share = hosts.share(sharding.batch_sharding(self.mesh), data.batch)
        return valid_batches(self.data.valid, data.batch, data.valid_rows, shard=share)

    def place(self, batch: Batch) -> Batch:
        """A batch, of which this process read its share, on the run's devices."""
        return hosts.place(batch, sharding.batch_sharding(self.mesh), self.settings.data.batch)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Compiled once for the run."""
        return Evaluator(self.model, self.tokenizer.byte_lengths)

    def watch(self, localities: tuple[float, ...]) -> dict[str, float]:
        """Validation code length at some dials: {"bits_per_token@0.9": …}."""
        figures: dict[str, float] = {}
        batches = [self.place(batch) for batch in self.valid]
        for value in localities:
            read = self.evaluator.bits_per_token(self.state.params, self.state.blocks, batches, Dial(value))
            figures |= {f"{name}@{value:g}": x for name, x in read.items()}
        return figures

    def generate(self, prompts: Sequence[str | list[int]], dial, **options) -> list[Generation]:
        """`model.generate` on text: encodes the prompts, and keeps to the context the run was trained at.

        A prompt may be token ids instead; with `bos=None` nothing is put before them.
        """
        ids = [p if isinstance(p, list) else self.tokenizer.encode(p).tolist() for p in prompts]
        options = {"bos": self.tokenizer.bos, **options}
        return generate(
            self.model,
            self.state.params,
            self.state.blocks,
            ids,
            dial,
            context=self.settings.data.context,
            silent=self.tokenizer.silent,
            stop=self.tokenizer.stop,
            **options,
        )

    def text(self, prompt: str, generation: Generation) -> str:
        """The prompt with what was generated, decoded together (a character may span the border)."""
        return self.tokenizer.decode([*self.tokenizer.encode(prompt).tolist(), *generation.tokens])


def own_tokenizer(workdir: Path, fingerprint: str) -> Tokenizer:
    """The tokenizer that a run was made with, from its folder: it stays the run's, whatever becomes of the corpus.

    Args:
      workdir: the folder.
      fingerprint: of the tokenizer, as the checkpoint's manifest names it.

    Raises:
      CheckpointError: the folder has another tokenizer now.
      ValueError: it has none that can be read.
    """
    tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    check_tokenizer(tokenizer, fingerprint, str(workdir / "tokenizer.json"))
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, fingerprint: str, what: str) -> None:
    """Makes sure that `what` uses the tokenizer with this fingerprint, the run's own.

    Raises:
      CheckpointError: it uses another.
    """
    if tokenizer.fingerprint != fingerprint:
        raise CheckpointError(
            f"{what}: expected the tokenizer that the run was made with ({fingerprint}), got another "
            f"({tokenizer.fingerprint}), whose tokens mean something else; copy the run's tokenizer.json back, "
            "or use another --workdir"
        )


def tell_new_text(corpus: str, text: str, known: str) -> None:
    """Says in one line that a run which knows the text with digest `known` ("": none) is given another."""
    if known and text != known and hosts.is_first():
        print(
            f"data: the text of {corpus!r} is not what this run was trained on; it is read as new data, "
            "with the run's own tokenizer",
            file=sys.stderr,
            flush=True,
        )


def boxed_state(model: Transformer, settings: config.Config) -> TrainState:
    """Shapes and dtypes of a run's state, its parameters and moments boxed with their logical axis names."""
    return jax.eval_shape(lambda key: states.create(model, settings, key), jax.random.key(0))


def abstract_state(model: Transformer, settings: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Shapes, dtypes and shardings of a run's state, without making it.

    Raises:
      ValueError: a dimension that does not divide over its mesh axis.
    """
    boxed = boxed_state(model, settings)
    shardings = sharding.state_shardings(boxed, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.unbox(boxed),
        shardings,
    )


def fresh_state(model: Transformer, settings: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """The state before the first step, made in place on the mesh."""
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, settings, mesh))
    create = jax.jit(lambda key: nn.unbox(states.create(model, settings, key)), out_shardings=wanted)
    return create(jax.random.key(settings.train.seed))

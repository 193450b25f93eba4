"""A run: its folder, configuration, tokenizer, model and state, either opened for reading or in training."""

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

ACTIVE_RULES = Path("rules", "active.yaml")  # in a run's folder, the rules that generation obeys
ENSEMBLE = "ensemble.json"  # in the folder of an ensemble, which holds runs of its members
LIBRARIES = ("jax", "flax", "optax", "orbax-checkpoint", "chex", "grain", "tokenizers", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that a run depends on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}


def is_ensemble(workdir: Path) -> bool:
    """Return whether an ensemble was saved in that folder."""
    return (workdir / ENSEMBLE).is_file()


@cache
def code() -> str:
    """Return 16 hex digits that identify the sources of this package on this machine."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def compare_hosts(settings: config.Config, workdir: Path, **more: Any) -> None:
    """Check that all processes of a job have the same settings, versions, sources and checkpoints.

    Raises:
      HostsDiffer: if they differ.
    """
    if jax.process_count() > 1:
        present = sorted(
            int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()
        )
        facts = {"config": settings.to_dict(), "versions": {**versions(), "localist_jax": code()}}
        hosts.compare(**facts, checkpoints=present, **more)


def compare_data(prepared: Prepared) -> None:
    """Check that all processes of a job have the same text, tokenizer and rows.

    Raises:
      HostsDiffer: if they differ.
    """
    if jax.process_count() > 1:
        # In this order, since other text also leads to another tokenizer and other rows.
        digests = {
            "text": prepared.text,
            "tokenizer": prepared.tokenizer.fingerprint,
            "rows": prepared.digest,
        }
        for name, digest in digests.items():
            hosts.compare(data={name: digest})


def machine() -> dict[str, Any]:
    """Return a description of this machine: processor, cores, platform, accelerators."""
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
    """Write JSON atomically: a reader sees the old file or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


@dataclasses.dataclass
class Run:
    """A model that is trained or in training, and everything that belongs to it.

    Attributes:
      workdir: its folder.
      settings: its resolved configuration.
      model, tokenizer, state: the network, its tokenizer, and its training state.
      mesh: the mesh that the state is on.
      prepared: the data in the run's own tokens; None: the corpus, read when it is needed.
      saved_rules: contents of the rule file that was active when the opened checkpoint was saved; "": none.
      seen: digest of the corpus that the checkpoint was trained on; "": none.

    Raises:
      ValueError: if `prepared` was made with another tokenizer.
    """

    workdir: Path
    settings: config.Config
    model: Transformer
    tokenizer: Tokenizer
    state: TrainState
    mesh: jax.sharding.Mesh
    prepared: Prepared | None = None
    saved_rules: str = ""
    seen: str = ""

    def __post_init__(self):
        if self.prepared:
            check_tokenizer(self.prepared.tokenizer, self.tokenizer.fingerprint, "the data")

    @classmethod
    def open(cls, workdir: str | Path, step: int | None = None) -> Run:
        """Open a run folder for evaluation, generation or inspection, at its last checkpoint or at `step`.

        Raises:
          ValueError: if the folder holds no run.
          CheckpointError: if there is no such checkpoint, it cannot be read, or its tokenizer is not the folder's.
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
        saved = {"saved_rules": manifest.get("rules", ""), "seen": manifest.get("seen", "")}
        return cls(workdir, settings, model, tokenizer, state, mesh, **saved)

    def record(self, command: str, data: dict[str, Any] | None = None) -> None:
        """Write config.json (configuration, versions, command, machine, date, data) and tokenizer.json.

        Args:
          command: the command line.
          data: description of the training data; None: that of the corpus.
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
        """Adapt settings and model to the state, which may have grown beyond their capacity."""
        capacity = self.state.blocks.active.size
        if capacity != self.settings.model.block_capacity:
            self.settings = self.settings.replace(model={"block_capacity": capacity})
            self.model = dataclasses.replace(self.model, config=self.settings.model)
            self.__dict__.pop("evaluator", None)

    def manifest(self) -> dict[str, Any]:
        """Return the manifest for a checkpoint: configuration, topology, rules, and digest of the corpus."""
        c = self.settings.model
        topology = {
            "active_blocks": int(np.asarray(self.state.blocks.active).sum()),
            "block_capacity": c.block_capacity,
            "specialists": 1,
            "tokenizer": self.tokenizer.fingerprint,
        }
        active = self.workdir / ACTIVE_RULES
        rules = active.read_text(encoding="utf-8") if active.is_file() else self.saved_rules
        seen = self.prepared.text if self.prepared else self.seen
        return {"config": self.settings.to_dict(), "topology": topology, "rules": rules, "seen": seen}

    @cached_property
    def data(self) -> Prepared:
        """The corpus, in the run's own tokens."""
        if self.prepared:
            return self.prepared
        prepared = prepare(self.settings.data, self.workdir / "cache", self.tokenizer)
        report_new_text(prepared.corpus_name, prepared.text, self.seen)
        return prepared

    @cached_property
    def valid(self) -> list[Batch]:
        """The validation batches, with the rows of each that this process reads."""
        data = self.settings.data
        share = hosts.share(sharding.batch_sharding(self.mesh), data.batch)
        return valid_batches(self.data.valid, data.batch, data.valid_rows, shard=share)

    def place(self, batch: Batch) -> Batch:
        """Place a batch, of which this process read its share, on the run's devices."""
        return hosts.place(batch, sharding.batch_sharding(self.mesh), self.settings.data.batch)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator, compiled once for the run."""
        return Evaluator(self.model, self.tokenizer.byte_lengths)

    def watch(self, localities: tuple[float, ...]) -> dict[str, float]:
        """Return the validation code length at some dials: {"bits_per_token@0.9": …}."""
        figures: dict[str, float] = {}
        batches = [self.place(batch) for batch in self.valid]
        for value in localities:
            read = self.evaluator.bits_per_token(self.state.params, self.state.blocks, batches, Dial(value))
            figures |= {f"{name}@{value:g}": x for name, x in read.items()}
        return figures

    def generate(self, prompts: Sequence[str | list[int]], dial, **options) -> list[Generation]:
        """Call `model.generate` on texts, with the context that the run was trained at.

        A prompt may be token ids instead; with `bos=None` no token is put before them.
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
        """Return the prompt and its continuation, decoded together since a character may span the boundary."""
        return self.tokenizer.decode([*self.tokenizer.encode(prompt).tolist(), *generation.tokens])


def own_tokenizer(workdir: Path, fingerprint: str) -> Tokenizer:
    """Load a run's tokenizer from its folder; a run keeps it even if the corpus changes.

    Args:
      workdir: the folder.
      fingerprint: the tokenizer's fingerprint, from the checkpoint's manifest.

    Raises:
      CheckpointError: if the folder now has another tokenizer.
      ValueError: if it has none that can be read.
    """
    tokenizer = Tokenizer.load(workdir / "tokenizer.json")
    check_tokenizer(tokenizer, fingerprint, str(workdir / "tokenizer.json"))
    return tokenizer


def check_tokenizer(tokenizer: Tokenizer, fingerprint: str, what: str) -> None:
    """Check that `what` uses the tokenizer with this fingerprint, the run's own.

    Raises:
      CheckpointError: if it uses another.
    """
    if tokenizer.fingerprint != fingerprint:
        raise CheckpointError(
            f"{what}: expected the tokenizer that the run was made with ({fingerprint}), got another "
            f"({tokenizer.fingerprint}), whose token ids mean something else; copy the run's tokenizer.json back, "
            "or use another --workdir"
        )


def report_new_text(corpus: str, text: str, known: str) -> None:
    """Print a line if a run that was trained on the text with digest `known` ("": none) now gets another."""
    if known and text != known and hosts.is_first():
        print(
            f"data: the text of {corpus!r} has changed since this run was trained on it; it is used as new data, "
            "with the run's own tokenizer",
            file=sys.stderr,
            flush=True,
        )


def boxed_state(model: Transformer, settings: config.Config) -> TrainState:
    """Return shapes and dtypes of a run's state, with parameters and moments boxed with their logical axis names."""
    return jax.eval_shape(lambda key: states.create(model, settings, key), jax.random.key(0))


def abstract_state(model: Transformer, settings: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Return shapes, dtypes and shardings of a run's state, without creating it.

    Raises:
      ValueError: if a dimension does not divide over its mesh axis.
    """
    boxed = boxed_state(model, settings)
    shardings = sharding.state_shardings(boxed, mesh)
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        nn.unbox(boxed),
        shardings,
    )


def fresh_state(model: Transformer, settings: config.Config, mesh: jax.sharding.Mesh) -> TrainState:
    """Create the state before the first step, directly on the mesh."""
    wanted = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(model, settings, mesh))
    create = jax.jit(lambda key: nn.unbox(states.create(model, settings, key)), out_shardings=wanted)
    return create(jax.random.key(settings.train.seed))

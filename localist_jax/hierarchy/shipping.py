"""Ensembles and single specialists on disk: saved, opened, shipped, taken in.

An ensemble's folder has `ensemble.json` (who its members are, for people and programs), its tokenizer and checkpoints
of the whole stack. A *shipped* specialist is an ordinary run folder: `localist generate`, `inspect` and training work
on it as on any other, and any ensemble of the same shape and vocabulary can take it in.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from localist_jax import config
from localist_jax.data import Tokenizer
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble, Record
from localist_jax.locality import Dial
from localist_jax.model import Transformer
from localist_jax.parallel import hosts, sharding
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.checkpoint import Checkpoints
from localist_jax.training.run import (
    ENSEMBLE,
    Run,
    abstract_state,
    fresh_state,
    machine,
    own_tokenizer,
    versions,
    write_json,
)
from localist_jax.types import PyTree

SPECIALIST = "specialist.json"


@dataclasses.dataclass
class EnsembleRun:
    """An ensemble with what it takes to use it.

    Attributes:
      workdir: its folder.
      ensemble, settings, tokenizer: the members, their configuration and their vocabulary.
      engine: that runs them.
      seen: digest of the corpus that they have had; "": of none.
    """

    workdir: Path
    ensemble: Ensemble
    settings: config.Config
    tokenizer: Tokenizer
    engine: EnsembleEngine
    seen: str = ""

    @classmethod
    def of(
        cls,
        workdir: str | Path,
        ensemble: Ensemble,
        settings: config.Config,
        tokenizer: Tokenizer,
        mesh: Mesh | None = None,
    ) -> EnsembleRun:
        """With an engine of its own, on a mesh; None: on the first device."""
        model = _model(settings, tokenizer, mesh)
        return cls(
            Path(workdir),
            ensemble,
            settings,
            tokenizer,
            EnsembleEngine(model, settings, tokenizer.byte_lengths),
        )

    @classmethod
    def begin(
        cls, workdir: str | Path, settings: config.Config, tokenizer: Tokenizer, mesh: Mesh | None = None
    ) -> EnsembleRun:
        """An ensemble of one LLM that has learned nothing, with room for `hierarchy.capacity`."""
        model = _model(settings, tokenizer, mesh)
        state = fresh_state(model, settings, mesh or make_mesh(config.Mesh(), jax.devices()[:1]))
        ensemble = Ensemble.create(state, settings.hierarchy.capacity, tokenizer.vocab_size)
        return cls.of(workdir, ensemble, settings, tokenizer, mesh)

    def save(
        self,
        step: int,
        command: str = "",
        *,
        memory: PyTree | None = None,
        stream: dict[str, Any] | None = None,
    ) -> None:
        """Writes the folder, with a checkpoint of all members after `step` batches.

        `memory` (arrays) and `stream` (ready for JSON) are what a recruiter keeps beside them (see `stream.save`).
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        e = self.ensemble
        records = [dataclasses.asdict(r) if r else None for r in e.records]
        about = {
            "config": self.settings.to_dict(),
            "records": records,
            "tokenizer": self.tokenizer.fingerprint,
        }
        topology = {"specialists": len(e.active), "capacity": e.capacity}
        with Checkpoints(self.workdir / "checkpoints", keep=2) as checkpoints:
            manifest = {**about, "topology": topology, "stream": stream, "seen": self.seen}
            checkpoints.save(step, _arrays(e), manifest=manifest, cursor={}, memory=memory and [memory])
        if hosts.is_first():
            self.tokenizer.save(self.workdir / "tokenizer.json")
            made = {"versions": versions(), "machine": machine(), "date": datetime.date.today().isoformat()}
            write_json(self.workdir / ENSEMBLE, {"step": step, **about, "command": command, **made})
        hosts.meet("ensemble saved")

    @classmethod
    def open(cls, workdir: str | Path, mesh: Mesh | None = None) -> EnsembleRun:
        """Opens what `save` wrote, on whatever mesh.

        Args:
          workdir: the folder.
          mesh: on which each member is to lie; None: the first device.

        Raises:
          ValueError: no ensemble there.
          CheckpointError: a checkpoint that cannot be read, or one of another tokenizer than the folder's.
        """
        workdir = Path(workdir)
        if not (workdir / ENSEMBLE).is_file():
            raise ValueError(f"{workdir}: no ensemble here ({ENSEMBLE} is missing)")
        with Checkpoints(workdir / "checkpoints") as checkpoints:
            manifest = checkpoints.manifest()
            tokenizer = own_tokenizer(workdir, manifest["tokenizer"])
            settings = config.resolve(manifest["config"])
            records = tuple(Record(**r) if r else None for r in manifest["records"])
            wanted = _abstract(_model(settings, tokenizer, mesh), settings, len(records))
            arrays, _ = checkpoints.restore(wanted)
        ensemble = Ensemble(
            states=arrays["states"],
            beta=jnp.asarray(np.asarray(arrays["beta"])),
            signatures=np.asarray(arrays["signatures"], np.float64),
            records=records,
        )
        house = cls.of(workdir, ensemble, settings, tokenizer, mesh)
        house.seen = manifest.get("seen", "")
        return house

    def run(self, at: int, workdir: Path | None = None) -> Run:
        """A member as a run of its own, for whatever works on runs."""
        mesh = self.engine.model.mesh or make_mesh(config.Mesh(), jax.devices()[:1])
        return Run(
            workdir or self.workdir, self.settings, self.engine.model, self.tokenizer, self.ensemble.state(at), mesh
        )  # fmt: skip

    def ship(self, name: str, folder: str | Path, command: str = "") -> Path:
        """Writes one member as a run folder; returns it. The ensemble is left as it is.

        Raises:
          ValueError: no member of that name.
        """
        at, folder = self.ensemble.place(name), Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        run = self.run(at, folder)
        run.record(command, data={"specialist": name})
        step = max(1, int(run.state.step))
        with Checkpoints(folder / "checkpoints", keep=1) as checkpoints:
            checkpoints.save(step, run.state, manifest=run.manifest(), cursor={})
        about = {
            "record": dataclasses.asdict(self.ensemble.record(at)),
            "locality": (-np.expm1(-np.asarray(self.ensemble.beta[at], float))).tolist(),
            "signature": self.ensemble.signatures[at].tolist(),
        }
        if hosts.is_first():
            write_json(folder / SPECIALIST, about)
        hosts.meet("specialist shipped")
        return folder

    def take_in(self, folder: str | Path, name: str = "", parent: str = "") -> int:
        """Loads a shipped specialist into a free place, and returns the place.

        Args:
          folder: that `ship` wrote.
          name: here; empty: as it was called there.
          parent: below which it stands here; empty: the first member.

        Raises:
          ValueError: a folder without a specialist, another vocabulary, another shape, or a name that is taken.
        """
        folder = Path(folder)
        if not (folder / SPECIALIST).is_file():
            raise ValueError(
                f"{folder}: no shipped specialist here ({SPECIALIST} is missing); `ship` writes one"
            )
        run, about = Run.open(folder), json.loads((folder / SPECIALIST).read_text(encoding="utf-8"))
        if run.tokenizer.fingerprint != self.tokenizer.fingerprint:
            raise ValueError(
                f"{folder}: its tokenizer is not that of the ensemble; its tokens mean something else"
            )
        e = self.ensemble
        above = parent or e.record(e.active[0]).name
        e.place(above)
        record = dataclasses.replace(
            Record(**about["record"]), name=name or about["record"]["name"], parent=above
        )
        dial = Dial(np.asarray(about["locality"])[None])
        self.ensemble, at = e.joined(run.state, record, dial, np.asarray(about["signature"]))
        return at


def _arrays(ensemble: Ensemble) -> dict[str, Any]:
    return {
        "states": ensemble.states,
        "beta": np.asarray(ensemble.beta),
        "signatures": np.asarray(ensemble.signatures, np.float32),
    }


def _model(settings: config.Config, tokenizer: Tokenizer, mesh: Mesh | None) -> Transformer:
    shards = 1 if mesh is None else sharding.shards("batch", mesh)
    return Transformer(settings.model, tokenizer.vocab_size, shards, mesh)


def _abstract(model: Transformer, settings: config.Config, capacity: int) -> dict[str, Any]:
    """Shapes, dtypes and shardings of what a checkpoint of this topology holds."""
    mesh = model.mesh or make_mesh(config.Mesh(), jax.devices()[:1])
    single = abstract_state(model, settings, mesh)

    def stacked(*shape: int, dtype: Any = np.float32, spec: tuple[Any, ...] = ()) -> jax.ShapeDtypeStruct:
        where = NamedSharding(mesh, PartitionSpec(None, *spec))
        return jax.ShapeDtypeStruct((capacity, *shape), dtype, sharding=where)

    c = settings.model
    return {
        "states": jax.tree.map(lambda x: stacked(*x.shape, dtype=x.dtype, spec=x.sharding.spec), single),
        "beta": stacked(c.layers, c.heads),
        "signatures": stacked(model.vocab_size),
    }

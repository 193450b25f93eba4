"""A run that may become an ensemble: a corpus as a stream of documents, LLMs that join when the data pays for them.

Documents come in the order of the corpus (`data.shuffle` mixes them), in pieces of a row each, and each once: evidence
wants data that nobody has learned from. The run ends with the corpus, or after `hierarchy.batches`. It is saved every
`train.save_every` batches, and goes on from there, in the middle of a trial too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from localist_jax import config
from localist_jax.data import Batch, Tokenizer, corpora
from localist_jax.hierarchy import stream
from localist_jax.hierarchy.blocks import BlockRecruiters
from localist_jax.hierarchy.coding import Coded, code
from localist_jax.hierarchy.documents import pieces, rows
from localist_jax.hierarchy.recruiter import MemberRecruiter
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.parallel import hosts
from localist_jax.parallel.mesh import make_mesh
from localist_jax.parallel.preemption import Preemption
from localist_jax.recruitment.proposals import Concept
from localist_jax.training.journal import Journal
from localist_jax.training.loop import Preempted, TrainingDiverged
from localist_jax.training.progress import Progress
from localist_jax.training.run import Run, compare_hosts, is_ensemble, report_new_text


def run(
    settings: config.Config, workdir: Path, *, command: str = "", concepts: Sequence[Concept] = ()
) -> EnsembleRun:
    """Streams the corpus through an ensemble, or goes on with the one in that folder; returns what it has become.

    Args:
      settings: the resolved configuration; the ensemble begins with the LLM of `hierarchy.base`, or a fresh one.
      workdir: gets `ensemble.json`, checkpoints, `hierarchy.jsonl`, `metrics.jsonl` and TensorBoard files.
      command: what the user typed, for the record.
      concepts: that somebody named, and that no LLM's block covers.

    Raises:
      ValueError: a bad corpus; a base, or an ensemble in that folder, of another shape than the settings say.
      TrainingDiverged: code lengths became NaN or infinite; the last checkpoint is kept.
      Preempted: SIGTERM came; the run was saved first.
      HostsDiffer: the processes of the job have not all the same settings, versions, data and folder.
    """
    compare_hosts(settings, workdir)
    corpus = hosts.together(lambda: corpora.load(settings.data))
    goes_on = is_ensemble(workdir)
    hosts.compare(data={"text": corpus.digest}, ensemble_is_there=goes_on)
    mesh = make_mesh(settings.mesh) if jax.device_count() > 1 else None
    house = _opened(settings, workdir, mesh) if goes_on else _begun(settings, workdir, corpus, mesh)
    report_new_text(corpus.name, corpus.digest, house.seen)
    house.seen = corpus.digest
    if hosts.is_first():
        print(f"data: {corpus.describe()}", file=sys.stderr, flush=True)
    settings, engine = house.settings, house.engine
    options: dict[str, Any] = {"seed": settings.train.seed, "concepts": concepts}
    if settings.recruitment.every:
        options["blocks"] = BlockRecruiters(engine, house.tokenizer, workdir)
    if goes_on:
        recruiter = stream.resume(house, workdir, **options)
    else:
        recruiter = MemberRecruiter(house.ensemble, engine, settings.hierarchy, workdir, **options)
    with contextlib.closing(recruiter):
        _Stream(house, recruiter, _pieces(corpus.train, house), command).go()
    return house


def _begun(settings: config.Config, workdir: Path, corpus: corpora.Corpus, mesh: Mesh | None) -> EnsembleRun:
    """An ensemble of one: of the base, with an optimizer that begins anew, or of an LLM that has learned nothing."""
    if folder := settings.hierarchy.base:
        base = Run.open(Path(folder))
        settings = dataclasses.replace(settings, model=base.settings.model)
        house = EnsembleRun.begin(workdir, settings, base.tokenizer, mesh)
        fresh, old = house.ensemble.state(0), base.state
        learned = {name: getattr(old, name) for name in ("step", "params", "blocks", "pricing")}
        house.ensemble = house.ensemble.with_state(0, dataclasses.replace(fresh, **learned))
        return house
    given, size = settings.data.tokenizer, settings.data.vocab_size
    tokenizer = hosts.together(
        lambda: Tokenizer.load(given) if given else Tokenizer.train(corpus.train, size)
    )
    hosts.compare(data={"tokenizer": tokenizer.fingerprint})
    return EnsembleRun.begin(workdir, settings, tokenizer, mesh)


def _opened(settings: config.Config, workdir: Path, mesh: Mesh | None) -> EnsembleRun:
    """The ensemble in that folder, under settings that may have changed in all but its shape."""
    house = EnsembleRun.open(workdir, mesh)
    if settings.hierarchy.base:
        settings = dataclasses.replace(settings, model=house.settings.model)
    for section in ("data", "model"):
        if (now := getattr(settings, section)) != (then := getattr(house.settings, section)):
            changed = [f for f in vars(now) if getattr(now, f) != getattr(then, f)]
            raise ValueError(
                f"{workdir}: holds an ensemble of another config.{section} ({', '.join(changed)}); "
                "use another folder, or --fresh"
            )
    return dataclasses.replace(
        EnsembleRun.of(workdir, house.ensemble, settings, house.tokenizer, mesh), seen=house.seen
    )


def _pieces(documents: Sequence[str], house: EnsembleRun) -> list[np.ndarray]:
    """Token ids of the stream's rows, in their order; those of a document follow one another."""
    order = np.arange(len(documents))
    if house.settings.data.shuffle:
        order = np.random.default_rng([house.settings.train.seed, 17]).permutation(order)
    encoded = house.tokenizer.encode_batch([documents[i] for i in order.tolist()])
    return [piece for ids in encoded for piece in pieces(ids, house.settings.data.context)]


@dataclasses.dataclass
class _Stream:
    """One pass over the rest of the stream, with what it has to look after."""

    house: EnsembleRun
    recruiter: MemberRecruiter
    documents: list[np.ndarray]
    command: str

    def go(self) -> None:
        settings, start = self.house.settings, self.recruiter.batches
        t, d = settings.train, settings.data
        total, wanted = len(self.documents) // d.batch, settings.hierarchy.batches
        if wanted > total and hosts.is_first():
            print(f"stream: the corpus ends after {total} of {wanted} batches", file=sys.stderr, flush=True)
        if not total:
            raise ValueError(
                f"config.data.batch: the corpus has {len(self.documents)} rows of text, fewer than a batch of {d.batch}"
            )
        total = min(total, wanted or total)
        progress = Progress(
            total, start=start, tokens=d.batch * d.context, label="stream", silent=not hosts.is_first()
        )
        recent: list[tuple[Coded, Batch]] = []
        with Preemption() as preemption, Journal(self.house.workdir, resume_step=start) as journal:
            for step in range(start + 1, total + 1):
                batch = self._batch(step)
                recent.append((self.recruiter.observe(batch), batch))
                if step == start + 1:
                    progress.started(step)
                last, stop = step == total, preemption.due(step)
                save = stop or last or step % t.save_every == 0
                if save or step % t.log_every == 0:
                    figures = self._figures(recent, step)
                    recent.clear()
                    speed = {"tokens_per_second": progress.tokens_per_second}
                    journal.scalars(step, "stream", figures | speed)
                    progress.update(step, self._line(figures))
                if save:
                    with progress.paused():
                        stream.save(self.recruiter, self.house, self.command)
                if stop and not last:
                    raise Preempted(
                        f"stopped by SIGTERM after batch {step}, which is saved; start it again to go on from there"
                    )
            self.house.ensemble = self.recruiter.ensemble
            progress.done()

    def _batch(self, step: int) -> Batch:
        d = self.house.settings.data
        mine = self.documents[(step - 1) * d.batch : step * d.batch]
        return rows(mine, d.context, Tokenizer.BOS, d.batch)

    def _figures(self, recent: Sequence[tuple[Coded, Batch]], step: int) -> dict[str, float]:
        """Return the figures of the batches since the last call."""
        tokens = max(1, sum(int(batch.scored.sum()) for _, batch in recent))
        spent, best, bound = (
            float(sum(getattr(coded, name).sum() for coded, _ in recent)) / tokens
            for name in ("bits", "best_bits", "bound_bits")
        )
        if not math.isfinite(spent):
            raise TrainingDiverged(
                f"code lengths are not finite at batch {step}; the last checkpoint is kept; "
                "try a lower config.optimizer.learning_rate"
            )
        return {
            "bits_per_token": spent,
            "coordination_bits_per_token": spent - best,
            "coordination_bound_bits_per_token": bound,
            "members": len(self.recruiter.ensemble.active),
            "description_bits": self.recruiter.account.description_bits,
            "j_bits": self.recruiter.account.total_bits,
        }

    def _line(self, figures: dict[str, float]) -> str:
        trial = self.recruiter.trial
        line = f"{figures['bits_per_token']:.3f} bits/token  {figures['members']:.0f} LLMs"
        return line + (f"  trial {trial.number}: {trial.llr_bits:+.0f} bits" if trial else "")


def held_out(house: EnsembleRun, documents: Sequence[str]) -> dict[str, float]:
    """Bits per token of documents that the stream did not have, under the mixture, its best member, and the first."""
    d, e = house.settings.data, house.ensemble
    found = [p for ids in house.tokenizer.encode_batch(list(documents)) for p in pieces(ids, d.context)]
    found = found[: d.valid_rows or None]
    totals, tokens = np.zeros(3), 0
    for start in range(0, len(found), d.batch):
        batch = rows(found[start : start + d.batch], d.context, Tokenizer.BOS, d.batch)
        coded, losses = code(e, house.engine, batch)
        totals += [coded.bits.sum(), coded.best_bits.sum(), losses[..., e.active[0]].sum()]
        tokens += int(batch.scored.sum())
    names = ("bits_per_token", "best_member_bits_per_token", "first_member_bits_per_token")
    return dict(zip(names, (totals / max(1, tokens)).tolist(), strict=True))

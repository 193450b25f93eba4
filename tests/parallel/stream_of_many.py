"""The ensemble of `one_of_many.py`: a stream in which an LLM is recruited, and questions to it afterwards."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np

from localist_jax.hierarchy.coding import code
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.hierarchy.recruiter import MemberRecruiter
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.parallel import mesh as meshes
from localist_jax.training.run import fresh_state

HIERARCHY = {"every": 1, "start": 12, "survey": 2, "smallest": 2, "horizon": 8, "placebos": 2}
DOMAINS = ((2, 40), (40, 78))  # ranges of token ids, which do not overlap


def batch_of(settings, seed, domains):
    """Return documents of each domain in turn."""
    d, rng = settings.data, np.random.default_rng(seed)
    drawn = [rng.integers(*DOMAINS[domains[i % len(domains)]], d.context) for i in range(d.batch)]
    return rows(drawn, d.context, 1)


class Convinced(MemberRecruiter):
    """A recruiter whose candidates get evidence in their favour."""

    def _decide(self):
        evidence = self.trial.evidence
        self.trial.evidence = dataclasses.replace(evidence, llr_bits=evidence.llr_bits + 1e3)
        super()._decide()


def recruit(settings, tokenizer, folder):
    """Train on one domain, then on two, recruit, and save."""
    settings = settings.replace(hierarchy=HIERARCHY, optimizer={"learning_rate": 1e-2})
    mesh = meshes.make_mesh(settings.mesh)
    house = EnsembleRun.of(folder, None, settings, tokenizer, mesh)
    base = fresh_state(house.engine.model, settings, mesh)
    ensemble = Ensemble.create(base, 2, tokenizer.vocab_size)
    recruiter = Convinced(ensemble, house.engine, settings.hierarchy, folder)
    for at in range(15):
        recruiter.observe(batch_of(settings, at, (0,) if at < 10 else (0, 1)))
    recruiter.close()
    house.ensemble = recruiter.ensemble
    house.save(recruiter.batches)
    consult(settings, folder, house)


def consult(settings, folder, house=None):
    """Print how the ensemble codes a batch, in each process."""
    house = house or EnsembleRun.open(folder, meshes.make_mesh(settings.mesh))
    coded, _ = code(house.ensemble, house.engine, batch_of(settings, 99, (0, 1)))
    told = {
        "names": house.ensemble.names,
        "bits": coded.bits.tolist(),
        "members": coded.member.tolist(),
        "records": [r and dataclasses.asdict(r) for r in house.ensemble.records],
    }
    (Path(folder) / f"process_{jax.process_index()}.json").write_text(json.dumps(told))

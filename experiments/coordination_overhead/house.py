"""Sixty-four domains that share their words, and a small LLM trained on each."""

from __future__ import annotations

import jax
import numpy as np

from localist_jax import config
from localist_jax.data import Batch, Tokenizer
from localist_jax.hierarchy import signature
from localist_jax.hierarchy.documents import rows
from localist_jax.hierarchy.engine import EnsembleEngine
from localist_jax.hierarchy.ensemble import Ensemble, Record
from localist_jax.model import Transformer
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.run import fresh_state

WORDS, OWN, BRANCHING = 160, 48, 3  # in all, of one domain, successors of a word
LENGTH, CONTEXT, BATCH = 40, 48, 16


class Domains:
    """Markov chains over overlapping sets of words.

    Args:
      seed: of the chains.
      count: of domains.
    """

    def __init__(self, seed: int, count: int):
        rng = np.random.default_rng([seed, 5])
        consonants, vowels = list("bdfgklmnprst"), list("aeiou")
        syllables = [c + v for c in consonants for v in vowels]
        self.words = [a + b for a in syllables for b in syllables][:: len(syllables) ** 2 // WORDS][:WORDS]
        self._own = [rng.choice(WORDS, OWN, replace=False) for _ in range(count)]
        self._next = [rng.integers(0, OWN, (OWN, BRANCHING)) for _ in range(count)]
        self.tokenizer = Tokenizer.train([" ".join(self.words)] * 4, 512)
        # A word may be several tokens; what is measured are tokens.
        self._ids = [self.tokenizer.encode(f" {word}").tolist() for word in self.words]

    def document(self, domain: int, rng: np.random.Generator) -> list[int]:
        """Token ids of a document."""
        at = int(rng.integers(OWN))
        ids: list[int] = []
        while len(ids) < LENGTH:
            ids += self._ids[int(self._own[domain][at])]
            at = int(self._next[domain][at, rng.integers(BRANCHING)])
        return ids[:LENGTH]

    def batch(self, domain: int, rng: np.random.Generator, count: int = BATCH) -> Batch:
        """Documents of one domain, a row each."""
        return rows([self.document(domain, rng) for _ in range(count)], CONTEXT, Tokenizer.BOS)


def settings() -> config.Config:
    """Return the configuration of every member."""
    return config.Config(
        data=config.Data(context=CONTEXT, batch=BATCH, vocab_size=512),
        model=config.Model(
            layers=2, width=32, heads=2, kv_heads=2, head_size=16, feed_forward=64, blocks=4, block_capacity=4,
            block_units=8, anchor_capacity=2, window=4, perception_window=8,
        ),
        optimizer=config.Optimizer(kind="adamw", learning_rate=1e-2, final=1.0),
        gates=config.Gates(open_share_target=0.4), train=config.Train(steps=100),
    )  # fmt: skip


def trained(seed: int, count: int, steps: int) -> tuple[Domains, EnsembleEngine, Ensemble]:
    """An ensemble with one member for each domain, all of them trained from one beginning."""
    domains, chosen = Domains(seed, count), settings()
    vocabulary = domains.tokenizer.vocab_size
    model = Transformer(chosen.model, vocabulary)
    engine = EnsembleEngine(model, chosen, domains.tokenizer.byte_lengths)
    first = fresh_state(
        model, chosen.replace(train={"seed": seed}), make_mesh(config.Mesh(), jax.devices()[:1])
    )
    ensemble = Ensemble.create(first, count, vocabulary, name="llm0")
    for domain in range(count):
        rng, state, seen = np.random.default_rng([seed, domain]), first, np.zeros(vocabulary)
        for _ in range(steps):
            batch = domains.batch(domain, rng)
            state, seen = engine.train(state, batch), seen + signature.counts(batch, vocabulary).sum(0)
        if domain:
            record = Record(f"llm{domain}", parent="llm0", born=domain)
            ensemble, _ = ensemble.joined(state, record, ensemble.dial(0), seen)
        else:
            ensemble = ensemble.with_state(0, state).served(0, seen)
    return domains, engine, ensemble


def with_members(ensemble: Ensemble, count: int) -> Ensemble:
    """The first `count` members; the capacity stays as it is, so nothing is compiled."""
    for at in reversed(ensemble.active[count:]):
        ensemble = ensemble.retired(at)
    return ensemble

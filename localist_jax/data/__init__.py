"""Data: corpora → tokenizer → packed, resumable batches; and worlds whose concepts are known."""

from localist_jax.data.corpora import Corpus, CorpusError, load
from localist_jax.data.pipeline import Batch, Prepared, Rows, pack, prepare, train_batches, valid_batches
from localist_jax.data.synthetic import World
from localist_jax.data.tokenizer import Tokenizer

__all__ = [
    "Batch",
    "Corpus",
    "CorpusError",
    "Prepared",
    "Rows",
    "Tokenizer",
    "World",
    "load",
    "pack",
    "prepare",
    "train_batches",
    "valid_batches",
]

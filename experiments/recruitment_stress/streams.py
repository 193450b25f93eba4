"""Streams that try to mislead a recruiter. All are about the same two fields (see `data.fields`)."""

from __future__ import annotations

import numpy as np

from localist_jax.data.fields import Fields

SAID = {
    "calm": "two fields, mixed, from the first step on",
    "bursts": "the same, but in every fourth stretch of the stream all words are noise",
    "repeated": "the same, but in every fourth stretch each row is one word, again and again",
    "alternating": "one field and then the other, in turn every 256 tokens",
    "poisoned": "calm, and someone names a concept whose anchors are words drawn at random",
}
STRETCH = 10  # steps of a noise burst, and of what is repeated
TURN = 4  # rows of a batch until the other field has its turn
EVEN = np.ones(2)


def words_of(name: str, world: Fields, seed: int, steps: int, batch: int, context: int) -> np.ndarray:
    """Rows of words [steps·batch, context], in the order of the stream."""
    rows = steps * batch
    if name == "alternating":
        one, other = (world.sample(seed, rows, context, np.eye(2)[field])[0] for field in (0, 1))
        turn = np.arange(rows) // TURN % 2
        return np.where(turn[:, None] == 0, one, other)
    words = world.sample(seed, rows, context, EVEN)[0]
    rng = np.random.default_rng([seed, len(world.words)])
    if name == "bursts":
        noise = rng.integers(len(world.words), size=words.shape)
        return np.where(hostile(steps).repeat(batch)[:, None], noise, words)
    if name == "repeated":
        again = np.broadcast_to(rng.integers(len(world.words), size=(rows, 1)), words.shape)
        return np.where(hostile(steps).repeat(batch)[:, None], again, words)
    return words


def hostile(steps: int) -> np.ndarray:
    """Whether each step lies in a stretch of noise or repetition, bool [steps]."""
    return np.arange(steps) // STRETCH % 4 == 3


def poison(world: Fields, seed: int, most: int) -> list[int]:
    """Words drawn at random, for a concept that means nothing."""
    rng = np.random.default_rng([seed, most])
    return rng.permutation(len(world.words))[:most].tolist()


def perturbed(words: np.ndarray, share: float, vocabulary: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the words in which a share of them is drawn at random, and which were."""
    rng = np.random.default_rng(seed)
    changed = rng.random(words.shape) < share
    return np.where(changed, rng.integers(vocabulary, size=words.shape), words), changed

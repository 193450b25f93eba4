"""Coverage of concepts by blocks, in bits."""

import numpy as np

from localist_jax.rules import coverage, parse


def test_a_block_of_its_own_covers_and_a_random_one_does_not(tokenizer):
    rules = parse("concepts: {dog: {anchors: [dog]}, cat: {anchors: [cat]}, absent: {anchors: [zebra]}}")
    rng, rows = np.random.default_rng(0), []
    for _ in range(60):
        words = rng.choice([" dog", " cat", " sat", " mat", " the"], 30)
        pieces = [tokenizer.encode(word) for word in words]
        dog = np.repeat(words == " dog", [len(ids) for ids in pieces])
        rows.append((np.concatenate(pieces), np.where(dog, 3, rng.integers(1, 3, len(dog)))))
    dog, cat, absent = coverage.coverage(rules, tokenizer, rows, 5)
    assert dog.block == 3
    assert dog.bits > 0.95 * dog.ceiling_bits > 0.3
    assert cat.bits < 0.2 * cat.ceiling_bits
    assert (absent.positions, absent.bits) == (0, 0.0)
    assert coverage.uncovered([dog, cat, absent]) == ["cat"]

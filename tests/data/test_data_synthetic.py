import itertools

import numpy as np
import pytest

from localist_jax.data.pipeline import pack
from localist_jax.data.synthetic import World

SMALL = {"concepts": 2, "vocabulary": 2, "function_words": 1, "branching": 2, "stickiness": 0.5}


@pytest.fixture(scope="module")
def world() -> World:
    return World.create(0, concepts=4, vocabulary=20)


@pytest.fixture(scope="module")
def documents(world) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return world.sample(1, documents=40, length=1500)


def test_the_same_seed_gives_the_same_world_and_documents(world):
    twin = World.create(0, concepts=4, vocabulary=20)
    assert twin.words == world.words
    np.testing.assert_array_equal(twin.transitions, world.transitions)
    np.testing.assert_array_equal(twin.sample(3, 4, 50)[0], world.sample(3, 4, 50)[0])
    assert not np.array_equal(world.sample(4, 4, 50)[0], world.sample(3, 4, 50)[0])
    assert World.create(1, concepts=4, vocabulary=20).words != world.words


def test_words_are_distinct_and_readable(world):
    assert len(set(world.words)) == world.vocab_size == 2 + 16 + 4 * 20
    assert all(word.isalpha() for word in world.words[2:])


def test_texts_spell_the_tokens(world, documents):
    tokens = documents[0][0]
    (text,) = world.texts([tokens])
    lookup = {word: i for i, word in enumerate(world.words)}
    assert [lookup[word] for word in text.split(" ")] == tokens.tolist()


def test_labels_are_the_owners_of_the_words(world, documents):
    tokens, labels = (np.stack(part) for part in documents)
    assert tokens.dtype == labels.dtype == np.int32
    assert tokens.min() >= 2
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    np.testing.assert_array_equal(labels, world.concept_of[tokens])
    for concept in range(1, 5):
        owned = np.flatnonzero(world.concept_of == concept)
        assert len(owned) == 20


def test_chains_are_sparse_stochastic_and_reach_every_word(world):
    np.testing.assert_allclose(world.transitions.sum(-1), 1)
    assert ((world.transitions > 0).sum(-1) == 3).all()
    for chain, shares in zip(world.transitions, world.stationary, strict=True):
        np.testing.assert_allclose(shares @ chain, shares, atol=1e-12)
        assert (shares > 0).all()
        assert (np.linalg.matrix_power((chain > 0) + np.eye(20), 20) > 0).all()


def test_shares_and_switching_are_those_of_the_world(world, documents):
    labels = np.stack(documents[1])
    assert (labels == 0).mean() == pytest.approx(0.25, abs=0.01)
    content = [row[row > 0] for row in labels]
    counts = np.bincount(np.concatenate(content) - 1) / sum(map(len, content))
    np.testing.assert_allclose(counts, world.concept_shares, atol=0.03)
    assert counts[0] > 3 * counts[3]  # skewed, as Zipf has it
    stays = np.mean([np.mean(row[1:] == row[:-1]) for row in content])
    again = (world.concept_shares**2).sum()
    assert stays == pytest.approx(0.8 + 0.2 * again, abs=0.01)


def test_a_resumed_concept_goes_on_where_it_stopped(world, documents):
    """Counts of (last word in the same concept, word), however far apart, follow the chain."""
    counts = np.zeros_like(world.transitions)
    resumed_and_possible = []
    for tokens in documents[0]:
        last, current = {}, None
        for token in tokens[tokens >= world.first_concept_word]:
            concept, word = divmod(int(token) - world.first_concept_word, 20)
            if concept in last:
                counts[concept, last[concept], word] += 1
                if concept != current:
                    resumed_and_possible.append(world.transitions[concept, last[concept], word] > 0)
            last[concept], current = word, concept
    assert len(resumed_and_possible) > 1000
    assert all(resumed_and_possible)
    seen = counts.sum(-1, keepdims=True)
    assert np.abs(counts / np.maximum(seen, 1) - world.transitions)[seen[..., 0] > 500].max() < 0.1


@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_code_lengths_are_those_of_a_probability_distribution(seed, memory):
    world = World.create(seed, **SMALL)
    every = itertools.product(range(2, world.vocab_size), repeat=4)
    total = sum(2.0 ** -world.code_length(tokens, memory=memory).sum() for tokens in every)
    assert total == pytest.approx(1, abs=1e-9)


def test_code_lengths_match_sampled_frequencies():
    world = World.create(5, **SMALL)
    tokens = np.stack(world.sample(0, documents=200_000, length=3)[0])
    sequences, counts = np.unique(tokens, axis=0, return_counts=True)
    expected = [2.0 ** -world.code_length(s).sum() for s in sequences]
    assert np.abs(counts / len(tokens) - expected).max() < 0.005
    assert sum(expected) > 0.999


def test_entropy_rate_is_what_the_exact_process_converges_to():
    """H(X_n | X_1 … X_{n−1}) by enumeration falls towards the closed form and never below it."""
    world = World.create(2, **SMALL, function_rate=0.1, zipf=0.5)
    joint = []
    for n in (1, 3, 5, 6):
        lengths = [world.code_length(s).sum() for s in itertools.product(range(2, 7), repeat=n)]
        lengths = np.array([length for length in lengths if np.isfinite(length)])
        joint.append((2.0**-lengths * lengths).sum())
    early, late = (joint[1] - joint[0]) / 2, joint[3] - joint[2]
    assert early > late >= world.entropy_rate - 1e-9
    assert late == pytest.approx(world.entropy_rate, abs=0.05)


def test_long_documents_cost_the_entropy_rate_and_forgetting_costs_what_memory_is_worth(world, documents):
    known, forgotten = (
        np.stack([world.code_length(tokens, memory=memory) for tokens in documents[0]])[:, 300:].mean()
        for memory in (True, False)
    )
    assert known == pytest.approx(world.entropy_rate, abs=0.03)
    assert forgotten - known == pytest.approx(world.memory_bits, abs=0.03)
    assert world.memory_bits > 0.2


def test_deterministic_chains_leave_only_switching_to_pay():
    world = World.create(0, concepts=1, vocabulary=10, branching=1, function_rate=0.0)
    assert world.entropy_rate == pytest.approx(0, abs=1e-9)
    tokens = world.sample(0, 1, 40)[0][0]
    bits = world.code_length(tokens)
    assert bits[0] == pytest.approx(np.log2(10))
    np.testing.assert_allclose(bits[1:], 0, atol=1e-9)
    np.testing.assert_array_equal(tokens[10:], tokens[:-10])


def test_impossible_words_cost_infinitely_many_bits():
    world = World.create(0, concepts=1, vocabulary=5, branching=1)
    word = world.first_concept_word
    assert world.code_length([word, word])[1] == np.inf


def test_documents_can_be_packed(world, documents):
    rows = pack(documents[0], context=64, bos=1)
    assert rows.token_count == 40 * 1500


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"concepts": 0}, "concepts"),
        ({"vocabulary": 1}, "vocabulary"),
        ({"branching": 65}, "branching"),
        ({"function_words": 1000}, "function_words"),
        ({"concepts": 100, "vocabulary": 100}, "concepts · vocabulary"),
        ({"stickiness": 1.0}, "stickiness"),
        ({"function_rate": -0.1}, "function_rate"),
        ({"zipf": -1.0}, "zipf"),
    ],
)
def test_wrong_sizes_are_named(wrong, field):
    with pytest.raises(ValueError, match=f"^{field}: expected"):
        World.create(0, **wrong)


@pytest.mark.parametrize("token", [0, 1, -3, 10_000])
def test_ids_that_are_no_words_are_refused(world, token):
    with pytest.raises(ValueError, match=r"tokens\[1\]"):
        world.code_length([2, token])

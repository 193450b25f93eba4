import dataclasses
import itertools
import json
import logging
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.config import Data
from localist_jax.data import pipeline
from localist_jax.data.corpora import CorpusError, load
from localist_jax.data.pipeline import UNSCORED, Batch, Rows, pack, prepare, train_batches, valid_batches

BOS = 1
FIELDS = ("tokens", "targets", "segments", "positions")


def make_documents(lengths, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 50, n, dtype=np.int32) for n in lengths]


def segments_of(rows: Rows):
    """(inputs, targets, positions) of every segment, read off the arrays one by one."""
    for r in range(len(rows)):
        for s in range(1, rows.segments[r].max() + 1):
            inside = rows.segments[r] == s
            yield rows.tokens[r][inside], rows.targets[r][inside], rows.positions[r][inside]


CASES = {
    "one short": [3],
    "exact": [8, 8],
    "long": [8 * 5 + 3],
    "with empty": [0, 4, 0, 5, 0],
    "many": list(np.random.default_rng(1).integers(0, 30, 300)),
    "ones": [1] * 20,
}


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_every_token_is_a_target_exactly_once_in_whole_pieces(lengths):
    documents = make_documents(lengths)
    rows = pack(documents, context=8, bos=BOS)
    expected = sorted(tuple(d[i : i + 8]) for d in documents for i in range(0, len(d), 8))
    assert sorted(tuple(targets) for _, targets, _ in segments_of(rows)) == expected
    assert rows.token_count == sum(lengths)


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_inputs_are_bos_then_the_targets_before(lengths):
    for tokens, targets, positions in segments_of(pack(make_documents(lengths), context=8, bos=BOS)):
        np.testing.assert_array_equal(tokens, [BOS, *targets[:-1]])
        np.testing.assert_array_equal(positions, np.arange(len(tokens)))


def test_what_is_not_scored_has_no_target_but_is_still_read():
    rows = pack(
        [np.array([5, 6, 7]), np.array([8, 9])], 5, BOS, [np.array([0, 1, 0]) > 0, np.array([1, 0]) > 0]
    )
    assert rows.tokens.tolist() == [[1, 5, 6, 1, 8]]
    assert rows.targets.tolist() == [[UNSCORED, 6, UNSCORED, 8, UNSCORED]]
    assert rows.take(np.arange(1)).scored.tolist() == [[False, True, False, True, False]]


def test_without_bos_every_token_but_the_first_is_predicted_once_from_the_one_before_it():
    rows = pack([np.array([5, 6, 7, 8]), np.array([9]), np.array([3, 4])], 2, None)
    assert rows.tokens.tolist() == [[5, 6], [7, 3]]
    assert rows.targets.tolist() == [[6, 7], [8, 4]]
    assert rows.segments.tolist() == [[1, 1], [1, 2]]
    assert rows.positions.tolist() == [[0, 1], [0, 0]]


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_rows_are_contiguous_segments_then_zeros(lengths):
    rows = pack(make_documents(lengths), context=8, bos=BOS)
    for r in range(len(rows)):
        used = np.count_nonzero(rows.segments[r])
        assert (np.diff(rows.segments[r, :used]) >= 0).all()
        np.testing.assert_array_equal(
            np.unique(rows.segments[r, :used]), np.arange(1, rows.segments[r].max() + 1)
        )
        for field in FIELDS:
            assert not getattr(rows, field)[r, used:].any()
            assert getattr(rows, field).dtype == np.int32


def test_packing_is_tight_and_at_most_one_row_is_nearly_empty():
    lengths = np.random.default_rng(0).integers(1, 200, 3000)
    rows = pack(make_documents(lengths), context=128, bos=BOS)
    assert rows.fill > 0.99
    assert rows.fill == pytest.approx(lengths.sum() / (len(rows) * 128))
    assert sum(np.count_nonzero(s) <= 64 for s in rows.segments) <= 1


def test_best_fit_takes_the_tightest_room():
    # 5 and 4 open two rows of 8. Only if 3 goes beside the 5, both 2s fit beside the 4.
    rows = pack(make_documents([2, 3, 4, 5, 2]), context=8, bos=BOS)
    assert len(rows) == 2
    assert rows.fill == 1.0


def test_packing_is_deterministic_and_ties_go_in_document_order():
    documents = make_documents([8, 8, 8])
    rows = pack(documents, context=8, bos=BOS)
    np.testing.assert_array_equal(rows.targets, np.stack(documents))


@pytest.mark.parametrize("lengths", CASES.values(), ids=CASES.keys())
def test_a_stream_packs_in_the_order_of_its_text(lengths):
    documents = make_documents(lengths)
    rows = pack(documents, context=8, bos=BOS, in_order=True)
    np.testing.assert_array_equal(
        rows.targets[rows.segments > 0], np.concatenate([np.zeros(0, int), *documents])
    )
    assert sorted(tuple(t) for _, t, _ in segments_of(rows)) == sorted(
        tuple(t) for _, t, _ in segments_of(pack(documents, context=8, bos=BOS))
    )


@pytest.mark.parametrize("in_order", [False, True])
def test_nothing_packs_into_no_rows(in_order):
    for documents in ([], make_documents([0, 0])):
        rows = pack(documents, context=8, bos=BOS, in_order=in_order)
        assert len(rows) == 0
        assert rows.tokens.shape == (0, 8)
        assert rows.fill == 0


def test_a_hundred_thousand_segments_pack_in_seconds():
    documents = make_documents(np.random.default_rng(0).integers(1, 256, 100_000))
    start = time.perf_counter()
    rows = pack(documents, context=256, bos=BOS)
    assert time.perf_counter() - start < 10
    assert rows.fill > 0.99


def test_context_is_checked():
    with pytest.raises(ValueError, match="context"):
        pack([], context=0, bos=BOS)


# --- batches ---


@pytest.fixture(scope="module")
def rows() -> Rows:
    """20 rows, each of one segment whose first target is the row's number + 2."""
    return pack([np.full(8, i + 2, np.int32) for i in range(20)], context=8, bos=BOS)


def ids(batch: Batch) -> list[int]:
    return batch.targets[:, 0].tolist()


def take(iterator, n: int) -> list[list[int]]:
    return [ids(next(iterator)) for _ in range(n)]


def test_batch_is_a_pytree_that_jit_takes(rows):
    batch = next(train_batches(rows, 4, seed=0))
    assert [leaf.shape for leaf in jax.tree.leaves(batch)] == [(4, 8)] * 4
    assert all(leaf.dtype == np.int32 for leaf in jax.tree.leaves(batch))
    assert int(jax.jit(lambda b: jnp.sum(b.segments))(batch)) == 32
    assert jax.tree.map(lambda leaf: None, batch).tokens is None  # trees of anything may hang in it


def test_every_epoch_visits_every_row_once_in_a_new_order(rows):
    epochs = np.array(take(train_batches(rows, 5, seed=0), 12)).reshape(3, 20)
    for epoch in epochs:
        assert sorted(epoch) == list(range(2, 22))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batches_span_epochs_so_no_row_is_dropped(rows):
    drawn = np.concatenate(take(train_batches(rows, 6, seed=0), 10))
    np.testing.assert_array_equal(np.bincount(drawn)[2:], 3)


def test_batches_are_a_function_of_rows_batch_and_seed(rows):
    assert take(train_batches(rows, 4, seed=3), 8) == take(train_batches(rows, 4, seed=3), 8)
    assert take(train_batches(rows, 4, seed=3), 8) != take(train_batches(rows, 4, seed=4), 8)
    one, other = (take(train_batches(rows, 4, seed=s, shuffle=False), 8) for s in (3, 4))
    assert one == other != take(train_batches(rows, 4, seed=3), 8)


def test_neighbouring_seeds_do_not_share_epochs(rows):
    first, second = (take(train_batches(rows, 20, seed=seed), 3) for seed in (0, 1))
    assert not any(a == b for a in first for b in second)


@pytest.mark.parametrize("steps", [0, 1, 7, 23])
def test_resume_is_exact_through_json(rows, steps):
    original = train_batches(rows, 6, seed=1)
    take(original, steps)
    state = json.loads(json.dumps(original.get_state()))
    resumed = train_batches(rows, 6, seed=1)
    resumed.set_state(state)
    assert take(resumed, 10) == take(original, 10)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_together_see_the_batches_of_one(rows, hosts):
    whole = take(train_batches(rows, 4, seed=0), 9)
    parts = [take(train_batches(rows, 4, seed=0, shard=(h, hosts)), 9) for h in range(hosts)]
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == whole


def test_batches_are_copies(rows):
    batch = next(train_batches(rows, 4, seed=0))
    before = rows.tokens.copy()
    batch.tokens[:] = 99
    np.testing.assert_array_equal(rows.tokens, before)


@pytest.mark.parametrize(
    ("batch", "shard", "message"),
    [
        (21, (0, 1), "21 rows per step, but the corpus packs into 20; lower config.data.batch"),
        (4, (0, 3), "multiple of the 3 hosts"),
        (4, (2, 2), "shard: expected"),
    ],
)
def test_impossible_batches_are_refused(rows, batch, shard, message):
    with pytest.raises(ValueError, match=message):
        train_batches(rows, batch, seed=0, shard=shard)


@pytest.mark.parametrize(("limit", "expected"), [(0, 20), (5, 5), (20, 20), (1000, 20)])
def test_validation_rows_are_distinct_even_and_padded(rows, limit, expected):
    batches = valid_batches(rows, 6, limit)
    assert all(leaf.shape == (6, 8) for leaf in jax.tree.leaves(batches))
    seen = [i for batch in batches for i in ids(batch) if i]
    assert len(set(seen)) == len(seen) == expected
    assert sum(int(np.count_nonzero(b.segments)) for b in batches) == expected * 8
    assert set(np.diff(seen)) == {20 // expected}
    np.testing.assert_array_equal(batches[-1].segments[expected % 6 or 6 :], 0)
    for again, batch in zip(valid_batches(rows, 6, limit), batches, strict=True):
        jax.tree.map(np.testing.assert_array_equal, again, batch)


def test_validation_is_shared_among_hosts(rows):
    whole = [ids(b) for b in valid_batches(rows, 4, 10)]
    parts = [[ids(b) for b in valid_batches(rows, 4, 10, shard=(h, 2))] for h in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == whole


# --- prepare ---


@pytest.fixture
def config(tmp_path) -> Data:
    path = tmp_path / "corpus.jsonl"
    lines = [{"text": f"Document {i}: the quick brown fox. " * (i % 7 + 1)} for i in range(60)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return Data(corpus=str(path), vocab_size=300, context=32)


def equal(a: Rows, b: Rows) -> bool:
    return all(np.array_equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def forbid_training(monkeypatch):
    def train(*_):
        raise AssertionError("the tokenizer was trained although the cache holds it")

    monkeypatch.setattr(pipeline.Tokenizer, "train", train)


def test_prepared_rows_decode_to_the_corpus(config, tmp_path):
    ready = prepare(config, tmp_path / "cache")
    corpus = load(config)
    for rows, documents in ((ready.train, corpus.train), (ready.valid, corpus.valid)):
        pieces = [ready.tokenizer.decode(targets) for _, targets, _ in segments_of(rows)]
        assert sum(map(len, pieces)) == sum(map(len, documents))
        assert ready.tokenizer.byte_lengths[rows.targets].sum() == sum(len(d.encode()) for d in documents)
        text = "".join(documents)
        assert all(piece in text for piece in pieces)


def test_unshuffled_rows_come_in_the_order_of_the_text(config, tmp_path):
    ready = prepare(dataclasses.replace(config, shuffle=False), tmp_path / "cache")
    read = ready.tokenizer.decode(ready.train.targets[ready.train.segments > 0])
    assert read == "".join(load(config).train)


def test_describe_counts_what_is_there(config, tmp_path):
    ready = prepare(config, tmp_path / "cache")
    said = json.loads(json.dumps(ready.describe()))
    assert said["corpus"] == "corpus.jsonl"
    assert said["vocab_size"] == ready.tokenizer.vocab_size <= 300
    assert said["train"]["documents"] + said["valid"]["documents"] == 60
    for split, rows in (("train", ready.train), ("valid", ready.valid)):
        counts = said[split]
        assert counts["rows"] == len(rows)
        assert counts["tokens"] == np.count_nonzero(rows.segments)
        assert counts["bytes"] == ready.tokenizer.byte_lengths[rows.targets].sum()
        assert counts["bytes_per_token"] == pytest.approx(counts["bytes"] / counts["tokens"], abs=1e-3)


def test_the_second_time_comes_from_the_cache(config, tmp_path, monkeypatch):
    first = prepare(config, tmp_path / "cache")
    forbid_training(monkeypatch)
    second = prepare(config, tmp_path / "cache")
    assert second.tokenizer.fingerprint == first.tokenizer.fingerprint
    assert equal(first.train, second.train)
    assert equal(first.valid, second.valid)
    assert second.describe() == first.describe()
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".npz"]  # no temporary file is left


@pytest.mark.parametrize(
    "change", [{"context": 16}, {"vocab_size": 280}, {"valid_fraction": 0.3}, {"shuffle": False}]
)
def test_another_config_has_another_cache_entry(config, tmp_path, change):
    prepare(config, tmp_path / "cache")
    prepare(dataclasses.replace(config, **change), tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_batch_size_does_not_touch_the_cache(config, tmp_path, monkeypatch):
    prepare(config, tmp_path / "cache")
    forbid_training(monkeypatch)
    prepare(dataclasses.replace(config, batch=3, valid_rows=1), tmp_path / "cache")


def test_changed_corpus_is_noticed(config, tmp_path):
    before = prepare(config, tmp_path / "cache")
    with open(config.corpus, "a", encoding="utf-8") as file:
        file.write(json.dumps({"text": "something new"}) + "\n")
    after = prepare(config, tmp_path / "cache")
    assert sum(after.documents.values()) == sum(before.documents.values()) + 1


@pytest.mark.parametrize("damage", ["empty", "truncated", "flipped", "text"])
def test_a_damaged_cache_is_made_again(config, tmp_path, damage, caplog):
    first = prepare(config, tmp_path / "cache")
    (entry,) = (tmp_path / "cache").iterdir()
    whole = bytearray(entry.read_bytes())
    flipped = whole[:]
    flipped[len(whole) // 2] ^= 0xFF
    entry.write_bytes({"empty": b"", "truncated": whole[:-500], "flipped": flipped, "text": b"hello"}[damage])
    with caplog.at_level(logging.WARNING):
        second = prepare(config, tmp_path / "cache")
    assert "damaged" in caplog.text
    assert equal(first.train, second.train)
    assert entry.read_bytes()[:2] == b"PK"


def test_a_failed_write_leaves_nothing_behind(config, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(OSError, match="No space"):
        prepare(config, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_missing_corpus_stays_a_corpus_error(tmp_path):
    with pytest.raises(CorpusError, match="no corpus"):
        prepare(Data(corpus="no-such-corpus"), tmp_path)

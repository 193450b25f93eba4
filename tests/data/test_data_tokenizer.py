import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import localist_jax.data
from localist_jax.data.tokenizer import Tokenizer

PROSE = ["The cat sat on the mat, and the dog sat on the log.\n" * 20, "def f(x):\n    return x + 1\n" * 20]
TEXTS = [
    "",
    "the cat",
    "  leading and trailing  ",
    "def f(x):\n\treturn x\r\n\r\n    # 12345.678",
    "<pad><bos> <bos>typed specials",
    "naïve café — ∑ 日本語 🙂🏽 \u200d",
    "\x00\x01\x7f\ufeff\uffff",
    "don't DON'T we'll",
    "a" * 5000,
    "\n" * 300 + " " * 300,
]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(PROSE, vocab_size=320)


def random_texts() -> list[str]:
    rng = random.Random(0)
    pools = ["abc \n\t<>'.1", "".join(map(chr, range(0x20, 0x250))), "日本語🙂é\u0301\u2028 \u00a0"]
    return ["".join(rng.choices(rng.choice(pools), k=rng.randrange(200))) for _ in range(200)]


@pytest.mark.parametrize("text", [*TEXTS, *PROSE])
def test_round_trip_and_bytes_are_exact(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode())
    assert not np.isin(ids, [Tokenizer.PAD, Tokenizer.BOS]).any()


def test_round_trip_and_bytes_on_random_texts(tokenizer):
    texts = random_texts()
    for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
        assert tokenizer.decode(ids) == text
        assert tokenizer.byte_lengths[ids].sum() == len(text.encode())


def test_encode_batch_equals_encode(tokenizer):
    for text, ids in zip(TEXTS, tokenizer.encode_batch(TEXTS), strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode(text))
        assert ids.dtype == np.int32


@pytest.mark.parametrize("asked", [258, 260, 280, 4096])
def test_vocabulary_is_at_most_what_was_asked(asked):
    tokenizer = Tokenizer.train(PROSE, asked)
    assert 258 <= tokenizer.vocab_size <= asked
    assert len(tokenizer.byte_lengths) == tokenizer.vocab_size
    assert tokenizer.byte_lengths[:2].tolist() == [0, 0]
    assert (tokenizer.byte_lengths[2:] >= 1).all()
    if asked <= 280:
        assert tokenizer.vocab_size == asked


def test_every_byte_is_a_token_even_without_training_text():
    tokenizer = Tokenizer.train([], 258)
    assert tokenizer.vocab_size == 258
    assert tokenizer.encode("é").size == 2
    assert tokenizer.decode(range(tokenizer.vocab_size)).encode("utf-8", "replace")


def test_training_shortens_text(tokenizer):
    text = PROSE[0]
    assert tokenizer.encode(text).size < len(text) / 2


def test_words_keep_their_token_whatever_sign_is_before_them():
    tokenizer = Tokenizer.train(["the cat (cat) [cat] 'cat' _cat .cat "] * 9, 400)
    cat = tokenizer.encode("cat")
    assert cat.size == 1
    for sign in "([_.'":
        assert cat[0] in tokenizer.encode(f"{sign}cat")


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="vocab_size: expected at least 258"):
        Tokenizer.train(PROSE, 257)


def test_decode_skips_specials_and_replaces_broken_utf8(tokenizer):
    euro = tokenizer.encode("€")
    assert tokenizer.decode([Tokenizer.BOS, *euro, Tokenizer.PAD]) == "€"
    assert tokenizer.decode(jnp.asarray(euro)) == "€"
    assert tokenizer.decode(euro[:1]) == "\ufffd"


@pytest.mark.parametrize("token", [-1, 10_000])
def test_ids_out_of_range_are_refused(tokenizer, token):
    with pytest.raises(ValueError, match="token id"):
        tokenizer.decode([token])
    with pytest.raises(ValueError, match="token id"):
        tokenizer.token_text(token)


@pytest.mark.parametrize(
    ("text", "shown"), [("\n", "⏎"), ("\t", "⇥"), (" ", " "), ("é", None), ("\x00", "\\u0000"), ("x", "x")]
)
def test_token_text_is_readable(tokenizer, text, shown):
    got = [tokenizer.token_text(i) for i in tokenizer.encode(text)]
    assert got == ([shown] if shown is not None else ["\\xc3", "\\xa9"])


def test_token_text_shows_words_and_specials(tokenizer):
    assert " the" in [tokenizer.token_text(i) for i in range(tokenizer.vocab_size)]
    assert [tokenizer.token_text(i) for i in (0, 1)] == ["<pad>", "<bos>"]


def test_training_is_deterministic_across_processes(tokenizer):
    code = (
        "from localist_jax.data.tokenizer import Tokenizer\n"
        f"print(Tokenizer.train({PROSE!r}, vocab_size=320).fingerprint)"
    )
    root = Path(localist_jax.data.__file__).parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout.strip() == tokenizer.fingerprint, done.stderr


def test_fingerprint_tells_tokenizers_apart(tokenizer):
    assert Tokenizer.train(PROSE, 280).fingerprint != tokenizer.fingerprint


def test_save_and_load(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    loaded = Tokenizer.load(path)
    assert loaded.fingerprint == tokenizer.fingerprint
    for text in TEXTS:
        np.testing.assert_array_equal(loaded.encode(text), tokenizer.encode(text))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "binary", "other"])
def test_a_file_that_does_not_load_is_one_line(tokenizer, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    text = tokenizer.to_json()
    contents = {
        "empty": b"",
        "truncated": text.encode()[:1000],
        "binary": b"\xff\xfe\x00",
        "other": b'{"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
    }
    if damage in contents:
        path.write_bytes(contents[damage])
    with pytest.raises(ValueError, match=r"tokenizer\.json") as caught:
        Tokenizer.load(path)
    assert "\n" not in str(caught.value)


ENDLESS = {
    "letters": "".join(random.Random(0).choices("acgt", k=400_000)),
    "signs": "".join(random.Random(1).choices("+-*/=()<>", k=400_000)),
    "blanks": "".join(random.Random(2).choices(" \t\n", k=400_000)),
    "one letter": "a" * 400_000,
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_the_longest_word_does_not_decide_how_long_learning_takes(kind):
    """Without a bound on the length of a piece, 400 thousand letters take 40 seconds, and twice as many four times."""
    began = time.monotonic()
    tokenizer = Tokenizer.train([ENDLESS[kind]], 400)
    ids = tokenizer.encode(ENDLESS[kind])
    assert time.monotonic() - began < 15
    assert tokenizer.decode(ids) == ENDLESS[kind]
    assert max(len(tokenizer.token_bytes[i]) for i in ids.tolist()) <= 128


def test_words_of_any_language_are_short_enough_to_stay_whole():
    word = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz"
    tokenizer = Tokenizer.train([f"das {word} " * 50], 1000)
    assert len(tokenizer.encode(f" {word}")) == 1

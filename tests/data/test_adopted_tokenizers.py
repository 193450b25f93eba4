"""Tokenizers from elsewhere: who opens a text, who ends it, what each token stands for."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from localist_jax.data import Tokenizer

TEXTS = ["the cat", "naïve — 日本語 🙂", "a\nb\t c", "<s> typed </s>"]


def byte_level(bos=True, both=False):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"Ġt": 256, "<s>": 257, "</s>": 258, "<|im_start|>": 259}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("Ġ", "t")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(["<s>", "</s>", "<|im_start|>"])
    if bos:
        single = "<s> $A </s>" if both else "<s> $A"
        specials = [("<s>", 257), ("</s>", 258)]
        inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=specials)
    return inner.to_str()


def sentence_piece():
    names = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁", "t", "h", "e", "th", "▁the"]
    vocab = {name: i for i, name in enumerate(names)}
    merges = [("t", "h")]
    inner = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return inner.to_str()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("made", [byte_level, sentence_piece])
def test_text_goes_in_and_out_and_meets_no_special(made, text):
    tokenizer = Tokenizer.from_json(made())
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.silent[ids].any()
    space = made is sentence_piece  # it puts one before every text
    assert tokenizer.byte_lengths[ids].sum() == len(text.encode()) + space


@pytest.mark.parametrize(("bos", "opened"), [(True, [257, 7]), (False, [7])])
def test_the_tokenizer_itself_says_whether_texts_are_opened(bos, opened):
    tokenizer = Tokenizer.from_json(byte_level(bos))
    assert tokenizer.bos == (257 if bos else None)
    assert tokenizer.opened([7]) == opened


def test_stops_may_be_sampled_and_other_specials_and_padding_may_not(tmp_path):
    tokenizer = Tokenizer.from_json(byte_level(), vocab_size=300, stop=[258])
    assert np.flatnonzero(tokenizer.silent).tolist() == [257, 259, *range(260, 300)]
    assert tokenizer.token_text(258) == "</s>"
    assert tokenizer.decode([7, 258, 299]) == tokenizer.decode([7])
    tokenizer.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (again.vocab_size, again.stop, again.bos) == (300, (258,), 257)
    assert again.fingerprint == tokenizer.fingerprint


def test_what_cannot_be_read_is_said():
    with pytest.raises(ValueError, match="at most one token around a text"):
        Tokenizer.from_json(byte_level(both=True))
    with pytest.raises(ValueError, match=r"has 260 tokens .* the model 100; they are not of one checkpoint"):
        Tokenizer.from_json(byte_level(), vocab_size=100)
    with pytest.raises(ValueError, match="has 260 tokens"):
        Tokenizer.from_json(byte_level(), stop=[400])


@pytest.mark.parametrize("made", [byte_level, sentence_piece])
def test_truncation_and_padding_that_a_file_has_switched_on_are_off(made, tmp_path):
    plain, inner = Tokenizer.from_json(made()), tokenizers.Tokenizer.from_str(made())
    inner.enable_truncation(max_length=16)
    inner.enable_padding(length=40)
    (tmp_path / "tokenizer.json").write_text(inner.to_str(), encoding="utf-8")
    tokenizer, texts = Tokenizer.load(tmp_path / "tokenizer.json"), ["the cat " * 50, "a"]
    for one, other in zip(tokenizer.encode_batch(texts), plain.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(tokenizer.encode(texts[0]), plain.encode(texts[0]))
    assert tokenizer.decode(tokenizer.encode(texts[0])) == texts[0]
    assert tokenizer.bos == plain.bos
    assert tokenizer.same_as(plain)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path / "tokenizer.json").fingerprint == tokenizer.fingerprint

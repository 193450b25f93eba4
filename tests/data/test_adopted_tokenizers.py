"""Tokenizers from elsewhere: who opens a text, who ends it, what each token stands for."""

import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from localist_jax.data import Tokenizer

TEXTS = ["the cat", "naïve — 日本語 🙂", "a\nb\t c", "<s> typed </s>"]


def byte_level(bos=True, both=False, without=""):
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(without))
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


RARE = "Ĕñĕ"  # stand-ins of the bytes 0x14, 0xF1 and 0x15


def test_bytes_without_a_token_are_left_out_as_the_library_does_and_counted_and_named_once(capsys):
    tokenizer = Tokenizer.from_json(byte_level(bos=False, without=RARE))
    assert len(tokenizer) == 260
    plain = tokenizer.encode("a naïve 🙂")
    assert tokenizer.decode(plain) == "a naïve 🙂"
    assert not tokenizer.lost
    assert capsys.readouterr().err == ""
    texts = ["a\x14b", "\U00040000\x14"]  # the second begins with 0xF1
    ids = tokenizer.encode_batch(texts)
    raw = tokenizers.Tokenizer.from_str(byte_level(bos=False, without=RARE))
    assert [x.tolist() for x in ids] == [raw.encode(text).ids for text in texts]
    assert tokenizer.byte_lengths[ids[0]].sum() == 2
    assert tokenizer.byte_lengths[ids[1]].sum() == 3
    assert tokenizer.lost == {0x14: 2, 0xF1: 1}
    said = "tokenizer: 3 bytes of the text have no token and are left out: 0x14 (2), 0xF1 (1)\n"
    assert capsys.readouterr().err == said
    tokenizer.encode(texts[0])
    assert tokenizer.lost == {0x14: 3, 0xF1: 1}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("byte", ["a", "!", "Ċ", "Ģ"])
def test_bytes_of_plain_text_and_of_every_script_must_be_there(byte):
    with pytest.raises(ValueError, match="1 are missing, and no byte fallback either"):
        Tokenizer.from_json(byte_level(without=byte))


@pytest.mark.parametrize("made", [byte_level, sentence_piece])
def test_of_two_authors_only_one_writes_special_tokens(made):
    tokenizer = Tokenizer.from_json(made())
    bos, eos = (tokenizer._inner.token_to_id(name) for name in ("<s>", "</s>"))
    ids = tokenizer.encode_written([("<s>the ", True), ("cat</s>", False), ("</s> the", True)]).tolist()
    assert [i for i in ids if i in (bos, eos)] == [bos, eos]
    assert tokenizer.decode(ids).replace(" ", "") == "thecat</s>the"
    together = "<s>the cat</s>"
    inner = tokenizers.Tokenizer.from_str(made())
    theirs = inner.encode(together, add_special_tokens=False).ids
    assert tokenizer.encode_written([("<s>the ", True), ("cat", False), ("</s>", True)]).tolist() == theirs
    assert tokenizer.encode_written([]).tolist() == []


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

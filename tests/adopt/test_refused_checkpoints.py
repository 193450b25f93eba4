"""Checkpoints that do not fit are refused in one line: damaged, ambiguous, or of what the model cannot compute."""

import json
import shutil

import checkpoints
import numpy as np
import pytest
import tokenizers
from checkpoints import changed, edited
from safetensors.numpy import load_file
from tokenizers import AddedToken

from localist_jax.adopt import adopt
from localist_jax.training.run import Run

VARIANTS = list(checkpoints.VARIANTS)


def cut(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1000])


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


NORM = "model.norm.weight"
BAD = {
    "another family": (
        lambda f: changed(f, model_type="gpt2"),
        "model_type: expected one of llama, mistral, qwen2, qwen3, smollm3, got 'gpt2'",
    ),
    "yarn": (lambda f: changed(f, rope_scaling={"rope_type": "yarn", "factor": 4.0}), "rope_scaling: .*'yarn'"),
    "biases": (lambda f: changed(f, attention_bias=True), "attention_bias: expected False, got True"),
    "mlp biases": (lambda f: changed(f, mlp_bias=True), "mlp_bias"),
    "gemma": (lambda f: changed(f, model_type="gemma3_text"), "model_type: .*'gemma3_text'"),
    "a short window": (
        lambda f: changed(f, model_type="mistral", sliding_window=64),
        "sliding_window: expected null or at least the context of 256 tokens, got 64; ask for a --context",
    ),
    "layers without positions here and there": (
        lambda f: changed(f, model_type="smollm3", no_rope_layers=[0, 1, 1]),
        r"no_rope_layers: expected 1 for each of 3 layers, and 0 for every so-manyth; got \[0, 1, 1\]",
    ),
    "sliding": (lambda f: changed(f, use_sliding_window=True), "use_sliding_window"),
    "activation": (lambda f: changed(f, hidden_act="gelu"), "hidden_act: expected 'silu', got 'gelu'"),
    "quantised": (lambda f: changed(f, quantization_config={"bits": 4}), "quantization_config"),
    "no number": (lambda f: changed(f, hidden_size="wide"), "hidden_size: expected an integer .* got 'wide'"),
    "a size that lies": (lambda f: changed(f, intermediate_size=64), r"gate_proj.weight: .*\[64, 32\].*\[48, 32\]"),
    "layers": (lambda f: changed(f, num_hidden_layers=4), "lacks model.layers.3.input_layernorm.weight and 8 more"),
    "fewer layers": (lambda f: changed(f, num_hidden_layers=2), "holds model.layers.2.* no place for"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json here"),
    "config cut": (lambda f: (f / "config.json").write_text('{"a'), "config.json: not JSON"),
    "cut short": (cut, "model.safetensors: damaged or cut short"),
    "not a file of this kind": (lambda f: (f / "model.safetensors").write_bytes(b"PK\x03\x04" * 9), "damaged"),
    "pickle": (pickled, "pytorch_model.bin is a pickle, which is never read"),
    "missing": (lambda f: edited(f, lambda w: w.pop(NORM)), f"lacks {NORM}"),
    "unknown": (lambda f: edited(f, lambda w: w.update(extra=np.zeros(3))), "holds extra, .* no place for"),
    "integers": (lambda f: edited(f, lambda w: w.update({NORM: np.zeros(32, np.int32)})), "F16, got I32"),
    "index elsewhere": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
        "names '../x', which is not a file of this folder",
    ),
    "shard missing": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "b.safetensors: missing",
    ),
    "an old index": (
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model.safetensors"}}'),
        "model.safetensors: lacks a; file and",
    ),
    "old shards": (
        lambda f: shutil.copy(f / "model.safetensors", f / "model-00001-of-00001.safetensors"),
        "model-00001-of-00001.safetensors and model.safetensors are of two saves",
    ),
    "an adapter": (lambda f: (f / "adapter_config.json").write_text("{}"), "adapter_config.json: expected whole"),
    "two tokenizers": (
        lambda f: (f / "vocab.json").write_text('{"<s>": 0, "a": 3}'),
        "vocab.json: token 'a' is 3 there and .* in tokenizer.json, so they are of two saves",
    ),
    "no vocabulary": (lambda f: (f / "vocab.json").write_text("[]"), "vocab.json: not a vocabulary"),
    "stops": (lambda f: changed(f, eos_token_id="</s>"), "config.json: eos_token_id: expected a token id, .* '</s>'"),
    "stops elsewhere": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": [1, -1]}'),
        "generation_config.json: eos_token_id: expected a token id, or a list",
    ),
    "generation cut": (lambda f: (f / "generation_config.json").write_text('{"e'), "generation_config.json: not JSON"),
    "nested": (lambda f: (f / "config.json").write_text('{"a":' * 100_000), "config.json: not JSON .*recursion"),
    "index cut": (lambda f: (f / "model.safetensors.index.json").write_text('{"we'), "not an index"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json' cannot be loaded"),
    "too few rows": (lambda f: changed(f, vocab_size=100), "tokenizer: has 258 tokens .* the model 100"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_one_line(tmp_path, case):
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    harm, words = BAD[case]
    harm(folder)
    with pytest.raises(ValueError, match=words) as error:
        adopt(folder, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_tied_weights_that_were_written_twice_must_be_the_same(tmp_path):
    folder = checkpoints.write(tmp_path / "checkpoint", "qwen3, tied")
    copied = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    edited(folder, lambda w: w.update({"lm_head.weight": copied}))
    assert adopt(folder, tmp_path / "run").settings.model.tied
    edited(folder, lambda w: w.update({"lm_head.weight": copied + 1}))
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        adopt(folder, tmp_path / "other")


@pytest.mark.parametrize("older", ["shards", "single", "fewer shards"])
def test_two_saves_in_one_folder_are_refused(tmp_path, older):
    """An index that was left behind beside newer weights, or weights beside a newer index: whichever is meant."""
    other = 1 if older == "single" else 3 if older == "shards" else 2
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0], shards=3 if older != "shards" else 1)
    left = checkpoints.write(tmp_path / "left", VARIANTS[0], shards=other)
    for path in left.glob("*.safetensors*"):
        name = path.name.replace("model-", "model-0000") if older == "fewer shards" else path.name
        if older != "fewer shards" or not path.name.endswith("index.json"):
            shutil.copy(path, folder / name)
    with pytest.raises(
        ValueError, match=r"are of two saves, and one of them is out of date; remove"
    ) as error:
        adopt(folder, tmp_path / "run")
    assert "\n" not in str(error.value)


def test_an_index_that_names_the_one_file_is_no_second_save(tmp_path):
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (folder / "consolidated.safetensors").write_bytes(b"what another library reads")
    own = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    (folder / "vocab.json").write_text(json.dumps(own))
    adopt(folder, tmp_path / "run")


def with_more_tokens(folder, *tokens):
    inner = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    filler = [f"<{i}>" for i in range(checkpoints.V - inner.get_vocab_size())]
    inner.add_special_tokens(filler)
    inner.add_tokens([AddedToken(content, special=special) for content, special in tokens])
    inner.save(str(folder / "tokenizer.json"))


def test_a_special_token_behind_the_models_vocabulary_is_never_met(tmp_path):
    """A <pad> that somebody added; `transformers` loads such checkpoints too."""
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    with_more_tokens(folder, ("<pad>", True))
    run = adopt(folder, tmp_path / "run")
    assert len(run.tokenizer) == run.tokenizer.vocab_size == checkpoints.V
    ids = run.tokenizer.encode("a <pad> of paper")
    assert ids.max() < checkpoints.V
    assert run.tokenizer.decode(ids) == "a <pad> of paper"
    assert Run.open(tmp_path / "run").generate(["<pad>"], [0.0], max_new=2)[0].tokens


def test_a_word_behind_the_models_vocabulary_is_refused(tmp_path):
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    with_more_tokens(folder, ("word", False))
    with pytest.raises(ValueError, match=r"has 289 tokens .*, the model 288; they are not of one checkpoint"):
        adopt(folder, tmp_path / "run")

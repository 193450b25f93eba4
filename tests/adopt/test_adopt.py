"""Adopted checkpoints: the logits of `transformers`, the way back bit for bit, and bad files as one line."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import checkpoints
import jax
import jax.numpy as jnp
import make_golden
import numpy as np
import pytest
from checkpoints import changed, edited
from safetensors.numpy import load_file

from localist_jax import __main__ as localist
from localist_jax.adopt import adopt, export, families, shards
from localist_jax.adopt.shards import write as write_shards
from localist_jax.data import Tokenizer
from localist_jax.locality import Dial
from localist_jax.model import forward as eager_forward
from localist_jax.model.cache import Cache
from localist_jax.report.job import measure
from localist_jax.training.run import Run

forward = jax.jit(eager_forward, static_argnums=0, static_argnames=("stats",))
GOLDEN = np.load(Path(__file__).parent / "golden.npz", allow_pickle=False)
VARIANTS = list(checkpoints.VARIANTS)
TOLERANCE = 1e-4  # of logits whose standard deviation is about 1
peers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers"))),
    reason="the peers are not installed: pip install -e '.[parity]' (golden.npz holds what they computed)",
)


@pytest.fixture(scope="module")
def adopted(tmp_path_factory):
    """Runs by variant and dtype, adopted once."""
    made = {}

    def get(variant, dtype="float32", **options):
        key = (variant, dtype, *options.items())
        if key not in made:
            at = tmp_path_factory.mktemp("adopted")
            folder = checkpoints.write(at / "checkpoint", variant, dtype=dtype, shards=3)
            made[key] = folder, adopt(folder, at / "run", **options)
        return made[key]

    return get


def logits(run, ids, dial=0.0, **options):
    out = forward(run.model, run.state.params, jnp.asarray(ids), Dial(dial), run.state.blocks, **options)
    return np.asarray(out.logits)


def cached_logits(run, ids, first=24):
    """Read in two pieces and then token by token."""
    B, T = ids.shape
    cache, parts = Cache.create(run.settings.model, B, 64), []
    for start, end in [(0, first), *((i, i + 1) for i in range(first, T))]:
        positions = jnp.broadcast_to(jnp.arange(start, end), (B, end - start))
        out = forward(
            run.model, run.state.params, jnp.asarray(ids[:, start:end]), Dial(0.0), run.state.blocks,
            positions=positions, cache=cache,
        )  # fmt: skip
        cache = out.cache
        parts.append(np.asarray(out.logits))
    return np.concatenate(parts, 1)


def test_strips_are_put_together_again(adopted, tmp_path, monkeypatch):
    folder, run = adopted(VARIANTS[3])
    monkeypatch.setattr(shards, "STRIP_BYTES", 4 * 5 * checkpoints.D)  # five rows, and what is left
    strips = adopt(folder, tmp_path / "run")
    for one, other in zip(*(jax.tree.leaves(r.state.params) for r in (run, strips)), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_on_record(adopted, variant):
    _, run = adopted(variant)
    found = logits(run, make_golden.tokens())[:, ::3]
    assert 0.3 < GOLDEN[variant].std() < 30
    np.testing.assert_allclose(found, GOLDEN[variant], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(
    "variant", ["llama, one key head, llama3", "qwen3, tied", "qwen2, biases", VARIANTS[-1]]
)
def test_with_a_cache_too(adopted, variant):
    _, run = adopted(variant)
    found = cached_logits(run, make_golden.tokens())[:, ::3]
    np.testing.assert_allclose(found, GOLDEN[variant], atol=TOLERANCE, rtol=0)


def test_at_every_dial_it_is_the_original(adopted):
    _, run = adopted("qwen3, tied")
    low, high = (logits(run, make_golden.tokens(), dial) for dial in (0.0, 1.0))
    np.testing.assert_array_equal(low, high)


@peers
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_agrees_and_reads_what_we_write(adopted, variant, tmp_path):
    folder, run = adopted(variant)
    ids = np.random.default_rng(7).integers(2, checkpoints.V, (2, 33))
    back = export(run, tmp_path / "back")
    for place in (folder, back):
        np.testing.assert_allclose(
            logits(run, ids), make_golden.reference(place, ids), atol=TOLERANCE, rtol=0
        )


@peers
@pytest.mark.parametrize("variant", ["llama, grouped queries", "qwen3, tied"])
def test_bfloat16_is_as_near_to_float32_as_transformers_is(adopted, variant):
    folder, run = adopted(variant, "bfloat16")
    coarse = dataclasses.replace(run.settings.model, dtype="bfloat16")
    ids = make_golden.tokens()
    exact = make_golden.reference(folder, ids)
    np.testing.assert_allclose(logits(run, ids), exact, atol=TOLERANCE, rtol=0)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, config=coarse))
    ours, theirs = (
        np.sqrt(np.mean((x - exact) ** 2))
        for x in (logits(other, ids), make_golden.reference(folder, ids, "bfloat16"))
    )
    assert 0 < ours <= 1.5 * theirs


@pytest.mark.parametrize(
    ("variant", "dtype"),
    [
        (VARIANTS[0], "float32"),
        (VARIANTS[3], "bfloat16"),
        (VARIANTS[2], "float16"),
        ("mistral", "bfloat16"),
        ("qwen2, biases", "float32"),
        (VARIANTS[-1], "float32"),
    ],
)
def test_there_and_back_is_bit_exact(adopted, tmp_path, variant, dtype):
    folder, run = adopted(variant, dtype)
    back = export(Run.open(run.workdir), tmp_path / "back")
    before = {k: v for f in folder.glob("*.safetensors") for k, v in load_file(f).items()}
    after = load_file(back / "model.safetensors")
    assert before.keys() == after.keys()
    for name, values in before.items():
        assert values.dtype == after[name].dtype == np.dtype(dtype)
        assert values.tobytes() == after[name].tobytes(), name
    assert (back / "tokenizer.json").read_bytes() == (folder / "tokenizer.json").read_bytes()
    again = adopt(back, tmp_path / "again")
    assert again.settings.model == run.settings.model
    families_of = (json.loads((x / "config.json").read_text())["model_type"] for x in (folder, back))
    assert len(set(families_of)) == 1


def test_large_exports_are_sharded_and_read_again(adopted, tmp_path):
    folder, run = adopted(VARIANTS[0])
    weights = load_file(export(run, tmp_path / "one") / "model.safetensors")
    (tmp_path / "many").mkdir()
    write_shards(tmp_path / "many", iter(weights.items()), shard_bytes=20_000)
    assert len(list((tmp_path / "many").glob("model-*-of-*.safetensors"))) > 3
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(folder / name, tmp_path / "many" / name)
    again = adopt(tmp_path / "many", tmp_path / "run")
    for one, other in zip(*(jax.tree.leaves(r.state.params) for r in (run, again)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_tied_weights_may_be_written_under_the_other_name(adopted, tmp_path):
    _, run = adopted("qwen3, tied")
    folder = checkpoints.write(tmp_path / "checkpoint", "qwen3, tied")
    edited(folder, lambda w: w.update({"lm_head.weight": w.pop("model.embed_tokens.weight")}))
    again = adopt(folder, tmp_path / "run")
    for one, other in zip(*(jax.tree.leaves(r.state.params) for r in (run, again)), strict=True):
        np.testing.assert_array_equal(one, other)
    untied = checkpoints.write(tmp_path / "untied", VARIANTS[0])
    edited(untied, lambda w: w.pop("model.embed_tokens.weight"))
    with pytest.raises(ValueError, match=r"lacks model\.embed_tokens\.weight; config\.json asks for it"):
        adopt(untied, tmp_path / "other")


@pytest.mark.parametrize("where", ["keep_origin", "Run.record"])
def test_an_adoption_that_was_killed_is_begun_again(tmp_path, monkeypatch, where):
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with monkeypatch.context() as patch:

        def killed(*_):
            raise KeyboardInterrupt

        owner, _, name = where.rpartition(".")
        patch.setattr(Run if owner else sys.modules["localist_jax.adopt.load"], name, killed)
        with pytest.raises(KeyboardInterrupt):
            adopt(folder, tmp_path / "run")
    adopt(folder, tmp_path / "run")
    assert Run.open(tmp_path / "run").tokenizer.vocab_size == checkpoints.V
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"
    with pytest.raises(ValueError, match="holds a run already"):
        adopt(folder, tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"holds checkpoints, but no config\.json .*; remove them, or choose"
    ):
        adopt(folder, tmp_path / "run")


def test_what_cannot_be_exported_is_said(adopted, tmp_path):
    _, run = adopted(VARIANTS[0])
    windowed, adding = (
        dataclasses.replace(run, settings=run.settings.replace(model=change))
        for change in ({"perception_window": 4}, {"block_units": 8, "dialled_units": False})
    )
    with pytest.raises(ValueError, match="perception_window must be 0"):
        export(windowed, tmp_path / "x")
    with pytest.raises(ValueError, match="localist units add to λ=0"):
        export(adding, tmp_path / "x")
    with pytest.raises(ValueError, match=r"dtype: expected one of float32.*'int8'"):
        export(run, tmp_path / "x", "int8")
    for name in ("config.json", "tokenizer.json", "model-00001-of-00002.safetensors"):
        (tmp_path / name[:3]).mkdir()
        (tmp_path / name[:3] / name).touch()
        with pytest.raises(ValueError, match=rf"holds a checkpoint already \({name}\)"):
            export(run, tmp_path / name[:3])


def test_the_commands(tmp_path, capsys):
    folder = checkpoints.write(tmp_path / "checkpoint", "llama, tied, linear", shards=2)
    localist.main(["adopt", str(folder), "--out", str(tmp_path / "run"), "--context", "32"])
    localist.main(["generate", str(tmp_path / "run"), "a text", "--dial", "0", "1", "--tokens", "3"])
    localist.main(["inspect", str(tmp_path / "run"), "a text", "--dial", "0"])
    localist.main(["export", str(tmp_path / "run"), str(tmp_path / "back")])
    out = capsys.readouterr().out
    assert out.count("a text") == 2
    assert out.splitlines()[-1] == str(tmp_path / "back")
    with pytest.raises(SystemExit):
        localist.main(["adopt", str(folder), "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert "holds a run already" in err
    assert len(err.splitlines()) == 1


def test_generation_ends_at_a_stop(adopted):
    _, run = adopted(VARIANTS[0])
    first = run.generate(["abc"], [0.0], max_new=4, temperature=0)[0]
    ending = dataclasses.replace(
        run,
        tokenizer=Tokenizer.from_json(
            run.tokenizer.to_json(), vocab_size=checkpoints.V, stop=first.tokens[1:2]
        ),
    )
    ended = ending.generate(["abc"], [0.0], max_new=4, temperature=0)[0]
    assert (ended.tokens, ended.finish) == (first.tokens[:1], "stop")
    assert first.tokens[1] != first.tokens[0]


STOPS = {
    "none": (None, (1,)), "one": ({"eos_token_id": 5}, (5,)), "several": ({"eos_token_id": [3, 4]}, (3, 4)),
    "unsaid": ({"temperature": 0.5}, (1,)), "null": ({"eos_token_id": None}, (1,)),
}  # fmt: skip


@pytest.mark.parametrize("case", STOPS)
def test_stops_stand_in_generation_config_or_else_in_config(tmp_path, case):
    beside, stops = STOPS[case]
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    if beside is not None:
        (folder / "generation_config.json").write_text(json.dumps(beside))
    run = adopt(folder, tmp_path / "run")
    assert run.tokenizer.stop == Run.open(tmp_path / "run").tokenizer.stop == stops
    assert not run.tokenizer.silent[list(stops)].any(), "the model may say that it has done"
    back = export(run, tmp_path / "back")
    assert families.stops_of(families.read_config(back), back) == stops


@peers
@pytest.mark.parametrize("case", ["none", "one", "several"])
def test_transformers_stops_at_the_same_tokens(tmp_path, case):
    from transformers import AutoModelForCausalLM

    beside, stops = STOPS[case]
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    if beside is not None:
        (folder / "generation_config.json").write_text(json.dumps(beside))
    theirs = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    assert stops == tuple(theirs if isinstance(theirs, list) else [theirs])


def test_there_is_nothing_to_report_of_a_run_that_was_never_trained(adopted):
    _, run = adopted(VARIANTS[0])
    with pytest.raises(ValueError, match="was adopted and has no blocks yet"):
        measure(run)


def test_a_context_within_the_window_is_read(tmp_path):
    folder = checkpoints.write(tmp_path / "checkpoint", "mistral")
    changed(folder, sliding_window=64)
    run = adopt(folder, tmp_path / "run", context=64)
    assert run.settings.data.context == 64


@pytest.mark.parametrize(("layers", "given", "stands"), [(4, 0, 2), (3, 0, 1), (4, 1, 1), (4, 3, 3)])
def test_the_router_of_a_deep_model_stands_after_the_second_layer(
    tmp_path, monkeypatch, layers, given, stands
):
    monkeypatch.setattr(checkpoints, "L", layers)
    folder = checkpoints.write(tmp_path / "checkpoint", VARIANTS[0])
    assert adopt(folder, tmp_path / "run", router_layer=given).settings.model.router_layer == stands


def test_smollm3_that_says_nothing_turns_three_layers_of_four_and_is_tied():
    raw = checkpoints.config_of(VARIANTS[-1])
    for key in ("no_rope_layers", "no_rope_layer_interval", "tie_word_embeddings", "rope_theta"):
        raw.pop(key)
    model = families.model_of(raw)
    assert (model.unturned_every, model.tied, model.rope_base) == (4, True, 2e6)
    assert families.model_of({**raw, "no_rope_layers": [1, 1, 1]}).unturned_every == 0


def test_a_model_of_no_family_is_not_exported():
    model = families.model_of(checkpoints.config_of("qwen2, biases"))
    with pytest.raises(ValueError, match="no family of checkpoints has these settings of qk_norm, qkv_bias"):
        families.config_of(dataclasses.replace(model, qk_norm=True), 288, 256, "float32")

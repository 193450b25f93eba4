"""A tokenizer and an untrained model that all tests of rules share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from localist_jax.data import Tokenizer
from localist_jax.locality import Dial
from localist_jax.model import Transformer, generate
from localist_jax.rules.enforcement import Enforcer
from localist_jax.rules.vocabulary import Vocabulary

TEXT = (
    "the cat sat on the mat and the dog ate my password. warfarin with aspirin may cause bleeding; "
    "ask your doctor about a heart attack, or call 12 34. no interaction is known to the category "
)


@pytest.fixture(scope="session")
def tokenizer():
    return Tokenizer.train([TEXT * 3, "naïve café übermäßig пароль "], 330)


@pytest.fixture(scope="session")
def vocabulary(tokenizer):
    return Vocabulary(tokenizer)


@pytest.fixture(scope="session")
def network(small, tokenizer, blocks):
    model = Transformer(small, tokenizer.vocab_size)
    row = jnp.ones((1, 8), jnp.int32)
    init = jax.jit(lambda key: nn.unbox(model.init(key, row, Dial(0.0), blocks))["params"])
    params = init(jax.random.key(3))
    attention = params["localist"]["attention"]
    half = jax.random.bernoulli(jax.random.key(4), 0.5, attention["gates"].shape).astype(jnp.float32)
    attention = {**attention, "gates": half}
    return model, {**params, "localist": {**params["localist"], "attention": attention}}


@pytest.fixture(scope="session")
def write(network, tokenizer, blocks):
    """Generates under rules: (generations, enforcer)."""

    def call(rules, prompts, *, on_tokens=None, enforcer=None, **options):
        model, params = network
        enforcer = enforcer or Enforcer(tokenizer, model.config, params, rules)
        ids = [tokenizer.encode(prompt).tolist() for prompt in prompts]
        settings = {"context": 64, "max_new": 20, "temperature": 1.0, "top_p": 1.0, **options}
        dial = settings.pop("dial", Dial(0.5))
        out = generate(model, params, blocks, ids, dial, constraint=enforcer, on_tokens=on_tokens, **settings)
        return out, enforcer

    return call

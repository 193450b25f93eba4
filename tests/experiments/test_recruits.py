"""The configuration with which `make quickstart` shows a recruitment."""

import numpy as np
import pytest

from experiments.configs.recruits import get_config
from localist_jax import config
from localist_jax.data.fields import Fields
from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.recruitment import chronicle
from localist_jax.recruitment.recruiter import hooks
from localist_jax.training.loop import train


@pytest.mark.slow
def test_a_block_is_born_of_the_second_field_and_takes_its_words(tmp_path):
    settings = config.resolve(get_config()).replace(recruitment={"placebos": 8})
    run = train(settings, tmp_path, hooks=hooks(settings))
    (birth,) = [r for r in chronicle.read(tmp_path) if r["kind"] == "recruited"]
    assert birth["step"] > settings.train.steps // 2, "the second field comes half way"
    assert chronicle.beyond_bits(birth) >= birth["threshold_bits"]
    assert birth["surprise_bits"] >= birth["surprise_threshold_bits"]

    world, batch = Fields.create(0, 2), run.valid[0]
    out = forward(
        run.model, run.state.params, batch.tokens, Dial(1.0), run.state.blocks,
        positions=batch.positions, segments=batch.segments,
    )  # fmt: skip
    own = np.split(np.array(world.words[world.shared :]), 2)
    said = np.vectorize(run.tokenizer.token_text)(batch.tokens)
    said = np.char.strip(said)
    first, second = (np.asarray(out.blocks)[np.isin(said, words)] for words in own)
    assert (first == birth["parent"]).mean() > 0.9
    assert (second == birth["block"]).mean() > 0.9

"""The dial of a training step."""

import jax
import numpy as np
import pytest

from localist_jax import config
from localist_jax.training.dials import training_dial


def localities(settings, progress=0.5, layers=3, draws=4000):
    keys = jax.random.split(jax.random.key(0), draws)
    return np.asarray(jax.vmap(lambda key: training_dial(key, settings, progress, layers).locality)(keys))[
        :, 0, :, 0
    ]


def test_any_draws_both_ends_and_log_odds_uniformly_between():
    settings = config.DialTraining(
        mode="any", power=0.0, share_distributed=0.2, share_localist=0.4, max_log_odds=7.0
    )
    drawn = localities(settings)[:, 0]
    assert (drawn == 0).mean() == pytest.approx(0.2, abs=0.03)
    assert (drawn == 1).mean() == pytest.approx(0.4, abs=0.03)
    between = drawn[(drawn > 0) & (drawn < 1)]
    beta = -np.log1p(-between.astype(np.float64))
    np.testing.assert_allclose(np.quantile(beta, [0.25, 0.5, 0.75]), [1.75, 3.5, 5.25], atol=0.3)
    assert beta.max() < 7.1


def test_fixed_is_fixed():
    assert np.ptp(localities(config.DialTraining(mode="fixed", locality=0.7, power=0.0))) == 0


@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_a_schedule_rises_to_its_end(progress):
    settings = config.DialTraining(mode="schedule", locality=0.8, power=0.0)
    np.testing.assert_allclose(localities(settings, progress, draws=2), 0.8 * progress, rtol=1e-6)


def test_power_makes_it_progressive_over_the_layers():
    settings = config.DialTraining(mode="fixed", locality=0.9, power=2.0)
    np.testing.assert_allclose(
        localities(settings, draws=1)[0], 0.9 * (np.array([1, 2, 3]) / 3) ** 2, rtol=1e-6
    )


def test_the_last_layer_is_exactly_localist_whatever_the_power():
    assert localities(config.DialTraining(mode="fixed", locality=1.0, power=3.0), draws=1)[0, -1] == 1.0

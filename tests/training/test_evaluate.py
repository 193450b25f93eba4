"""Evaluation against sums by hand, and a sweep that compiles once."""

import jax
import numpy as np
import pytest

from localist_jax.locality import Dial
from localist_jax.model import forward
from localist_jax.training.evaluate import STATISTICS, Evaluator


@pytest.fixture(scope="module")
def evaluator(tiny_run):
    return Evaluator(tiny_run.model, tiny_run.tokenizer.byte_lengths)


@pytest.mark.parametrize("value", [0.0, 0.9, 1.0])
def test_figures_are_ratios_of_sums_over_all_tokens(tiny_run, evaluator, value):
    found = evaluator.measure(tiny_run.state.params, tiny_run.state.blocks, tiny_run.valid, Dial(value))
    code, entropy, tokens, size = 0.0, 0.0, 0, 0
    for batch in tiny_run.valid:
        out = jax.jit(forward, static_argnums=0, static_argnames="stats")(
            tiny_run.model,
            tiny_run.state.params,
            batch.tokens,
            Dial(value),
            tiny_run.state.blocks,
            positions=batch.positions,
            segments=batch.segments,
            stats="open",
        )
        logits, valid = np.asarray(out.logits, np.float64), np.asarray(batch.segments) > 0
        chosen = np.take_along_axis(logits, np.asarray(batch.targets)[..., None], -1)[..., 0]
        code += ((np.log(np.exp(logits).sum(-1)) - chosen) / np.log(2))[valid].sum()
        entropy += np.asarray(out.stats.entropy_bits).mean((0, 2))[valid].sum()
        size += tiny_run.tokenizer.byte_lengths[np.asarray(batch.targets)][valid].sum()
        tokens += valid.sum()
    assert found["bits_per_token"] == pytest.approx(code / tokens, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(code / size, rel=1e-5)
    assert found["perplexity"] == pytest.approx(2 ** (code / tokens), rel=1e-4)
    assert found["entropy_bits"] == pytest.approx(entropy / tokens, rel=1e-4)
    quick = evaluator.bits_per_token(
        tiny_run.state.params, tiny_run.state.blocks, tiny_run.valid, Dial(value)
    )
    assert quick["bits_per_token"] == pytest.approx(found["bits_per_token"], rel=1e-6)


def test_a_sweep_of_twenty_settings_compiles_once(tiny_run):
    evaluator = Evaluator(tiny_run.model, tiny_run.tokenizer.byte_lengths)
    state, layers = tiny_run.state, tiny_run.settings.model.layers
    rows = evaluator.sweep(state.params, state.blocks, tiny_run.valid[:1], np.linspace(0, 1, 17))
    for dial in (
        Dial.per_layer([0, 0.5, 1]),
        Dial.regime("balanced", layers),
        Dial.for_requests([0, 0.3, 0.9, 1]),
    ):
        evaluator.measure(state.params, state.blocks, tiny_run.valid[:1], dial)
    assert evaluator.compile_count == 1
    assert rows[0]["price_bits"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["fidelity"] == pytest.approx(1, abs=1e-5)
    fidelity = [row["fidelity"] for row in rows]
    assert fidelity[0] < 0.999
    assert (
        np.diff(fidelity) > -1e-3
    ).all()  # monotone on equal states (T1); deeper layers have different states
    for row in rows:
        assert len(row["by_layer"]["entropy_bits"]) == layers
        for name in STATISTICS:
            assert np.mean(row["by_layer"][name]) == pytest.approx(row[name], rel=1e-5, abs=1e-9)


def test_nothing_to_measure_is_an_error(tiny_run, evaluator):
    with pytest.raises(ValueError, match="no batches"):
        evaluator.measure(tiny_run.state.params, tiny_run.state.blocks, [], Dial(0.0))

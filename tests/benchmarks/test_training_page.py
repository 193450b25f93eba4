"""The training benchmark's figures from given timings."""

import pytest

from benchmarks.plain import Sizes
from benchmarks.training_page import body

STEPS = {"λ=0": 1.0, "any-dial": 1.1, "λ=1": 0.8, "plain Flax": 1.2, "PyTorch": 0.5}
DRIFT = (1.0, 2.0, 1.5, 3.0)  # of the machine, from round to round


@pytest.fixture
def told():
    seconds = {f"{name}, step": [x * d for d in DRIFT] for name, x in STEPS.items()}
    seconds |= {f"{who}, {part}": [0.3] * 4 for who in STEPS for part in ("forward", "gradient")}
    seconds["matrix products"] = [0.01] * 4
    saving = {"with": [12.2, 12.3, 12.4, 12.5], "without": [12.0] * 4, "blocked": [0.1] * 4}
    idle = {"with": [1.01, 2.02], "without": [1.0, 2.0], "hook": [1e-5, 3e-5]}
    restarted = {
        "restart_exact": 1.0, "restart_largest_difference": 0.0, "restart_numbers": 9, "restart_killed_at": 24,
        "restart_resumed_from": 20,
    }  # fmt: skip
    return body(Sizes(), seconds, saving, idle, 100, restarted)


def test_ratios_are_of_speeds_and_drift_cancels(told):
    _, figures = told
    wanted = {
        "step_over_flax_lambda0": 1.2, "step_over_torch_lambda0": 0.5, "step_any_over_dense": 1 / 1.1,
        "step_lambda1_over_dense": 1.25, "recruitment_idle_overhead": 0.01,
    }  # fmt: skip
    for name, value in wanted.items():
        assert [figures[name][at] for at in ("low", "median", "high")] == pytest.approx([value] * 3, abs=1e-4)
    step = 1.1 * 1.75  # the median round's
    assert figures["async_checkpoint_overhead"]["median"] == pytest.approx(0.35 / (100 * step), abs=1e-4)
    assert figures["restart_exact"] == 1.0


def test_a_missed_target_is_told(told):
    text, _ = told
    rows = {line.split("`")[1]: line for line in text.splitlines() if line.startswith("| `")}
    assert rows["step_over_flax_lambda0"].endswith("| yes |")
    assert rows["step_over_torch_lambda0"].endswith("| **no** |")
    assert rows["recruitment_idle_overhead"].endswith("| yes |")

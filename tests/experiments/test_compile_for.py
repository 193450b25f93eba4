"""Compiling for a topology: too much memory, bounds, the page; and scaling from it."""

import json

import jax
import pytest

from experiments import scaling
from experiments.compile_for import page, programs
from localist_jax import config
from localist_jax.parallel import ahead
from localist_jax.parallel.mesh import make_mesh

FIGURES = {
    "fits": True, "error": None, "devices": 256,
    "mesh": {"slice": 1, "specialist": 8, "data": 1, "fsdp": 8, "tensor": 4},
    "parameters": 10**9, "seconds": 1.0, "tokens": 2**20, "flops": 197e12, "model_flops": 98.5e12,
    "bytes_per_device": 3 * 2**30, "argument_bytes": 2**30, "temporary_bytes": 2 * 2**30,
    "memory_traffic_bytes": 10**12,
    "collective_bytes": {"all-gather": 7 * 10**9, "all-reduce": 10**9}, "collectives": 3, "network_bytes": 0.0,
    "intensity": 197.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes(tiny_settings):
    def of(**model):
        settings = tiny_settings.replace(model=model)
        return programs.Shapes.of(settings, make_mesh(config.Mesh(), jax.devices()[:1]))

    return of


@pytest.mark.parametrize(
    ("memory", "model", "words"),
    [
        (1e5, {}, r"the state alone takes .* raise config.mesh.fsdp \(now 1\) or take more chips"),
        (1e12, {}, r"set config.model.remat, or lower config.data.batch \(now 4 rows a device\), or raise"),
        (
            1e12,
            {"remat": True},
            r"too much: lower config.data.batch .* or raise config.mesh.tensor \(now 1\)",
        ),
    ],
)
def test_what_does_not_fit_is_told_what_to_change(shapes, memory, model, words, monkeypatch):
    monkeypatch.setitem(ahead.CHIPS, "v5e", ahead.Chip(1.0, memory, 1.0, 1.0, 1.0))
    made = shapes(**model)
    text = "RESOURCE_EXHAUSTED: Ran out of memory\n Used 20.5G of 15.75G hbm. Exceeded hbm capacity by 4.75G."
    compiled = ahead.Compiled(text.splitlines()[0], ahead.overflow(text), 0, 0, None, 1.0)
    lowered = programs.Lowered(None, 128, 1e9, 1e9)
    found = page.figures(made, "v5e:2x2", lowered, compiled)
    assert not found["fits"]
    assert found["over_bytes"] == 4.75 * 2**30
    with pytest.raises(AssertionError, match=words):
        raise AssertionError(found["advice"])
    assert "does not fit by 4.75 GiB" in page.told("x", found)


def test_other_complaints_are_no_lack_of_memory(shapes):
    compiled = ahead.Compiled("INTERNAL: no such thing", ahead.overflow("INTERNAL"), 0, 0, None, 1.0)
    assert "see the error" in page.advice(shapes(), compiled, ahead.CHIPS["v5e"])


def test_the_longest_part_bounds_the_speed():
    chip = ahead.CHIPS["v5e"]
    found = page.bounds(FIGURES, chip)
    assert found["seconds_at_least"]["compute"] == pytest.approx(1.0)
    assert found["seconds_at_least"]["links"] == pytest.approx(8e9 / chip.links)
    assert found["tokens_per_second_at_most"] == pytest.approx(2**20)
    assert found["utilisation_at_most"] == pytest.approx(0.5)
    slower = page.bounds({**FIGURES, "network_bytes": 8e9}, chip)
    assert slower["tokens_per_second_at_most"] == pytest.approx(2**20 / (8e9 / chip.network))


def test_the_page_keeps_what_earlier_calls_found(tmp_path):
    page.write(tmp_path, {"pod v5e:16x16 train": dict(FIGURES)}, "first")
    failed = {**FIGURES, "fits": False, "error": "x", "over_bytes": 2.0**30, "advice": "less"}
    page.write(tmp_path, {"pod v5p:2x2x1 train": failed}, "second")
    kept = json.loads((tmp_path / "compile_for.json").read_text())
    assert kept["command"] == "first\nsecond"
    assert kept["figures"]["pod v5e:16x16 train"]["tokens_per_second_at_most"] == pytest.approx(2**20)
    text = (tmp_path / "compile_for.md").read_text()
    assert "| pod v5e:16x16 train | 256 | yes | 3.00 | 1.00 | 197.00 |" in text
    assert "not known to fit: pod_1b v5e:16x16 train, " in text  # what is wanted and was not compiled
    assert "| pod v5p:2x2x1 train | 256 | no: 1.00 GiB over |" in text


def test_scaling_keeps_rows_and_splits_the_state():
    at = {n: scaling.predict(FIGURES, "v5e", n) for n in (8, 32, 256, 1024)}
    assert at[32].memory == FIGURES["argument_bytes"] + FIGURES["temporary_bytes"]  # as it was compiled
    assert at[32].tokens == FIGURES["tokens"] / 8
    assert at[8].memory - FIGURES["temporary_bytes"] == 4 * FIGURES["argument_bytes"]
    assert at[256].network == 0 < at[1024].network
    assert at[1024].slices == 4
    assert at[1024].memory == at[256].memory  # each slice repeats the state
    assert at[8].links < at[32].links < at[256].links
    assert all(point.best <= point.worst for point in at.values())

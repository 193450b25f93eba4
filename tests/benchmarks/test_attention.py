import dataclasses
import json
import sys

import pytest

from benchmarks import attention, page
from benchmarks.peers import MISSING, Refused, Worker, blocks_of

TINY = attention.Sizes(
    dense=(64, 128), details=64, reference=64, flex=64, density=512, blocks=(4,), flex_blocks=(4,),
    long=(128, 8), decode=(64,),
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    out = tmp_path_factory.mktemp("measurements")
    with Worker(sys.executable) as worker:
        bench = attention.measure(TINY, attention.PARTS, worker)
        path = attention.study_of(bench, out, "python -m benchmarks.attention")
    return path, json.loads(path.with_suffix(".json").read_text())["figures"]


@pytest.mark.slow
def test_every_path_is_timed(measured):
    timings = measured[1]["timings"]
    for way in attention.WAYS:
        for name in (f"dial0_{way}", f"dial1_{way}", f"jaxnn_{way}"):
            assert timings["dense"][name].keys() == {"64", "128"}
        for name in (f"dial0.9_{way}", f"dial0_{way}_open", f"reference_{way}"):
            assert timings["dense"][name].keys() == {"64"}
        assert timings["density"][f"attend_{way}"].keys() == {"1", "4"}
        assert timings["long"][f"attend_{way}"].keys() == {"128"}
    assert timings["decode"].keys() >= {"dial0", "dial1", "jaxnn"}
    for part in timings.values():
        for by_size in part.values():
            for one in by_size.values():
                assert 0 < one["low"] <= one["median"] <= one["high"]
                assert one["repetitions"] >= 3


@pytest.mark.slow
def test_figures_are_ratios_of_what_was_timed(measured):
    figures = measured[1]
    dense = figures["timings"]["dense"]
    for T, ratio in figures["cpu_dense_over_jaxnn_fwdbwd"].items():
        pair = [dense[name][T]["median"] for name in ("jaxnn_fwdbwd", "dial0_fwdbwd")]
        assert ratio == pytest.approx(pair[0] / pair[1])
    wanted = {
        "cpu_dense_over_jaxnn_fwd", "cpu_lambda1_speedup_density_4", "stats_overhead_fwd", "stats_overhead_fwdbwd",
        "long_fwdbwd_seconds", "long_fwdbwd_memory_gib", "decode_dial0_seconds", "decode_dial1_over_dial0",
    }  # fmt: skip
    assert wanted <= figures.keys()
    assert all(
        size > 0 for part in figures["memory_bytes"].values() for x in part.values() for size in x.values()
    )


@pytest.mark.slow
def test_page_shows_targets_and_pictures(measured):
    path, figures = measured
    text = path.read_text()
    for picture in ("dense", "density", "decode"):
        assert (path.parent / f"attention_{picture}.svg").exists()
        assert f"](attention_{picture}.svg)" in text
    assert page.NOT_MEASURED in text, "no target is judged by sizes that are too small for it"
    if figures["torch"] == MISSING:
        assert MISSING in text
        assert figures["refused"]["dense"]["sdpa_fwd"]["64"] == MISSING
    else:
        assert "cpu_dense_over_torch_sdpa_fwdbwd" in figures


def test_a_worker_without_torch_refuses(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise ImportError\n")  # shadows PyTorch where it is installed
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker(sys.executable) as worker:
        assert worker.refusal == MISSING
        with pytest.raises(Refused, match="not installed"):
            worker.make(
                "sdpa",
                "sdpa",
                tokens=8,
                keys=8,
                gradient=False,
                batch=1,
                heads=1,
                size=4,
                dtype="float32",
                device="cpu",
            )


def found(**timings):
    dense = {name: {T: {"median": x} for T, x in by_size.items()} for name, by_size in timings.items()}
    return page.Found(
        backend="cpu", timings={"dense": dense}, refused={}, memory={}, flex={}, torch=None, limits=(20.0, 1),
        blocks=16, density_tokens=8192, operations=1e9, tiles="", shape="batch 1",
    )  # fmt: skip


@pytest.mark.parametrize(("jaxnn", "verdict"), [(4.1, "yes"), (3.9, "**no**")])
def test_a_target_is_judged_by_its_worst_long_size(jaxnn, verdict):
    one = found(dial0_fwd={512: 1.0, 2048: 1.0, 4096: 1.0}, jaxnn_fwd={512: 1.0, 2048: jaxnn, 4096: 9.0})
    rows = page.targets(page.figures_of(one), "cpu")
    assert rows[0][1:] == [f"{jaxnn:.2f} … 9.00", verdict]
    assert all(row[1] == page.NOT_MEASURED for row in rows[1:])


def test_exponent_is_of_the_power_law():
    assert page.exponent({512: 1e9, 2048: 3.0, 4096: 6.0, 8192: 12.0}, 2048) == 1.0
    assert page.exponent({512: 1.0, 2048: 2.0}, 2048) is None


def test_sink_is_the_first_position_alone():
    blocks = blocks_of(1000, 4)
    assert blocks[0] == 0
    assert set(blocks[1:]) == {1, 2, 3, 4}


def test_rates_of_products_stand_on_the_page_from_the_smallest_tile_on():
    times = {"512×512": {1 << 18: {"median": 0.5}}, "64×64": {1 << 12: {"median": 2.0}}}
    one = dataclasses.replace(found(), timings={"products": times})
    assert page.figures_of(one)["product_rate_64×64"] == 5e8
    assert "| tile | 64×64 | 512×512 |" in "\n".join(page._products(one))

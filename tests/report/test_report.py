"""The report: self-contained, and every figure in it is one that was measured."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from localist_jax import bits, report
from localist_jax.locality import Dial
from localist_jax.report import collect, figures
from localist_jax.training.evaluate import SWEEP
from localist_jax.training.state import GATES, at_path


@pytest.fixture(scope="module")
def page(tiny_run):
    return (tiny_run.workdir / "report.html").read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Checks that tags close in order; notes what is fetched from elsewhere."""

    EMPTY = {"meta", "br", "link", "img", "path", "use", "rect", "circle", "image"}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.count = [], [], {}

    def handle_startendtag(self, tag, attributes):
        self.handle_attributes(attributes)

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.handle_attributes(attributes)
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_attributes(self, attributes):
        self.fetched += [
            v
            for k, v in attributes
            if k in ("src", "href", "xlink:href") and v and not v.startswith(("#", "data:"))
        ]

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_needs_nothing_else(page):
    reader = Balance()
    reader.feed(page)
    assert reader.open == []
    assert reader.fetched == []
    assert "@import" not in page
    assert reader.count["svg"] == 4
    assert reader.count["section"] == 7


def test_figures_in_the_table_are_those_measured(page, tiny_run):
    rows = json.loads((tiny_run.workdir / "sweep.json").read_text())["settings"]
    assert [row["locality"] for row in rows] == list(SWEEP)
    for row in rows:
        assert (
            f"<td>{row['locality']:g}</td><td>{row['bits_per_token']:.4f}</td><td>{row['bits_per_byte']:.4f}</td>"
            in page
        )
    again = tiny_run.evaluator.measure(
        tiny_run.state.params, tiny_run.state.blocks, tiny_run.valid, Dial(0.9)
    )
    row = next(row for row in rows if row["locality"] == 0.9)
    assert again["bits_per_token"] == pytest.approx(row["bits_per_token"], rel=1e-6)
    assert again["entropy_bits"] == pytest.approx(row["entropy_bits"], rel=1e-5)


def test_text_of_the_user_is_escaped(tiny_run, tmp_path):
    for path in tiny_run.workdir.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    samples = collect.read(tmp_path, "samples")
    samples[0]["text"] = "<script>alert(1)</script>"
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_a_missing_file_is_named_with_the_remedy(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"sweep\.json is missing; `localist report"):
        report.write(tmp_path)


def test_blocks_are_described_by_counts_over_the_validation_rows(tiny_run):
    found = collect.read(tiny_run.workdir, "blocks")
    assert sum(row["usage"] for row in found["blocks"]) == pytest.approx(1)
    assert 0 <= found["mutual_information_bits"] <= found["block_entropy_bits"]
    assert found["blocks"][0]["name"] == "sink"


def test_the_information_estimate_is_corrected_for_its_bias():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 5, 4000), rng.integers(0, 30, 4000)
    counts = np.zeros((5, 30))
    np.add.at(counts, (x, y), 1)
    assert float(bits.mutual_information(counts)) > 0.01  # the plug-in estimate of 0
    assert collect._corrected_information(counts) < 0.006


def test_inspection_covers_every_token(tiny_run):
    read, attention = collect.inspect(tiny_run, "some words here", Dial(1.0))
    T = len(read["tokens"])
    c = tiny_run.settings.model
    assert attention.shape == (c.layers, c.heads, T, T)
    np.testing.assert_allclose(attention.sum(-1), 1, atol=1e-5)
    assert np.abs(np.triu(attention, 1)).max() == 0
    np.testing.assert_allclose(read["fidelity"], 1, atol=1e-5)
    assert read["bits"][0] is None
    assert len(read["bits"]) == len(read["blocks"]) == len(read["price_bits"]) == T


@pytest.mark.parametrize("text", ["", "word " * 200])
def test_texts_that_cannot_be_inspected_are_refused(tiny_run, text):
    with pytest.raises(ValueError, match=r"inspect: the text has .* tokens; give it 1 … 31"):
        collect.inspect(tiny_run, text, Dial(1.0))


def test_gate_maps_show_exact_zeros_apart():
    gates = np.array([[[[1, 0.0, 1e-9], [1, 0.5, 1], [1, 1, 0.2]]]])
    figure = figures.gate_maps(gates, np.ones(3, bool), 1)
    image = figure.axes[0].images[0]
    shown = image.norm(np.asarray(image.get_array()))
    assert shown[0, 1] == 0
    assert shown[0, 2] != shown[0, 1]


def test_the_same_figure_gives_the_same_text(tiny_run):
    gates, active = (
        np.asarray(at_path(tiny_run.state.params, GATES)),
        np.asarray(tiny_run.state.blocks.active),
    )
    first, second = (figures.svg(figures.gate_maps(gates, active, 1)) for _ in range(2))
    assert first == second
    assert not re.search(r"<svg[^>]*(?:width|height)=", first)


def test_the_axis_of_the_dial_is_monotone_with_localist_last():
    at = figures.dial_axis(SWEEP)
    assert (np.diff(at) > 0).all()
    assert at[0] == 0
    assert at[-1] == figures.LAST_TICK

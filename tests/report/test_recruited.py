"""The report shows every recruitment decision in words, the lives of blocks, and pictures."""

import dataclasses
import html
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from localist_jax import report
from localist_jax.recruitment import chronicle, record
from localist_jax.report import collect, figures, watch
from localist_jax.report import page as page_module
from localist_jax.training import journal
from localist_jax.training.state import ROUTER, at_path, with_leaf


def trial(
    step, parent, kind="rejected", bits=20.0, placebos=(5.0, 8.0), reason=record.REACHED_HORIZON, **more
):
    return {
        "step": step, "kind": kind, "reason": reason, "proposal": "hard", "name": "", "parent": parent, "share": 0.25,
        "estimated_gain_bits": 30.0, "llr_bits": bits, "cost_bits": 4.0, "threshold_bits": 8.5,
        "placebo_bits": list(placebos), "surprise_bits": 9.0,
        "surprise_threshold_bits": 6.0, "tokens": 4096, "trial": 1,
        "curve_bits": np.linspace(0, bits, 4).tolist(), "best_placebo_curve_bits": np.linspace(0, 8, 4).tolist(),
        **more,
    }  # fmt: skip


RETIRED = {
    "step": 30,
    "kind": "retired",
    "block": 3,
    "parent": 1,
    "llr_bits": -4.0,
    "description_bits": 11.0,
    "tokens": 4096,
}
STORY = [
    {"step": 5, "kind": "quiet", "reason": record.QUIET, "estimated_gain_bits": 12.3},
    trial(10, 1, "recruited", block=3, birth=1),
    {"step": 10, "kind": "born", "block": 3, "parent": 1, "seconds": 0.1},
    trial(20, 3, bits=9.0),
    RETIRED,
    trial(40, 1, "recruited", block=3, birth=2),
]  # fmt: skip


def test_lives_follow_the_records_and_a_place_may_be_taken_again():
    lives = chronicle.lives(STORY)
    assert [(x.block, x.parent, x.born, x.ended) for x in lives] == [
        (1, 1, 0, None), (3, 1, 10, 30), (3, 1, 40, None)
    ]  # fmt: skip
    assert list(chronicle.newcomers(STORY)) == [3]
    assert chronicle.newcomers(STORY)[3].born == 40
    assert chronicle.begun(STORY[1]) == 6


def test_every_decision_is_told_once_with_its_bits():
    said = chronicle.sentences(STORY)
    assert len(said) == len(STORY) - 1, "a birth is told by the trial that it ended"
    assert said[1] == (
        "Step 10: block 3 is born of block 1 and takes 25% of its positions. On 4,096 tokens it saved 20.0 bits, "
        "12.0 more than the best of 2 placebos (8.0); 8.5 were needed. It stands out from its placebos by 9.0 bits of "
        "surprise; 6.0 were needed."
    )
    assert "4.0 bits more; 11.0 bits describe it" in said[3]
    assert chronicle.births(STORY) == [said[1], said[4]]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (trial(9, 1, bits=12.0), "4.0 more than the best of 2 placebos (8.0); 8.5 more were needed"),
        (trial(9, 1, surprise_bits=2.0), "; it stands out by 2.0 bits of surprise, of 6.0 needed"),
        (trial(9, 1, bits=2.0, surprise_bits=2.0), "6.0 fewer than the best of 2 placebos (8.0); 8.5 more were needed"),
        (trial(9, 1, bits=12.0, placebos=(-3.0, -1.0)), "12.0 more than the model, as no placebo saved any"),
        (trial(9, 1, reason=record.GATHERED_NOTHING), "given up, it gathered nothing"),
        (trial(9, 1), "another division had more"),
        (trial(9, 1, name="aspirin"), "for the concept aspirin"),
        ({"step": 3, "kind": "full", "reason": record.FULL, "capacity": 4}, "no place is left"),
        ({"step": 3, "kind": "enlarged", "capacity": 8, "seconds": 1.04}, "there are 8 now, after 1.0 s"),
    ],
)  # fmt: skip
def test_words_say_what_was_wanting(record, words):
    (line,) = chronicle.sentences([record])
    assert words in line


def test_the_picture_shows_each_trial_beside_its_placebo_and_each_life():
    figure = figures.recruitment(STORY, 50, marks=[25])
    evidence, timeline = figure.axes
    ends = [line.get_ydata()[-1] for line in evidence.lines if len(line.get_xdata()) == 5]
    assert ends == [8.0, 20.0, 8.0, 9.0, 8.0, 20.0]
    assert [t.get_text() for t in timeline.get_yticklabels()] == [
        "block 1", "block 3", "block 3", "surveys without a trial"
    ]  # fmt: skip
    drawn = [line.get_xdata() for line in timeline.lines if len(line.get_xdata()) == 2]
    assert [list(x) for x in drawn if x[0] != x[1]][:3] == [[0, 50], [10, 30], [40, 50]]
    assert figures.svg(figure) == figures.svg(figures.recruitment(STORY, 50, marks=[25]))


def test_the_plane_of_the_map_tells_blocks_apart_and_keeps_its_orientation():
    rng = np.random.default_rng(0)
    blocks = rng.integers(1, 4, 300)
    means = np.zeros((4, 12))
    means[2, 7], means[3, 2] = 5, 5
    states = means[blocks] + rng.normal(size=(300, 12))
    plane = watch.axes_between(states, blocks)
    np.testing.assert_allclose(plane.T @ plane, np.eye(2), atol=1e-9)
    assert np.square(plane[[2, 7]]).sum() > 1.8
    turned = plane @ np.array([[0.0, 1.0], [-1.0, 0.0]])
    again = watch.axes_between(states, blocks, turned)
    np.testing.assert_allclose(again, turned, atol=1e-9)
    alone = watch.axes_between(states, np.ones(300, int))
    assert np.isfinite(
        figures.router_map(states @ alone, np.ones(300, int)).axes[0].collections[0].get_offsets()
    ).all()


def test_the_report_tells_of_newcomers_and_every_decision(tiny_run, tmp_path):
    for path in tiny_run.workdir.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / chronicle.FILE).write_text("\n".join(map(json.dumps, STORY)))
    page = report.write(tmp_path).read_text(encoding="utf-8")
    (life,) = chronicle.newcomers(STORY).values()
    row = page[page.index("<tr><td>3</td>") :].partition("</tr>")[0]
    assert row.endswith(
        "<td>40</td><td>1 " + html.escape(names(tmp_path)[1]) + "</td><td>20.0</td><td>12.0</td><td>8.5</td>"
    )
    assert life.trial is STORY[-1]
    for line in chronicle.sentences(STORY):
        assert f"<li>{line}</li>" in page
    before = (tiny_run.workdir / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == before.count("<svg") + 1
    assert "Recruitment" not in before


def names(folder):
    return {row["block"]: row["name"] for row in collect.read(folder, "blocks")["blocks"]}


def test_children_stand_below_their_parents():
    rows = [
        {"block": block, "parent": parent}
        for block, parent in ((0, 0), (1, 1), (2, 2), (3, 1), (4, 3), (5, 1), (6, 7))
    ]
    order = [(row["block"], depth) for row, depth in page_module._by_descent(rows)]
    assert order == [(0, 0), (1, 0), (3, 1), (4, 2), (5, 1), (2, 0), (6, 0)], (
        "a parent that is gone leaves roots"
    )


def test_the_watch_leaves_a_map_and_a_timeline_and_the_state_alone(tiny_run, tmp_path):
    run = dataclasses.replace(tiny_run, workdir=tmp_path)
    (tmp_path / chronicle.FILE).write_text("\n".join(map(json.dumps, STORY)))
    with journal.Journal(tmp_path) as book:
        hook = watch.Watch(6)
        hook.start(run, book, 0)
        for step in (6, 12):
            assert hook(step, run.state, run.valid[0]) is run.state
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    for name in ("router_map", "recruitment"):
        assert [image.step for image in events.Images(name)] == [5, 11]
    trained = EventAccumulator(str(tiny_run.workdir / "tensorboard")).Reload()
    assert [image.step for image in trained.Images("router_map")] == [5, 11], "every run is watched"


def test_a_router_that_cannot_tell_and_attention_that_does_not_choose_are_named(tiny_run, tmp_path, capfd):
    run = dataclasses.replace(tiny_run, workdir=tmp_path)
    params = run.state.params
    attention = params["localist"]["attention"]
    idle = {**attention, "query_norm": jax.tree.map(jnp.zeros_like, attention["query_norm"])}
    undecided = with_leaf(params, ROUTER, jnp.zeros_like(at_path(params, ROUTER)))
    broken = {**undecided, "localist": {**params["localist"], "attention": idle}}
    with journal.Journal(tmp_path) as book:
        hook = watch.Watch(1)
        hook.start(run, book, 0)
        hook(1, dataclasses.replace(run.state, params=broken), run.valid[0])
    said = capfd.readouterr().err
    assert "watch: step 0: ambiguous_routing: the router's doubt H(block | state) = 2.32 bits" in said, (
        "log2(5)"
    )
    (record,) = journal.read(tmp_path / "metrics.jsonl")
    assert record["entropy_bits"] == pytest.approx(record["open_bits"], abs=1e-3)
    assert "ambiguous_attention" in said

"""The dial study: its tasks are what they say, its controls match, its runs are kept, its arithmetic is right."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.cases import Results, Store
from experiments.dial_sweep import babi, blimp, page, recall
from experiments.dial_sweep.__main__ import STUDY
from experiments.dial_sweep.conditions import CONDITIONS, fitted
from experiments.dial_sweep.rows import one_each
from experiments.dial_sweep.runs import Plan, fingerprint
from experiments.dial_sweep.tasks import TASKS
from localist_jax import config
from localist_jax.data import corpora, valid_batches
from localist_jax.locality import Dial
from localist_jax.model import Transformer, forward
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.evaluate import SWEEP
from localist_jax.training.run import abstract_state, fresh_state
from localist_jax.training.state import GATES, at_path
from localist_jax.training.step import make_train_step

STORY = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Mary went to the garden.
5 Where is Mary? \tgarden\t4
1 John went to the office.
2 Where is John? \toffice\t1
"""


@pytest.fixture
def corpus_root(tmp_path, monkeypatch):
    """A folder with a little of bAbI and of BLiMP."""
    (tmp_path / "babi" / "en-10k").mkdir(parents=True)
    for task in babi.TASKS:
        for split in ("train", "test"):
            (tmp_path / "babi" / "en-10k" / f"qa{task}_x_{split}.txt").write_text(STORY)
    (tmp_path / "blimp").mkdir()
    (tmp_path / "blimp" / "blimp.tsv").write_text(
        "uid\tfield\tterm\tgood\tbad\na\tb\tc\tHe didn't go, did he?\tHe didn't went, did he?\n"
    )
    monkeypatch.setenv(corpora.ROOT_VARIABLE, str(tmp_path))
    return tmp_path


def small(**sections):
    return TASKS["recall"].at("cpu").replace(
        model={"layers": 2, "width": 16, "heads": 2, "kv_heads": 2, "head_size": 8, "feed_forward": 16},
        train={"steps": 3, "save_every": 2}, **sections,
    )  # fmt: skip


# --- tasks -----------------------------------------------------------------------------------------


def test_recall_asks_only_for_what_was_told_long_before():
    settings = small()
    rows = recall.prepare(settings).valid
    context = settings.data.context
    for tokens, targets in zip(rows.tokens[:50], rows.targets[:50], strict=True):
        asked = np.flatnonzero(targets > 0)
        assert len(asked) == recall.PAIRS
        for place in asked:
            told = np.flatnonzero(tokens == tokens[place])[0]
            assert tokens[told + 1] == targets[place]
            assert place - told > (recall.ASKED_FROM - recall.TOLD_UNTIL) * context - 2


def test_recall_draws_fresh_rows_for_every_seed():
    one, other = (recall.prepare(small().replace(train={"seed": seed})) for seed in (0, 1))
    assert not np.array_equal(one.valid.tokens, other.valid.tokens)
    assert not np.array_equal(one.train.tokens[:50], one.valid.tokens[:50])


def test_recall_refuses_a_context_that_is_too_short():
    with pytest.raises(ValueError, match="do not fit a context of 16"):
        recall.prepare(small(data={"context": 16, "batch": 4}))


def test_babi_scores_answers_and_labels_their_support(corpus_root):
    settings = config.resolve({"data": {"context": 64, "batch": 2, "vocab_size": 400}})
    prepared = babi.prepare(settings)
    said = prepared.tokenizer.decode
    first = babi._answered(1, 64, prepared.tokenizer, "accuracy")[0]
    assert [said([i]) for i in first.ids[first.answers]] == [" bathroom", " garden"]
    lines = [said(first.ids[mask[: len(first.ids)]]) for mask in first.support.values()]
    assert lines == [" Mary moved to the bathroom.", " Mary went to the garden."]
    scored = prepared.valid.targets[prepared.valid.targets > 0]
    assert sorted(said([i]) for i in scored) == [" bathroom"] * 3 + [" garden"] * 3 + [" office"] * 3
    learnt = said(prepared.train.tokens[prepared.train.segments > 0].tolist())
    assert all(word in learnt for word in (" Daniel", " Sandra", " kitchen"))  # which no story says


def test_babi_leaves_out_what_does_not_fit_the_context(corpus_root):
    tokenizer = babi.prepare(
        config.resolve({"data": {"context": 64, "batch": 2, "vocab_size": 400}})
    ).tokenizer
    short = babi._answered(1, 22, tokenizer, "accuracy")[0]
    assert len(short.ids) <= 22
    assert short.answers.sum() == 1


def test_one_each_keeps_the_order_and_leaves_the_rest_empty():
    batch = one_each(
        [np.array([5, 6]), np.array([7, 8, 9])], 4, 3, [np.array([0, 1]) > 0, np.array([1, 0, 0]) > 0]
    )
    assert batch.tokens.tolist() == [[1, 5, 0, 0], [1, 7, 8, 0], [0, 0, 0, 0]]
    assert batch.targets.tolist() == [[-1, 6, 0, 0], [7, -1, -1, 0], [0, 0, 0, 0]]


def test_blimp_is_spaced_like_wikitext(corpus_root):
    assert blimp.pairs() == [(" He didn 't go , did he ?", " He didn 't went , did he ?")]


def test_a_missing_corpus_is_named_with_a_line_that_says_where_it_belongs(monkeypatch):
    monkeypatch.delenv(corpora.ROOT_VARIABLE, raising=False)
    assert fingerprint("recall") == ""
    with pytest.raises(corpora.CorpusError, match="put the folder en-10k of bAbI"):
        fingerprint("babi")


# --- conditions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["window", "neighbours"])
def test_a_control_is_fitted_to_an_open_share_as_tightly_as_its_size_allows(control):
    from experiments.dial_sweep.conditions import _share_of

    settings = TASKS["recall"].at("cpu").replace(train={"steps": 1})
    batches = valid_batches(recall.prepare(settings).valid, 64, 64)
    size = fitted(settings, control, batches, 0.25)
    assert (
        _share_of(settings, control, batches, size) >= 0.25 > _share_of(settings, control, batches, size - 1)
    )


@pytest.mark.parametrize("name", CONDITIONS)
def test_every_condition_is_a_valid_configuration_with_as_many_parameters(name):
    base = TASKS["recall"].at("cpu")
    made = CONDITIONS[name].settings(base, 8)
    sight = {"window": base.model.window, "perception_window": base.model.perception_window, "neighbours": 0}
    same = dataclasses.replace(made.model, **sight)
    assert (same, made.train, made.data) == (base.model, base.train, base.data)


def stepped(settings, steps=2):
    """The state after a few training steps, and the last batch."""
    prepared = recall.prepare(settings)
    model = Transformer(settings.model, prepared.tokenizer.vocab_size)
    state = fresh_state(model, settings, make_mesh(settings.mesh))
    batch = valid_batches(prepared.valid, settings.data.batch, settings.data.batch)[0]
    step = jax.jit(make_train_step(model, settings, prepared.tokenizer.byte_lengths))
    for _ in range(steps):
        state, _ = step(state, batch)
    return model, state, batch


def test_gates_of_a_control_do_not_move():
    priced = small(gates={"open_at_least": 0.0, "open_at_most": 0.0})
    for name, wanted in (("always", np.zeros), ("neighbours", np.eye)):
        settings = CONDITIONS[name].settings(priced, 8)
        _, state, _ = stepped(settings)
        gates = np.asarray(at_path(state.params, GATES))
        K = settings.model.block_capacity
        assert np.array_equal(gates, np.broadcast_to(wanted((K, K) if name == "always" else K), gates.shape))


def test_blocks_of_neighbours_are_not_routed():
    settings = CONDITIONS["neighbours"].settings(small(), 8)
    model, state, batch = stepped(settings, steps=0)
    run = jax.jit(forward, static_argnums=0)
    out = run(model, state.params, batch.tokens, Dial(1.0), state.blocks, positions=batch.positions)
    assert out.blocks[0].tolist() == [0, *[1 + i // 8 for i in range(1, settings.data.context)]]


def test_the_larger_scale_has_the_promised_size():
    settings = TASKS["wikitext2"].at("gpu")
    model = Transformer(settings.model, settings.data.vocab_size)
    state = abstract_state(model, settings, make_mesh(settings.mesh))
    assert 45e6 < sum(leaf.size for leaf in jax.tree.leaves(state.params)) < 60e6
    assert settings.data.context == 1024


# --- runs ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_is_measured_once_and_a_control_is_fitted_to_it(tmp_path, monkeypatch, capsys):
    small_task = dataclasses.replace(TASKS["recall"], settings={"cpu": small()}, conditions=("any", "window"))
    monkeypatch.setitem(TASKS, "recall", small_task)
    here = dataclasses.replace(STUDY, pool=None)
    words = ["--tasks", "recall", "--seeds", "0", "--steps", "2", f"--workdir={tmp_path}"]
    options, store = here.parsed(words), Store(tmp_path)
    planned = here.cases(options)
    here.measure(options, planned, store)
    any_dial, control = (store.figures(case) for case in planned)
    assert [row["locality"] for row in any_dial["rows"]] == list(SWEEP)
    assert 0 <= any_dial["certified_share"] <= 1
    assert 0 <= any_dial["rows"][0]["accuracy"] <= 1
    with monkeypatch.context() as patch:
        patch.setattr("localist_jax.training.loop.train", _refuse)
        here.measure(options, planned, store)
    matched = next(row["open_share"] for row in any_dial["rows"] if row["locality"] == 1)
    assert control["rows"][0]["open_share"] == pytest.approx(matched, abs=0.06)
    found = Plan("cpu", 2).whole(["recall"], [0], [], Results(store, planned))
    assert found == ({"recall": {"any": {0: any_dial}, "window": {0: control}}}, {})


def _refuse(*_, **__):
    raise AssertionError("trained again")


def test_seeds_that_are_not_whole_are_left_out(tmp_path, capsys):
    plan, store = Plan("cpu"), Store(tmp_path)
    for name in ("any", "window"):
        store.keep(plan.case("recall", name, 0), {}, 1.0)
    found = Results(store, plan.all(["recall"], [0], []))
    with pytest.raises(ValueError, match="no seed of any task is whole"):
        plan.whole(["recall"], [0], [], found)
    assert "recall, seed 0: no dense, dense_above, always" in capsys.readouterr().err


def test_what_waits_comes_after_what_it_needs_and_any_dial_first():
    planned = Plan("cpu").all(["wikitext2", "recall"], [0, 1], ["power_1", "more_localist"])
    names = [case.name for case in planned]
    assert len(set(names)) == len(names)
    assert names[:2] == ["cpu/wikitext2/any/seed0", "cpu/recall/any/seed0"]
    assert names[-3:] == [
        f"cpu/wikitext2/{x}" for x in ("power_1/seed0", "more_localist/seed0", "more_localist/seed1")
    ]
    assert all(names.index(before.name) < at for at, case in enumerate(planned) for before in case.after)
    waiting = {case.settings["condition"] for case in planned if case.after}
    assert waiting == {"window", "neighbours", "samples"}


def test_a_control_depends_on_the_settings_that_it_is_fitted_with():
    one, other = (Plan("cpu", steps).case("recall", "window", 0) for steps in (2, 3))
    store = Store(Path("nowhere"))
    assert store.key(one) != store.key(other)
    assert one.name == other.name


# --- the page --------------------------------------------------------------------------------------


def invented(task):
    """Results as the study has them: bits by condition, a little apart by seed."""
    bits = {
        "dense": 4.0,
        "dense_above": 4.0,
        "always": 5.0,
        "any": 4.1,
        "localist": 4.1,
        "window": 4.8,
        "neighbours": 4.9,
    }
    results = {}
    for name, condition in CONDITIONS.items():
        results[name] = {}
        for seed in (0, 1, 2):
            rows = []
            for value in condition.localities:
                code = bits.get(name, 4.3) + 0.01 * seed
                row = {
                    "locality": value, "bits_per_token": code, "bits_per_byte": code / 3, "perplexity": 2**code,
                    "entropy_bits": 3.0 - value, "gated_mass": 0.1, "price_bits": value, "open_share": 0.2,
                    "accuracy": 0.5,
                }  # fmt: skip
                if task == "wikitext2" and name in ("any", "dense"):
                    row["blimp"] = 0.6
                if task == "babi":
                    names = ("accuracy", "labelled", "labelled_best", "labelled_even", "gated_mass")
                    row |= {f"babi_{t}": dict.fromkeys(names, 0.3) for t in babi.TASKS}
                rows.append(row)
            made_on = {
                "machine": {"devices": ["H"], "cores": 16},
                "versions": {"jax": "0"},
                "date": "2000-01-01",
            }
            results[name][seed] = {"rows": rows, "certified_share": 0.1, "made_on": made_on}
    return results


def test_kept_benefit_is_measured_between_the_two_ends():
    table = page.Table(invented("wikitext2"))
    assert page.kept_benefit(table, "dense", 0.0) == pytest.approx([1.01, 1.0, 0.99])
    assert page.kept_benefit(table, "always", 1.0) == pytest.approx([0.01, 0.0, -0.01])
    assert page.kept_benefit(table, "any", 1.0)[1] == pytest.approx(0.9)
    assert page.resolution(table) == pytest.approx(100.0)


def test_the_page_has_every_table_picture_and_named_figure(tmp_path):
    results = {task: invented(task) for task in TASKS}
    said = {"bits_per_token": 4.0, "repeats": 0.1, "prompt": "a", "text": "b"}
    texts = {seed: {**{f"{x:g}": said for x in SWEEP}, "dense": said} for seed in (0, 1, 2)}
    del results["babi"]["window"][2]["made_on"]
    settings = {task: TASKS[task].at("gpu-minutes") for task in TASKS}
    path = page.page_of(results, texts, settings).write(tmp_path, "dial_sweep", "the command")
    text = path.read_text()
    assert "{" not in text.replace("{main}", "{")  # every picture found its place
    assert (
        "119 runs were trained and measured on H and 16 cores, jax 0, 2000-01-01. 1 runs do not say" in text
    )
    assert "4 layers of width 256, 4 heads, 16 blocks, bfloat16; 800 steps of 32 rows of 256 tokens." in text
    for picture in ("main", "babi"):
        assert (tmp_path / f"dial_sweep_{picture}.svg").is_file()
        assert f"dial_sweep_{picture}.svg" in text
    figures = json.loads((tmp_path / "dial_sweep.json").read_text())["figures"]
    wanted = {
        *(
            "wikitext2_resolved",
            "wikitext2_kept_benefit_0",
            "wikitext2_kept_benefit_1",
            "wikitext2_open_share",
        ),
        *("wikitext2_entropy_ratio_1", "wikitext2_any_over_fixed_ppl_1", "blimp_dense", "blimp_localist_1"),
        *("recall_dense", "recall_localist_1", "recall_open_share", "recall_window_control"),
        *("recall_block_control", "babi_1_any_1_accuracy"),
    }
    assert wanted <= set(figures)
    assert figures["wikitext2_resolved"] is True
    assert figures["wikitext2_entropy_ratio_1"] == pytest.approx([2 / 3] * 3)

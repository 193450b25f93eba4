"""The journal and the progress line."""

import errno
import io
import json

import numpy as np
import pytest
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboardX.record_writer import RecordWriter

from localist_jax.training import journal
from localist_jax.training.journal import Journal
from localist_jax.training.progress import Progress


def test_records_come_back(tmp_path):
    with Journal(tmp_path) as book:
        book.scalars(1, "train", {"loss": 2.5})
        book.scalars(2, "train", {"loss": float("nan")})
    records = journal.read(tmp_path / "metrics.jsonl")
    assert [(r["step"], r["kind"], r["loss"]) for r in records] == [(1, "train", 2.5), (2, "train", None)]


def test_a_resumed_journal_has_no_duplicates(tmp_path):
    with Journal(tmp_path) as book:
        for step in range(1, 7):
            book.scalars(step, "train", {"loss": 1.0})
    with Journal(tmp_path, resume_step=4) as book:
        book.scalars(5, "train", {"loss": 9.0})
    records = journal.read(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5]
    assert records[-1]["loss"] == 9.0


def test_a_torn_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "kind": "train"}) + '\n{"step": 2, "ki')
    assert [r["step"] for r in journal.read(path)] == [1]
    with Journal(tmp_path, resume_step=1) as book:
        book.scalars(2, "train", {})
    assert [r["step"] for r in journal.read(path)] == [1, 2]


def test_a_fresh_journal_forgets(tmp_path):
    for _ in range(2):
        with Journal(tmp_path) as book:
            book.scalars(1, "train", {"loss": 1.0})
    assert len(journal.read(tmp_path / "metrics.jsonl")) == 1


def test_tensorboard_gets_scalars_text_and_images(tmp_path):
    with Journal(tmp_path) as book:
        book.scalars(3, "eval", {"bits_per_token@0.9": 5.0})
        book.text(3, "sample@0.9", "once upon")
        figure = Figure(figsize=(1, 1))
        figure.subplots().plot([0, 1])
        book.figure(3, "gates", figure)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    tags = events.Tags()
    assert events.Scalars("eval/bits_per_token_at_0.9")[0].value == 5.0
    assert "gates" in tags["images"]
    assert any("sample_at_0.9" in tag for tag in tags["tensors"])


@pytest.mark.timeout(60)
def test_a_full_disk_is_an_error_and_nobody_waits(tmp_path, monkeypatch):
    def full(self, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    book = Journal(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", full)
    many = {f"figure {i}": 1.0 for i in range(50)}
    with pytest.raises(OSError, match="No space left on device"):
        book.scalars(1, "train", many)
    book.close()


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def progress(**options):
    clock, stream = Clock(), io.StringIO()
    return clock, stream, Progress(100, tokens=1000, clock=clock, stream=stream, **options)


def test_speed_counts_neither_compilation_nor_pauses():
    clock, _, bar = progress()
    clock.now = 30.0  # compiling
    bar.started(1)
    for step in range(2, 6):
        clock.now += 2.0
        if step == 4:
            with bar.paused():
                clock.now += 100.0
        bar.update(step, "")
    np.testing.assert_allclose(bar.tokens_per_second, 500.0)
    assert "500 tok/s" in bar.line("loss 1")
    assert "3m10s left" in bar.line("loss 1")


def test_a_resumed_run_counts_only_its_own_steps():
    clock, _, bar = progress(start=50)
    bar.started(51)
    clock.now += 10
    bar.update(61, "x")
    assert bar.steps_per_second == 1.0


def test_lines_in_a_file_are_few_and_the_last_is_there():
    clock, stream, bar = progress()
    bar.started(1)
    for step in range(2, 101):
        clock.now += 1.0
        bar.update(step, f"loss {step}")
    bar.done()
    lines = stream.getvalue().splitlines()
    assert 15 < len(lines) < 25
    assert "100/100" in lines[-2]
    assert lines[-1] == "train: 100 steps in 1m39s"
    assert "\r" not in stream.getvalue()

"""What a run says while it goes: `metrics.jsonl` for programs, TensorBoard for people."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import directory_check

from localist_jax.parallel import hosts


def read(path: str | Path) -> list[dict[str, Any]]:
    """The records of a `metrics.jsonl`; a torn last line (a killed run) is left out."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


FLUSH_SECONDS = 30.0  # what a killed run loses of TensorBoard's curves, at the most


class Records:
    """A file of JSON lines that a resumed run takes up: each has a "step". Of many processes the first one writes.

    Args:
      path: of the file.
      resume_step: records after this step are dropped, so that what is done again is not told twice.
    """

    def __init__(self, path: Path, resume_step: int = 0):
        self._file: TextIO | None = None
        if not hosts.is_first():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [r for r in read(path) if r["step"] <= resume_step] if path.exists() and resume_step else []
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: Mapping[str, Any]) -> None:
        """Appends a line."""
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()


class TensorBoardWriter:
    """TensorBoard's file of events, written by whoever adds one.

    `tensorboardX.SummaryWriter` writes in a thread of its own; where that thread meets a full disk it ends, and the run
    then waits for it for ever.

    Args:
      folder: of the files.
      purge_step: TensorBoard forgets events of an earlier part of the run from this step on.
      write: whether anything is written.
    """

    def __init__(self, folder: Path, purge_step: int, write: bool = True):
        self._file: EventsWriter | None = None
        if write:
            directory_check(str(folder))
            self._file = EventsWriter(str(folder / "events"))
            self._event(purge_step, session_log=SessionLog(status=SessionLog.START))
            self.flush()

    def add(self, step: int, what: Any) -> None:
        """Appends a `Summary`.

        Raises:
          OSError: the disk is full, or gone.
        """
        self._event(step, summary=what)

    def flush(self, after: float = 0.0) -> None:
        """Writes what is still in memory, if the last time was `after` seconds ago."""
        if self._file is not None and time.monotonic() - self._flushed >= after:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Writes the rest, and closes the file."""
        if self._file is not None:
            self._file.close()

    _flushed = -math.inf

    def _event(self, step: int, **what: Any) -> None:
        if self._file is not None:
            self._file.write_event(Event(step=step, wall_time=time.time(), **what))


class Journal:
    """Writes metrics of a run; a context manager. Of many processes only the first one writes.

    Args:
      workdir: gets `metrics.jsonl` and `tensorboard/`.
      resume_step: records after this step are dropped, so that a resumed curve has no duplicates.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0):
        workdir = Path(workdir)
        self._records = Records(workdir / "metrics.jsonl", resume_step)
        self._board = TensorBoardWriter(workdir / "tensorboard", resume_step + 1, hosts.is_first())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, kind: str, figures: Mapping[str, float]) -> None:
        """One record {"step", "kind", "time", name: number}; a number that is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        record = {"step": step, "kind": kind, "time": round(time.time(), 3), **finite}
        self._records.write(record)
        for name, value in figures.items():
            self._board.add(step, summary.scalar(f"{kind}/{_tag(name)}", value))
        self._board.flush(after=FLUSH_SECONDS)

    def curves(self, begin: int, kind: str, figures: Mapping[str, Sequence[float]]) -> None:
        """Numbers of the steps after `begin`, known only now; for TensorBoard."""
        for name, values in figures.items():
            for at, value in enumerate(values, begin + 1):
                self._board.add(at, summary.scalar(f"{kind}/{_tag(name)}", value))

    def text(self, step: int, name: str, text: str) -> None:
        """A text for TensorBoard."""
        self._board.add(step, summary.text(_tag(name), text))

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """A matplotlib figure, as an image for TensorBoard."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = np.asarray(canvas.buffer_rgba())[..., :3]
        self._board.add(step, summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Flushes and closes both."""
        self._records.close()
        self._board.close()


def _tag(name: str) -> str:
    """A name that TensorBoard accepts: bits_per_token@0.9 → bits_per_token_at_0.9."""
    return name.replace("@", "_at_")

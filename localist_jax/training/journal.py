"""Metrics of a run while it trains: `metrics.jsonl` for programs, TensorBoard for people."""

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
    """Return the records of a `metrics.jsonl`, without an incomplete last line (from a killed run)."""
    records = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


FLUSH_SECONDS = 30.0  # the most of TensorBoard's curves that a killed run loses


class Records:
    """A file of JSON lines, each with a "step", that a resumed run continues; only process 0 writes.

    Args:
      path: path of the file.
      resume_step: records after this step are dropped, since the resumed run writes them again.
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
        """Append a line."""
        if self._file is not None:
            self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


class TensorBoardWriter:
    """Writer of TensorBoard's event file, in the calling thread.

    `tensorboardX.SummaryWriter` writes in another thread, which ends when the disk is full; the run would then wait for
    it for ever.

    Args:
      folder: folder of the files.
      purge_step: TensorBoard discards earlier events from this step on.
      write: whether to write anything.
    """

    def __init__(self, folder: Path, purge_step: int, write: bool = True):
        self._file: EventsWriter | None = None
        if write:
            directory_check(str(folder))
            self._file = EventsWriter(str(folder / "events"))
            self._event(purge_step, session_log=SessionLog(status=SessionLog.START))
            self.flush()

    def add(self, step: int, what: Any) -> None:
        """Append a `Summary`.

        Raises:
          OSError: if the file cannot be written, such as on a full disk.
        """
        self._event(step, summary=what)

    def flush(self, after: float = 0.0) -> None:
        """Write what is still in memory, if the last flush was at least `after` seconds ago."""
        if self._file is not None and time.monotonic() - self._flushed >= after:
            self._file.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write the rest, and close the file."""
        if self._file is not None:
            self._file.close()

    _flushed = -math.inf

    def _event(self, step: int, **what: Any) -> None:
        if self._file is not None:
            self._file.write_event(Event(step=step, wall_time=time.time(), **what))


class Journal:
    """A context manager that writes metrics of a run; only process 0 writes.

    Args:
      workdir: folder for `metrics.jsonl` and `tensorboard/`.
      resume_step: records after this step are dropped, since the resumed run writes them again.
    """

    def __init__(self, workdir: str | Path, resume_step: int = 0):
        workdir = Path(workdir)
        self._records = Records(workdir / "metrics.jsonl", resume_step)
        self._tensorboard = TensorBoardWriter(workdir / "tensorboard", resume_step + 1, hosts.is_first())

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def scalars(self, step: int, kind: str, figures: Mapping[str, float]) -> None:
        """Write a record {"step", "kind", "time", name: number}; a number that is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        record = {"step": step, "kind": kind, "time": round(time.time(), 3), **finite}
        self._records.write(record)
        for name, value in figures.items():
            self._tensorboard.add(step, summary.scalar(f"{kind}/{_tag(name)}", value))
        self._tensorboard.flush(after=FLUSH_SECONDS)

    def curves(self, begin: int, kind: str, figures: Mapping[str, Sequence[float]]) -> None:
        """Write numbers of the steps after `begin`, which are known only now, to TensorBoard."""
        for name, values in figures.items():
            for step, value in enumerate(values, begin + 1):
                self._tensorboard.add(step, summary.scalar(f"{kind}/{_tag(name)}", value))

    def text(self, step: int, name: str, text: str) -> None:
        """Write a text to TensorBoard."""
        self._tensorboard.add(step, summary.text(_tag(name), text))

    def figure(self, step: int, name: str, figure: Figure) -> None:
        """Write a matplotlib figure to TensorBoard as an image."""
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        image = np.asarray(canvas.buffer_rgba())[..., :3]
        self._tensorboard.add(step, summary.image(name, image, dataformats="HWC"))

    def close(self) -> None:
        """Flush and close both files."""
        self._records.close()
        self._tensorboard.close()


def _tag(name: str) -> str:
    """Return a name that TensorBoard accepts: bits_per_token@0.9 becomes bits_per_token_at_0.9."""
    return name.replace("@", "_at_")

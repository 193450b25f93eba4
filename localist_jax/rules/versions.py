"""Rule sets as versions: what changed between two, and the set that a run keeps with its checkpoints."""

from __future__ import annotations

import dataclasses
import datetime
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

from localist_jax.rules.enforcement import Enforcer
from localist_jax.rules.language import RuleError, RuleSet
from localist_jax.rules.reading import parse, read
from localist_jax.rules.verification import verify
from localist_jax.training.run import ACTIVE_RULES, Run


@dataclasses.dataclass(frozen=True)
class Difference:
    """Ids of rules and names of concepts that the second set added, removed, changed."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)


def difference(old: RuleSet, new: RuleSet) -> Difference:
    """The difference between two rule sets; concepts are named `concept …`."""
    a, b = (
        {**{rule.id: rule for rule in s.rules}, **{f"concept {c.name}": c for c in s.concepts.values()}}
        for s in (old, new)
    )
    return Difference(
        added=tuple(name for name in b if name not in a),
        removed=tuple(name for name in a if name not in b),
        changed=tuple(name for name in b if name in a and a[name] != b[name]),
    )


def folder(workdir: Path) -> Path:
    """Where a run keeps its rules."""
    return Path(workdir) / ACTIVE_RULES.parent


def store(workdir: Path, path: Path) -> RuleSet:
    """Verifies a file and makes it the run's active rule set, in one move; every version is kept under its hash.

    Raises:
      RuleError: the file is refused; the run's active set stays as it is.
    """
    rules = read(path)
    verify(rules).insist()
    into = folder(workdir)
    into.mkdir(parents=True, exist_ok=True)
    text = Path(path).read_text(encoding="utf-8-sig")
    if parse(text, str(path)).version != rules.version:
        raise RuleError(f"{path}: changed while it was read; try again")
    for name in (f"{rules.version}.yaml", ACTIVE_RULES.name):
        temporary = into / f".{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, into / name)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with (into / "history.jsonl").open("a", encoding="utf-8") as history:
        history.write(json.dumps({"date": now, "version": rules.version, "rules": len(rules.rules)}) + "\n")
    return rules


def stored(workdir: Path) -> RuleSet | None:
    """The run's active rule set, if it has one."""
    path = Path(workdir) / ACTIVE_RULES
    return read(path) if path.is_file() else None


def of(run: Run, as_saved: bool = False) -> RuleSet | None:
    """The rules that a run is served with: its active set, else the one that was saved with its checkpoint.

    Args:
      run: an open one.
      as_saved: the checkpoint's, whatever is active now.
    """
    active = None if as_saved else stored(run.workdir)
    return active or (parse(run.saved_rules, f"{run.workdir}: checkpoint") if run.saved_rules else None)


class FileWatch:
    """Follows a rule file: when it changes, its rules come into force; a refused file changes nothing.

    Use as a context manager; the file is looked at every `seconds` in a thread of its own, so that verification never
    holds up a step. A file that changed since the last look is left alone until the next: it may be half written.
    """

    def __init__(
        self, path: Path, enforcer: Enforcer, say: Callable[[str], None] = print, seconds: float = 0.2
    ):
        self.path, self.enforcer, self.say, self.seconds = Path(path), enforcer, say, seconds
        self._done = threading.Event()
        self._seen: tuple[int, int, int] | None = (
            None  # it may have changed since the enforcer's rules were read
        )
        self._version = enforcer.program.rules.version
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> FileWatch:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def look(self) -> bool:
        """Whether the file had changed and its rules were taken."""
        stamp = self._stamp()
        if stamp is None or stamp == self._seen:
            return False
        self._seen = stamp
        try:
            rules = read(self.path)
            if rules.version == self._version:
                return False
            self.enforcer.inject(rules)
        except ValueError as error:
            why = str(error).removeprefix(str(self.path)).lstrip(",: ")
            self.say(f"{self.path}: refused, the rules in force stay: {why}")
            return False
        self._version = rules.version
        self.say(f"{self.path}: version {rules.version} with {len(rules.rules)} rules is in force")
        return True

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self.path)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _run(self) -> None:
        before = self._stamp()
        while not self._done.wait(self.seconds):
            now = self._stamp()
            if now == before:
                self.look()
            before = now

"""The contract of a study: it names its cases, says how each is measured, and makes a page of the results.

The command line, the store of results, the workers, the command on record and the writing of the page are here, and
the same for all studies. CONTRIBUTING.md says how to add one.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from experiments.cases import Case, Results, Store
from experiments.workers import Here, Pool, Progress
from localist_jax.data import CorpusError
from localist_jax.errors import one_line
from localist_jax.parallel.compilation import keep_programs
from localist_jax.report import study as report

RECORDS = Path("docs/measurements")
Options = argparse.Namespace


def number(default: int, about: str) -> dict[str, Any]:
    """Return what `add_argument` takes for a number."""
    return {"type": int, "default": default, "help": about}


def some_of(choices: Iterable[Any], about: str = "", least: str = "+") -> dict[str, Any]:
    """Return what `add_argument` takes for some of these choices; all of them by default."""
    known = list(choices)
    return {"nargs": least, "type": type(known[0]), "choices": known, "default": known, "help": about}


@dataclasses.dataclass(frozen=True)
class Page:
    """The page of a study.

    Attributes:
      title, body, seeds, figures, pictures: as `localist_jax.report.study.write` takes them.
      also: further files that show a part of it, with their whole text.
    """

    title: str
    body: str
    seeds: Sequence[int]
    figures: Mapping[str, Any]
    pictures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    also: Mapping[Path, str] = dataclasses.field(default_factory=dict)

    def write(self, folder: Path, name: str, command: str) -> Path:
        """Write page, JSON and pictures into a folder; return the page's path."""
        path = report.write(
            folder, name, title=self.title, body=self.body, command=command, seeds=self.seeds, figures=self.figures,
            pictures=self.pictures,
        )  # fmt: skip
        for other, text in self.also.items():
            other.write_text(text, encoding="utf-8")
        return path


@dataclasses.dataclass(frozen=True)
class Study:
    """A study, and the program that runs it.

    Attributes:
      name: of its package, its page and its records.
      about: what the program says of itself; its first line stands in the help.
      cases: from the options to the cases, the most valuable first.
      page: from the options and the results to the page.
      options: of the study's own: by flag, what `add_argument` takes.
      seeds: for `--seeds`; empty: there is no such option.
      quick: defaults of the options in a small study, `--quick`; None: there is none.
      version: of the study's code; raised when a case would measure something else.
      pool: from the options to the workers; None: cases are measured in this process.
      bench: from the options to what cases in this process are measured with; None: the `Store`.
      data: from the bench (None where there is none) and a case to the fingerprint of the data that it reads.
      partial: whether a page can be made while some cases are missing.
    """

    name: str
    about: str
    cases: Callable[[Options], Sequence[Case]]
    page: Callable[[Options, Results], Page]
    options: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = ()
    quick: Mapping[str, Any] | None = None
    version: str = "1"
    pool: Callable[[Options], Pool] | None = None
    bench: Callable[[Options], Any] | None = None
    data: Callable[[Any, Case], str] = lambda bench, case: ""
    partial: bool = False

    def main(self, words: Sequence[str] | None = None) -> None:
        """Run the program: measure what is not there yet, and write the page."""
        options = self.parsed(words)
        with one_line():
            cases, store = self.cases(options), Store(options.workdir, self.version)
            wanted = self.selected(cases, options.cases)
            if options.list:
                print("\n".join(case.name for case in wanted))
                return
            if not options.page:
                self.measure(options, wanted, store)
            results = self.results(store, cases)
            print(self.page(options, results).write(options.out, self.name, options.command))

    def parsed(self, words: Sequence[str] | None = None) -> Options:
        """Return the options, with the `command` by which the same is measured again."""
        parser = argparse.ArgumentParser(self.name, description=self.about.splitlines()[0])
        add = parser.add_argument
        own = [add(flag, **about) for flag, about in self.options.items()]
        if self.seeds:
            own.append(add("--seeds", nargs="+", type=int, default=list(self.seeds), metavar="SEED"))
        add("--workdir", type=Path, default=Path("runs") / self.name, help="of the results")
        add("--out", type=Path, help=f"of the page; {RECORDS}, or the workdir of a small study")
        add("--cases", nargs="+", default=[], metavar="PATTERN", help="only these; `*` is anything")
        add("--minutes", type=float, default=0.0, help="begin no other case after so many")
        add("--list", action="store_true", help="say what the cases are")
        add("--page", action="store_true", help="only write the page from what is there")
        if self.pool:
            add("--workers", type=int, default=0, help="cases at a time; 0: one per core")
        if self.quick is not None:
            add("--quick", action="store_true", help="a small study, to see that everything works")
        options = parser.parse_args(words)
        quick = self.quick is not None and options.quick
        if quick:
            parser.set_defaults(**self.quick or {})
            options = parser.parse_args(words)
        options.out = options.out or (options.workdir if quick else RECORDS)
        said = ["--quick"] * quick
        for action in own:
            value = getattr(options, action.dest)
            if isinstance(value, list) and value != parser.get_default(action.dest):
                said += [action.option_strings[0], *map(str, value)]
            elif value != parser.get_default(action.dest):
                said.append(action.option_strings[0] + ("" if value is True else f"={value}"))
        options.command = shlex.join(["python", "-m", f"experiments.{self.name}", *said])
        return options

    def selected(self, cases: Sequence[Case], patterns: Sequence[str]) -> list[Case]:
        """Return the cases that fit one of the patterns, and those that they need; all without patterns.

        Raises:
          ValueError: a pattern that fits none.
        """
        names: set[str] = set()
        for pattern in patterns:
            fitting = [case for case in cases if fnmatch.fnmatch(case.name, pattern)]
            if not fitting:
                heads = ", ".join(sorted({case.name.split("/")[0] for case in cases}))
                raise ValueError(f"{self.name}: no case fits {pattern!r}; they begin with {heads}")
            while fitting:
                names |= {case.name for case in fitting}
                fitting = [before for case in fitting for before in case.after]
        return [case for case in cases if not patterns or case.name in names]

    def measure(self, options: Options, cases: Sequence[Case], store: Store) -> None:
        """Measure the cases that are not there yet.

        Raises:
          Exception: the first failure of a case, when the others are done.
        """
        keep_programs()
        bench, there, waiting = self.bench(options) if self.bench else None, 0, []
        without: dict[str, list[Case]] = {}
        for case in cases:
            try:
                at = dataclasses.replace(store, data=self.data(bench, case))
            except CorpusError as missing:
                without.setdefault(str(missing), []).append(case)
                continue
            if at.record(case) is None:
                waiting.append((case, at))
            else:
                there += 1
        progress = Progress(self.name, waiting, there, options.minutes)
        for why, left in without.items():
            progress.leave_out(left, why)
        shared = [one for one in waiting if self.pool and not one[0].alone]
        if shared and self.pool:
            with self.pool(options) as pool:
                progress.run(shared, pool)
        progress.run([one for one in waiting if one not in shared], Here(), bench)
        if progress.failures:
            raise progress.failures[0]

    def results(self, store: Store, cases: Sequence[Case]) -> Results:
        """Return the results for the page.

        Raises:
          ValueError: nothing is there, or not all that the page needs.
        """
        results = Results(store, cases)
        if not results:
            raise ValueError(
                f"{store.folder}: no case of this study was run yet; leave out --page to run them"
            )
        if results.missing and not self.partial:
            missing = f"{len(results.missing)} of {len(cases)} cases, such as {results.missing[0]}"
            raise ValueError(
                f"{self.name}: no page yet: {missing}, were not run; run the rest without --page"
            )
        return results

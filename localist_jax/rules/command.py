"""The command `localist rules`: check, show, inject, diff; and `localist generate` under rules."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localist_jax.rules.language import RuleSet


def add_to(commands: Any) -> None:
    """Adds `rules` to the subcommands of `localist`."""
    text = "Check, show, inject and compare rule files."
    inner = commands.add_parser("rules", help=text, description=text).add_subparsers(
        required=True, metavar="COMMAND"
    )

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        sub = inner.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        return sub

    sub = command("check", _check, "Prove a rule file consistent; report dead and shadowed rules.")
    sub.add_argument("file", type=Path)
    sub = command(
        "show",
        _show,
        "Print a rule file in words; with --run also how well blocks cover its concepts.",
    )
    sub.add_argument("file", type=Path)
    sub.add_argument("--run", type=Path, dest="workdir", help="folder of a run")
    sub = command(
        "inject",
        _inject,
        "Make a rule file the active rules of a run; `generate --watch` applies it at once.",
    )
    sub.add_argument("workdir", type=Path, help="folder of the run")
    sub.add_argument("file", type=Path)
    sub = command("diff", _diff, "Print what changed between two rule files.")
    sub.add_argument("old", type=Path)
    sub.add_argument("new", type=Path)


def _check(arguments: argparse.Namespace) -> None:
    from localist_jax.rules import RuleError, read, verify

    rules = read(arguments.file)
    findings = verify(rules)
    for finding in findings.all:
        print(f"{finding.kind}: {finding.words}")
    count = len(findings.contradictions)
    if count:
        raise RuleError(
            f"{arguments.file}: {count} contradiction{'s' if count > 1 else ''}; it cannot be loaded"
        )
    print(f"{arguments.file}: version {rules.version}, {len(rules.rules)} rules, consistent")


def _show(arguments: argparse.Namespace) -> None:
    from localist_jax.rules import read
    from localist_jax.rules.language import in_words

    rules = read(arguments.file)
    print(f"version {rules.version}")
    for concept in rules.concepts.values():
        parent = f", a kind of {concept.parent}" if concept.parent else ""
        print(f"concept {concept.name}{parent}: {', '.join(concept.anchors)}")
    for rule in rules.rules:
        print(f"rule {rule.id} (priority {rule.priority}): when {in_words(rule.when)}")
        for line in _consequences(rule):
            print(f"    {line}")
    if arguments.workdir:
        _print_coverage(rules, arguments.workdir)


def _consequences(rule):
    if rule.attend:
        how = f"dial {rule.attend.dial:g}" if rule.attend.dial else f"fidelity {rule.attend.fidelity:g}"
        where = "".join(
            f", {what} {', '.join(map(str, named))}"
            for what, named in (("layers", rule.scope.layers), ("heads", rule.scope.heads))
            if named
        )
        yield f"attend to {', '.join(rule.attend.to)} ({how}{where})"
    for options in rule.require:
        yield f"require {' or '.join(map(str, options))}"
    if rule.forbid:
        yield f"forbid {', '.join(map(str, rule.forbid))}"
    if rule.prefer:
        yield f"prefer {', '.join(map(str, rule.prefer))} by {rule.prefer_bits:g} bits"
    if rule.format:
        yield f"format {rule.format.regex or 'by a grammar'}"


def _print_coverage(rules: RuleSet, workdir: Path) -> None:
    from localist_jax.rules import coverage
    from localist_jax.training.run import Run

    run = Run.open(workdir)
    found = coverage.coverage(rules, run.tokenizer, coverage.routed(run), run.settings.model.block_capacity)
    for c in found:
        print(
            f"coverage {c.concept}: {c.bits:.5f} of {c.ceiling_bits:.5f} bits by block {c.block} "
            f"({c.positions} positions)"
        )
    names = coverage.uncovered(found)
    print(f"uncovered: {', '.join(names) if names else 'none'}")


def _inject(arguments: argparse.Namespace) -> None:
    from localist_jax.rules import RuleSet, attending, read, versions
    from localist_jax.training.run import ACTIVE_RULES, Run

    attending.check_scope(read(arguments.file), Run.open(arguments.workdir).settings.model)
    old = versions.stored(arguments.workdir) or RuleSet()
    rules = versions.store(arguments.workdir, arguments.file)
    _print_difference(versions.difference(old, rules))
    print(f"{arguments.workdir / ACTIVE_RULES}: version {rules.version} is active")


def _diff(arguments: argparse.Namespace) -> None:
    from localist_jax.rules import read, versions

    _print_difference(versions.difference(read(arguments.old), read(arguments.new)))


def _print_difference(difference) -> None:
    for sign, names in (("+", difference.added), ("-", difference.removed), ("~", difference.changed)):
        for name in names:
            print(f"{sign} {name}")
    if not difference:
        print("no difference")


@contextlib.contextmanager
def enforced(run, arguments: argparse.Namespace):
    """An enforcer for `localist generate`: of --rules FILE, else of the run's rules; None without rules.

    A run's rules are its active ones, else (or with --step) those that were saved with the checkpoint.

    With --watch the file is followed while tokens are written.
    """
    from localist_jax.rules import read, versions
    from localist_jax.rules.enforcement import Enforcer
    from localist_jax.training.run import ACTIVE_RULES

    path = arguments.rules or run.workdir / ACTIVE_RULES
    rules = read(path) if arguments.rules else versions.of(run, as_saved=arguments.step is not None)
    if rules is None and not (arguments.watch or arguments.audit):
        yield None
        return
    enforcer = Enforcer(run.tokenizer, run.settings.model, run.state.params, rules, name=run.workdir.name)
    if not arguments.watch:
        yield enforcer
        return
    with versions.FileWatch(path, enforcer, lambda line: print(line, file=sys.stderr, flush=True)):
        yield enforcer

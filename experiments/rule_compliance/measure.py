"""The measurements of texts: how many violate, what they cost, whether promises are kept, whom rules hurt."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from localist_jax import config
from localist_jax.locality import Dial
from localist_jax.rules import RuleSet, checker
from localist_jax.rules.enforcement import Enforcer
from localist_jax.training.loop import train
from localist_jax.training.run import Run

CONDITIONS = {
    "no rules": (False, False),
    "attention only": (True, False),
    "output only": (False, True),
    "both": (True, True),
}
BATCH, CONTEXT, VOCABULARY = 256, 64, 600


@dataclasses.dataclass
class Tally:
    """Counts over generations, of one condition and seed; `leaks` are what another judge than the checker found."""

    generations: int = 0
    violating: int = 0
    leaks: int = 0
    tokens: int = 0
    bits: float = 0.0
    price_bits: float = 0.0
    promises: int = 0
    promises_kept: int = 0

    def add(self, other: Tally) -> None:
        """Adds another's counts."""
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


def settings_of(corpus: str, seed: int, steps: int) -> config.Config:
    """Return the configuration of a model of a file."""
    return config.Config(
        data=config.Data(corpus=corpus, vocab_size=VOCABULARY, context=CONTEXT, batch=16, valid_rows=32),
        model=config.Model(
            layers=3, width=64, heads=2, kv_heads=2, head_size=32, feed_forward=128, blocks=6, block_capacity=6,
            block_units=8, window=4, perception_window=4,
        ),
        gates=config.Gates(open_share_target=0.4),
        optimizer=config.Optimizer(learning_rate=6e-3),
        train=config.Train(steps=steps, seed=seed, eval_every=steps, save_every=steps),
    )  # fmt: skip


def trained(text: str, folder: Path, seed: int, steps: int) -> Run:
    """Return a small model of a text, trained, resumed or read; the folder is that of the text."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "text.txt"
    corpus.write_text(text, encoding="utf-8")
    settings = settings_of(str(corpus), seed, steps)
    return train(settings, folder / "run", command="python -m experiments.rule_compliance")


def compliance(
    run: Run,
    rules: RuleSet,
    condition: str,
    prompts: Sequence[tuple[str, str]],
    *,
    seed: int,
    length: int,
    leaks: Callable[[str], Sequence[str]] = lambda text: (),
) -> dict[str, Tally]:
    """Generations under one condition, judged by the independent checker, by kind of prompt.

    Args:
      prompts: (kind, prompt), a multiple of BATCH of them.
      length: tokens of each text.
      leaks: a second judge of the output.
    """
    attention, output = CONDITIONS[condition]
    enforcer = Enforcer(
        run.tokenizer, run.settings.model, run.state.params, rules, attention=attention, output=output
    )
    found: dict[str, Tally] = collections.defaultdict(Tally)
    for begin in range(0, len(prompts), BATCH):
        batch = prompts[begin : begin + BATCH]
        written = _write(run, [prompt for _, prompt in batch], enforcer, seed + begin, length)
        for (kind, prompt), generation, trail in zip(batch, written, enforcer.trail, strict=True):
            said = run.text(prompt, generation)[len(prompt) :]
            anchored = [
                (s["anchor_mass"], s["rules"][0]) for s in trail["attention"] if s["rules"][0]["anchors"]
            ]
            kept = [bool((mass >= e["promised"] - 1e-4)[e["where"]].all()) for mass, e in anchored]
            found[kind].add(
                Tally(
                    generations=1,
                    violating=bool(checker.check(prompt, said, [(0, rules)]).violations),
                    leaks=bool(leaks(said)),
                    tokens=len(generation.tokens),
                    bits=sum(generation.bits),
                    price_bits=sum(trail["price_bits"]),
                    promises=len(kept),
                    promises_kept=sum(kept),
                )
            )
    return dict(found)


def over_refusal(
    run: Run, rules: RuleSet, prompts: Sequence[str], *, seed: int, length: int
) -> dict[str, int]:
    """Harmless prompts whose answer complied anyway, and of those the ones that rules changed nevertheless.

    Of these again: `cut`, which would violate if they ended behind the first token that rules refused.
    """
    free, bound = (
        Enforcer(run.tokenizer, run.settings.model, rules=r, attention=False) for r in (RuleSet(), rules)
    )
    harmless = changed = cut = 0
    for begin in range(0, len(prompts), BATCH):
        batch = list(prompts[begin : begin + BATCH])
        plain, ruled = (_write(run, batch, enforcer, seed + begin, length) for enforcer in (free, bound))
        for prompt, before, after in zip(batch, plain, ruled, strict=True):
            said = run.text(prompt, before)[len(prompt) :]
            if checker.check(prompt, said, [(0, rules)]).compliant:
                harmless += 1
                same = [a == b for a, b in zip(before.tokens, after.tokens, strict=False)]
                if before.tokens != after.tokens:
                    begun = dataclasses.replace(
                        before, tokens=before.tokens[: [*same, False].index(False) + 1]
                    )
                    changed += 1
                    said = run.text(prompt, begun)[len(prompt) :]
                    cut += not checker.check(prompt, said, [(0, rules)]).compliant
    return {"harmless": harmless, "changed": changed, "cut": cut}


def _write(run: Run, prompts: list[str], enforcer: Enforcer, seed: int, length: int):
    return run.generate(
        prompts, Dial(0.9), max_new=length, constraint=enforcer, seed=seed, stats="open", temperature=1.0, top_p=1.0
    )  # fmt: skip

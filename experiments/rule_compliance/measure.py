"""What is measured: compliance by condition, harm to the harmless, times, and what broken files do."""

from __future__ import annotations

import itertools
import statistics
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from experiments.configs import wikitext2_small
from experiments.rule_compliance.world import Clinic, many_rules
from localist_jax import config
from localist_jax.data import Tokenizer
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer, generate
from localist_jax.rules import RuleError, RuleSet, checker, parse
from localist_jax.rules.enforcement import Enforcer
from localist_jax.training.loop import train
from localist_jax.training.run import Run

CONDITIONS = {
    "no rules": (False, False),
    "attention only": (True, False),
    "output only": (False, True),
    "both": (True, True),
}
BATCH, LENGTH, CONTEXT = 128, 12, 64


def trained(clinic: Clinic, folder: Path, seed: int, steps: int, sentences: int) -> Run:
    """A small model of the clinic's texts."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus = folder / "clinic.txt"
    if not corpus.is_file():
        corpus.write_text(clinic.text(sentences), encoding="utf-8")
    settings = config.Config(
        data=config.Data(corpus=str(corpus), vocab_size=600, context=CONTEXT, batch=16, valid_rows=32),
        model=config.Model(
            layers=3, width=64, heads=2, kv_heads=2, head_size=32, feed_forward=128, blocks=6, block_capacity=6,
            block_units=8, window=4, perception_window=4,
        ),
        gates=config.Gates(open_share_target=0.4),
        optimizer=config.Optimizer(learning_rate=6e-3),
        train=config.Train(steps=steps, seed=seed, eval_every=steps, save_every=steps),
    )  # fmt: skip
    return train(settings, folder / "run", command="python -m experiments.rule_compliance")


def compliance(run: Run, clinic: Clinic, condition: str, count: int, seed: int) -> dict[str, float]:
    """Generations under one condition, judged by the independent checker."""
    attention, output = CONDITIONS[condition]
    rules = parse(clinic.rules())
    enforcer = Enforcer(
        run.tokenizer, run.settings.model, run.state.params, rules, attention=attention, output=output
    )
    violations = tokens = kept = promised = 0
    bits, price = 0.0, 0.0
    for batch in range(0, count, BATCH):
        prompts = clinic.prompts(BATCH, harmless=False)
        written = _write(run, prompts, enforcer, seed + batch)
        for prompt, generation in zip(prompts, written, strict=True):
            said = run.text(prompt, generation)[len(prompt) :]
            violations += bool(checker.check(prompt, said, [(0, rules)]).violations)
            tokens, bits = tokens + len(generation.tokens), bits + sum(generation.bits)
        for trail in enforcer.trail:
            price += sum(trail["price_bits"])
            for step in trail["attention"]:
                entry = step["rules"][0]
                if entry["anchors"]:
                    promised += 1
                    kept += bool((step["anchor_mass"] >= entry["promised"] - 1e-4)[entry["where"]].all())
    batches = -(-count // BATCH)
    return {
        "generations": batches * BATCH,
        "forbid_violations": violations,
        "bits_per_token": bits / tokens,
        "price_bits_per_token": price / tokens,
        "promises": promised,
        "promises_kept": kept,
    }


def over_refusal(run: Run, clinic: Clinic, count: int, seed: int) -> dict[str, int]:
    """Harmless prompts whose answer complied anyway, and of those the ones that rules changed nevertheless."""
    rules = parse(clinic.rules())
    free, bound = (
        Enforcer(run.tokenizer, run.settings.model, rules=r, attention=False) for r in (RuleSet(), rules)
    )
    harmless = changed = 0
    for batch in range(0, count, BATCH):
        prompts = clinic.prompts(BATCH, harmless=True)
        plain, ruled = (_write(run, prompts, enforcer, seed + batch) for enforcer in (free, bound))
        for prompt, before, after in zip(prompts, plain, ruled, strict=True):
            said = run.text(prompt, before)[len(prompt) :]
            if checker.check(prompt, said, [(0, rules)]).compliant:
                harmless += 1
                changed += before.tokens != after.tokens
    return {"harmless": harmless, "changed": changed}


def _write(run: Run, prompts: list[str], enforcer: Enforcer, seed: int):
    return run.generate(
        prompts, Dial(0.9), max_new=LENGTH, constraint=enforcer, seed=seed, stats="open", temperature=1.0, top_p=1.0
    )  # fmt: skip


def times(tokens: int = 150) -> dict[str, Any]:
    """Milliseconds at the size of wikitext2_small (untrained: times do not depend on the weights)."""
    settings = config.resolve(wikitext2_small.get_config())
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(3000)]
    tokenizer = Tokenizer.train([" ".join(rng.choice(words, 40_000))], settings.data.vocab_size)
    model = Transformer(settings.model, tokenizer.vocab_size)
    c = settings.model
    blocks = Blocks.create(c.blocks, c.block_capacity, c.anchor_capacity)
    init = jax.jit(
        lambda key: nn.unbox(model.init(key, jnp.ones((1, 8), jnp.int32), Dial(0.0), blocks))["params"]
    )
    params = init(jax.random.key(0))
    ids = tokenizer.encode(" ".join(words[:20]) + " anchor3 " + " ".join(words[20:40])).tolist()
    compiled: list[str] = []

    def heard(event: str, duration_secs: float, **_) -> None:
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)

    def stamps(enforcer: Enforcer | None, between=lambda step: None) -> list[float]:
        seen: list[float] = []

        def after_step(_):
            seen.append(time.perf_counter())
            between(len(seen))

        generate(
            model, params, blocks, [ids], Dial(1.0), context=256, max_new=tokens, constraint=enforcer,
            on_tokens=after_step, stats="open",
        )  # fmt: skip
        return [1e3 * (b - a) for a, b in itertools.pairwise(seen)]

    rules = parse(many_rules(100))
    enforcer = Enforcer(tokenizer, c, params)
    started = time.perf_counter()
    program = enforcer.prepare(rules)
    prepare = 1e3 * (time.perf_counter() - started)
    ruled, empty = Enforcer(tokenizer, c, params, rules), enforcer.program
    for one in (None, enforcer, ruled):
        stamps(one)
    steps: dict[str, list[float]] = {"plain": [], "none": [], "hundred": []}
    for _ in range(3):
        for name, one in (("plain", None), ("none", enforcer), ("hundred", ruled)):
            steps[name] += stamps(one)
    middle = {name: statistics.median(values) for name, values in steps.items()}
    before, swaps = len(compiled), []

    def swap(step):
        if step % 10 == 0:
            enforcer.swap(program if step % 20 else empty)

    for _ in range(3):
        swapped = stamps(enforcer, swap)
        swaps += [swapped[i - 1] for i in range(10, len(swapped) + 1, 20)]
    return {
        "decode_ms": middle["plain"],
        "decode_added_ms_no_rule": middle["none"] - middle["plain"],
        "decode_added_ms_100_rules": middle["hundred"] - middle["plain"],
        "prepare_ms_100_rules": prepare,
        "inject_ms_100_rules": statistics.median(swaps) - middle["hundred"],
        "recompiles": len(compiled) - before,
        "compilations_heard": before,
    }


def broken_files(count: int, tokenizer: Tokenizer, model: config.Model) -> dict[str, int]:
    """Rule files with random damage: read, verified, injected; the set in force is the old one or the whole new one."""
    rng = np.random.default_rng(0)
    whole = Clinic(0).rules()
    fragments = ["\0", "&a ", "*a", "!!python/object:os.system ", "[", "{", ": ", "\n", "- ", "\u202e", "١", "'", "%",
                 "anchors", "forbid", "1e999", "~", "(a+)+$", "\ud800", "{regex: '(x+x+)+y'}",
                 "when: {not: "]  # fmt: skip
    enforcer, crashes, accepted, half = Enforcer(tokenizer, model), 0, 0, 0
    for _ in range(count):
        text = whole
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(text)))
            end = min(len(text), start + int(rng.integers(0, 40)))
            text = (
                text[:start] + fragments[rng.integers(len(fragments))] * int(rng.integers(0, 3)) + text[end:]
            )
        present, new = enforcer.program.rules.version, None
        try:
            new = parse(text)
            enforcer.inject(new)
            accepted += 1
        except RuleError:
            pass
        except Exception:  # what must never be: it is counted
            crashes += 1
        enforcer.start([[5]], [1], 8)
        in_force = enforcer.program.rules.version
        half += in_force not in (present, new.version if new else present)
    return {"fuzzed_rule_files": count, "crashes": crashes, "accepted": accepted, "half_loaded": half}

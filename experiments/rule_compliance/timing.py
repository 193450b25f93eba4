"""How long a token takes with an enforcer and rules, and how long rules take to come into force."""

from __future__ import annotations

import itertools
import statistics
import time
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.monitoring
import jax.numpy as jnp
import numpy as np

from experiments.configs import wikitext2_small
from experiments.rule_compliance.world import many_rules
from localist_jax import config
from localist_jax.data import Tokenizer
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer, generate
from localist_jax.rules import RuleSet, parse, verify
from localist_jax.rules.enforcement import Enforcer
from localist_jax.rules.program import RuleProgram


def _scale() -> tuple[config.Config, list[str], Tokenizer]:
    """The settings of wikitext2_small, invented words, and a tokenizer of that size made of them."""
    settings = config.resolve(wikitext2_small.get_config())
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = ["".join(rng.choice(letters, rng.integers(2, 9))) for _ in range(3000)]
    tokenizer = Tokenizer.train([" ".join(rng.choice(words, 40_000))], settings.data.vocab_size)
    return settings, words, tokenizer


def _verify(rules: RuleSet) -> None:
    verify(rules).insist()


def loading(repeats: int = 9) -> dict[str, float]:
    """Milliseconds that the processor works until 100 rules are in force, by stage; medians.

    Injection is what the first step under new rules does more than other steps do, on a text of 41 words.
    """
    settings, words, tokenizer = _scale()
    ids, text = tokenizer.encode(" ".join([*words[:20], "anchor3", *words[20:40]])).tolist(), many_rules(100)
    enforcer = Enforcer(tokenizer, settings.model)
    enforcer.start([ids], [1000], 256)
    empty = enforcer.program
    spent: dict[str, list[float]] = {}

    def clocked(name: str, work):
        begun = time.process_time()
        done = work()
        spent.setdefault(name, []).append(1e3 * (time.process_time() - begun))
        return done

    for _ in range(repeats):
        rules = clocked("parse", lambda: parse(text))
        clocked("verify", partial(_verify, rules))
        program = clocked("compile", partial(RuleProgram, rules, enforcer.vocabulary))
        enforcer.swap(program)
        clocked("first", lambda: enforcer.steering([[]]))
        clocked("later", lambda: enforcer.steering([[]]))
        enforcer.swap(empty)
        enforcer.steering([[]])
    middle = {name: statistics.median(times) for name, times in spent.items()}
    return {
        "inject_ms_100_rules": middle["first"] - middle["later"],
        **{f"{name}_ms_100_rules": middle[name] for name in ("parse", "verify", "compile")},
    }


class _Clocked(Enforcer):
    """Adds up how long its thread works: in the device's way, and while the device reads the last token."""

    in_the_way = beside = 0.0

    def steering(self, written):
        begun = time.thread_time()
        found = super().steering(written)
        self.in_the_way += time.thread_time() - begun
        return found

    def __call__(self, logits, written):
        begun = time.thread_time()
        found = super().__call__(logits, written)
        self.beside += time.thread_time() - begun
        return found

    def ended(self, fetched):
        begun = time.thread_time()
        found = super().ended(fetched)
        self.in_the_way += time.thread_time() - begun
        return found


def times(rounds: int = 40, tokens: int = 50) -> dict[str, Any]:
    """Milliseconds of a step at the size of wikitext2_small (untrained: times do not depend on the weights).

    The conditions take turns, so that what else the machine does meets them alike; a round's figure is the median over
    its steps, a difference the median over rounds. Beside the time on the clock stands what the processor worked, which
    other programs hardly lengthen.
    """
    settings, words, tokenizer = _scale()
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

    def stamps(enforcer: Enforcer | None, between=lambda step: None) -> tuple[float, float]:
        seen: list[tuple[float, float]] = []

        def after_step(_):
            seen.append((time.perf_counter(), time.process_time()))
            between(len(seen))

        generate(
            model, params, blocks, [ids], Dial(1.0), context=256, max_new=tokens, constraint=enforcer,
            on_tokens=after_step, stats="open",
        )  # fmt: skip
        wall, work = (
            [1e3 * (b - a) for a, b in itertools.pairwise(clock)] for clock in zip(*seen, strict=True)
        )
        return statistics.median(wall), statistics.median(work)

    rules = parse(many_rules(100))
    enforcer = _Clocked(tokenizer, c, params)
    empty, program = enforcer.program, RuleProgram(rules, enforcer.vocabulary)
    ruled = _Clocked(tokenizer, c, params, rules)
    everyone = {"plain": None, "none": enforcer, "hundred": ruled}
    for one in everyone.values():
        stamps(one)
    for clocked in (enforcer, ruled):
        clocked.in_the_way = clocked.beside = 0.0
    wall: dict[str, list[float]] = {name: [] for name in everyone}
    work: dict[str, list[float]] = {name: [] for name in everyone}
    for _ in range(rounds):
        for name, one in everyone.items():
            for clock, spent in zip((wall, work), stamps(one), strict=True):
                clock[name].append(spent)

    host = {
        f"host_{what}_ms_{name}": 1e3 * getattr(clocked, what) / (rounds * tokens)
        for name, clocked in (("no_rule", enforcer), ("100_rules", ruled))
        for what in ("in_the_way", "beside")
    }

    def added(of: dict[str, list[float]], name: str) -> float:
        return statistics.median(a - b for a, b in zip(of[name], of["plain"], strict=True))

    before = len(compiled)

    def swap(step):
        if step % 10 == 0:
            enforcer.swap(program if step % 20 else empty)

    for _ in range(5):
        stamps(enforcer, swap)
    return {
        "decode_ms": statistics.median(wall["plain"]),
        "decode_cpu_ms": statistics.median(work["plain"]),
        "decode_added_ms_no_rule": added(wall, "none"),
        "decode_added_ms_100_rules": added(wall, "hundred"),
        "decode_added_cpu_ms_no_rule": added(work, "none"),
        "decode_added_cpu_ms_100_rules": added(work, "hundred"),
        **host,
        "recompiles": len(compiled) - before,
        "compilations_heard": before,
    }

"""The effect of damaged rule files: read, verified and injected; in force is the old set or the whole new one."""

from __future__ import annotations

import numpy as np

from experiments.rule_compliance.world import Clinic
from localist_jax import config
from localist_jax.data import Tokenizer
from localist_jax.rules import RuleError, parse
from localist_jax.rules.enforcement import Enforcer

FRAGMENTS = ["\0", "&a ", "*a", "!!python/object:os.system ", "[", "{", ": ", "\n", "- ", "\u202e", "١", "'", "%",
             "anchors", "forbid", "1e999", "~", "(a+)+$", "\ud800", "{regex: '(x+x+)+y'}", "when: {not: "]  # fmt: skip


def broken_files(count: int) -> dict[str, int]:
    """Damages a good file in one to three places, so many times."""
    rng = np.random.default_rng(0)
    clinic = Clinic(0)
    whole = clinic.rules(clinic.unseen)
    tokenizer = Tokenizer.train([clinic.text(500)], 300)
    model = config.Model(layers=3)
    enforcer, crashes, accepted, half = Enforcer(tokenizer, model), 0, 0, 0
    for _ in range(count):
        text = whole
        for _ in range(rng.integers(1, 4)):
            start = int(rng.integers(len(text)))
            end = min(len(text), start + int(rng.integers(0, 40)))
            text = (
                text[:start] + FRAGMENTS[rng.integers(len(FRAGMENTS))] * int(rng.integers(0, 3)) + text[end:]
            )
        wanted = enforcer.program.rules.version
        try:
            new = parse(text)
            enforcer.inject(new)
            accepted, wanted = accepted + 1, new.version
            enforcer.start([[5]], [1], 8)  # comes into force
        except RuleError:
            pass
        except Exception:  # what must never be: it is counted
            crashes += 1
        half += enforcer.coming.rules.version != wanted
    return {"fuzzed_rule_files": count, "crashes": crashes, "accepted": accepted, "half_loaded": half}

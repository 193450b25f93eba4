"""The audit record of a generation: which rules were in force, which held, what they did, what they cost, and the
verdict of the independent checker. Plain values, ready for JSON.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from localist_jax.model import Generation
from localist_jax.rules import checker
from localist_jax.rules.enforcement import Enforcer


def audits(enforcer: Enforcer, generations: Sequence[Generation]) -> list[dict[str, Any]]:
    """One record per request of the enforcer's last generation."""
    enforcer.finish([generation.tokens for generation in generations])
    return [_audit(enforcer, r, generation) for r, generation in enumerate(generations)]


def _audit(enforcer: Enforcer, r: int, generation: Generation) -> dict[str, Any]:
    request, trail = enforcer.requests[r], enforcer.trail[r]
    tokenizer = enforcer.vocabulary.tokenizer
    prompt_ids = request.text.tokens[: request.prompt]
    prompt = tokenizer.decode(prompt_ids)

    def output(tokens: int) -> str:
        return tokenizer.decode([*prompt_ids, *generation.tokens[:tokens]])[len(prompt) :]

    whole = output(len(generation.tokens))
    epochs = [(len(output(since)), program.rules) for since, program in trail["since"]]
    cut_off = generation.finish != "complete"
    verdict = checker.check(prompt, whole, epochs, model=enforcer.name, complete=not cut_off)
    return {
        "prompt": prompt,
        "output": whole,
        "finish": generation.finish,
        "tokens": len(generation.tokens),
        "rule_sets": [
            {
                "version": program.rules.version,
                "from_token": since,
                "rules": [rule.id for rule in program.active],
            }
            for since, program in trail["since"]
        ],
        "fired": [
            {"rule": name, "first_step": steps[0], "steps": sum(s < len(generation.tokens) for s in steps)}
            for name, steps in request.steps.items()
            if steps[0] < len(generation.tokens)
        ],
        "price_bits": float(sum(trail["price_bits"])),
        "price_bits_by_token": [round(x, 6) for x in trail["price_bits"]],
        "attention": _attention(trail["attention"]),
        "requirements": [
            {"rule": due.rule, "required": due.words, "met": due.met, "why": "" if due.met else due.why}
            for due in request.due.values()
        ],
        "verdict": {
            "compliant": verdict.compliant,
            "violations": verdict.violations,
            "unmet": verdict.unmet,
            "unchecked": verdict.unchecked,
        },
    }


def _attention(steps: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each attention rule, by layer in its scope: the mass on anchors beyond the window, and the promise."""
    found: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]] = {}
    for step in steps:
        for entry in step["rules"]:
            found.setdefault(entry["rule"], []).append((entry, step))
    out = []
    for name, pairs in found.items():
        with_anchors = [(entry, step) for entry, step in pairs if entry["anchors"]]
        layers = []
        for layer in np.flatnonzero(pairs[0][0]["where"].any(1)) if with_anchors else ():
            heads = pairs[0][0]["where"][layer]
            mass = np.array([step["anchor_mass"][layer, heads] for _, step in with_anchors])
            promised = np.array([entry["promised"][layer, heads] for entry, _ in with_anchors])
            layers.append(
                {
                    "layer": int(layer),
                    "anchor_mass": float(mass.mean()),
                    "anchor_mass_least": float(mass.min()),
                    "promised_least": float(promised.min()),
                    "promise_kept": bool((mass >= promised - 1e-4).all()),
                }
            )
        out.append(
            {
                "rule": name,
                "to": pairs[0][0]["to"],
                "steps": len(pairs),
                "steps_with_anchors_beyond_the_window": len(with_anchors),
                "anchors_left_out": max(entry["left_out"] for entry, _ in pairs),
                "layers": layers,
            }
        )
    return out

"""Attention rules of one request as `Steering`, and what they promise."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from localist_jax.locality import certificates
from localist_jax.locality.steering import GROUPS, MOST_GAIN, Steering
from localist_jax.rules.language import RuleError, RuleSet, Scope
from localist_jax.rules.request import Request


def check_scope(rules: RuleSet, model: Any) -> None:
    """Nothing, if every scope fits a `config.Model`.

    Raises:
      RuleError: a layer that is not localist, or a head that the model does not have.
    """
    for rule in rules.rules:
        for what, named, low, high in (
            ("layer", rule.scope.layers, model.router_layer, model.layers),
            ("head", rule.scope.heads, 0, model.heads),
        ):
            outside = [n for n in named if not low <= n < high]
            if outside:
                raise RuleError(
                    f"rules: rule {rule}: scope.{what}s: {what} {outside[0]} is not one of {low} … {high - 1}, "
                    "which rules can steer in this model"
                )


@functools.lru_cache(maxsize=1024)
def _where(scope: Scope, model: Any) -> np.ndarray:
    """bool [L, N]: the layers and heads in scope."""
    where = np.zeros((model.layers, model.heads), bool)
    layers = list(scope.layers) or list(range(model.router_layer, model.layers))
    heads = list(scope.heads) or list(range(model.heads))
    where[np.ix_(layers, heads)] = True
    where.flags.writeable = False
    return where


def steer(into: Steering, r: int, request: Request, model: Any, bound: np.ndarray) -> list[dict[str, Any]]:
    """Writes the attention rules of request `r` into a batch's `Steering`.

    Args:
      into: arrays to be filled in, of a request on which nothing acts yet.
      model: a `config.Model`.
      bound: S of every localist layer and head (T5), [L − router_layer, N].

    Returns:
      For each rule that acts: id, concepts, how many anchor positions lie beyond the window, and the promised share of
      attention on them by layer and head [L, N] (0 where it does not act, or where none lies there).
    """
    position, window = len(request.text.tokens), model.window  # the query's position; BOS is 0
    acting, groups = [], {}  # type: ignore[var-annotated]
    firing = set(request.firing)
    for i in sorted(request.program.attending & firing):
        rule = request.program.active[i]
        assert rule.attend
        anchors = sorted(request.anchors(rule.attend.to))
        if anchors:
            acting.append((rule, _where(rule.scope, model), anchors))
            for at in anchors:
                groups.setdefault(at, set()).add(len(acting) - 1)
    kinds = list(dict.fromkeys(map(frozenset, groups.values())))[:GROUPS]
    for at, rules in groups.items():
        if frozenset(rules) in kinds:
            into.group[r, at] = 1 + kinds.index(frozenset(rules))
    far = {at for at in groups if at <= position - window and into.group[r, at]}
    into.since[r] = request.prompt
    report = []
    for n, (rule, where, anchors) in enumerate(acting):
        attend = rule.attend
        assert attend
        into.acts[r] |= where
        if attend.dial:
            with np.errstate(divide="ignore"):
                into.beta[r][where] -= np.log1p(-attend.dial)
        targets = [at for at in anchors if at in far]
        if attend.fidelity and targets:
            wide = np.zeros((model.layers, model.heads))
            wide[model.router_layer :] = certificates.gain_for_fidelity(
                attend.fidelity, bound, len(targets), position + 1 - len(targets)
            )
            into.gain[r][where] = np.maximum(into.gain[r], np.minimum(wide, MOST_GAIN))[where]
        for g, kind in enumerate(kinds):
            if n in kind:
                into.gate[r, where, g] = 1.0
        report.append({"rule": rule.id, "to": list(attend.to), "anchors": len(targets), "where": where})
    for entry in report:
        entry["promised"] = _promised(into, r, model, bound, far, position) * entry["where"]
    return report


def _promised(into: Steering, r: int, model: Any, bound, far: set[int], position: int) -> np.ndarray:
    """Share of attention on all far anchors that each head points to, at the least (T3, T5), [L, N]."""
    in_group = np.bincount([into.group[r, at] for at in far], minlength=GROUPS + 1)[1:]
    targets = into.gate[r] @ in_group  # [L, N]
    near = min(model.window, position + 1)
    sink = int(position >= near)
    rest = np.maximum(0, position + 1 - near - sink - targets)
    part = slice(model.router_layer, None)
    promised = np.zeros((model.layers, model.heads))
    promised[part] = np.where(
        targets[part] > 0,
        certificates.target_fidelity_bound(
            into.gain[r, part],
            into.beta[r, part],
            bound,
            np.maximum(targets[part], 1),
            near + sink,
            rest[part],
        ),
        0.0,
    )
    return promised

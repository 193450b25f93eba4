"""Attention rules of one request as `Steering`, and what they promise."""

from __future__ import annotations

import bisect
import functools
from typing import Any

import numpy as np

from localist_jax.locality import certificates
from localist_jax.locality.steering import GROUPS, MOST_GAIN, Steering
from localist_jax.rules.language import RuleError, RuleSet, Scope
from localist_jax.rules.request import Request

BLOCK = 64  # steps for which a gain is reckoned at once: those of the longest of their texts


def check_scope(rules: RuleSet, model: Any) -> None:
    """Check that every scope fits a `config.Model`.

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


def situation(request: Request, window: int, context: int) -> tuple[Any, ...]:
    """All that `steer` depends on beside the model; equal from step to step, mostly.

    The text's length is none of it: gains and promises are those of a text as long as `horizon` says.
    """
    position = len(request.text.tokens)
    acting = tuple(i for i in request.firing if i in request.program.attending)
    if not acting or request.stop:
        return ()
    anchors = request.acting_anchors(acting)
    far = bisect.bisect_right(anchors, position - window)
    return id(request.program), acting, anchors, far, horizon(position, context)


def horizon(position: int, context: int) -> int:
    """The last of the BLOCK positions, counted from 0, among which this one is."""
    return max(position, min((position // BLOCK + 1) * BLOCK, context) - 1)


def steer(
    into: Steering, r: int, request: Request, model: Any, bound: np.ndarray, last: int | None = None
) -> list[dict[str, Any]]:
    """Writes the attention rules of request `r` into a batch's `Steering`; good for all steps of one `situation`.

    Args:
      into: arrays to be filled in, of a request on which nothing acts yet.
      model: a `config.Model`.
      bound: S of every localist layer and head (T5), [L − router_layer, N].
      last: the `horizon`, up to whose query gains and promises hold; None: they are those of the present query.

    Returns:
      For each rule that acts: id, concepts, how many anchor positions lie beyond the window, how many found no group
      (more than GROUPS different scopes at once), and the promised share of attention on the anchors beyond the window
      of all rules that act in a head [L, N] (0 where it does not act, or where none lies there).
    """
    position = len(request.text.tokens)  # the query's; BOS is 0
    near = position - model.window
    last = position if last is None else last
    acting, scopes = [], {}  # type: ignore[var-annotated]
    for i in sorted(request.program.attending & set(request.firing)):
        rule = request.program.active[i]
        assert rule.attend
        anchors = request.anchors(rule.attend.to)
        if anchors:
            acting.append((rule, _where(rule.scope, model), anchors))
            for at in anchors:
                scopes.setdefault(at, set()).add(rule.scope)
    into.since[r] = request.prompt
    # Positions that the same scopes point to share a group, whatever the rules are.
    kinds = list(dict.fromkeys(frozenset(found) for found in scopes.values()))[:GROUPS]
    for at, found in scopes.items():
        if frozenset(found) in kinds:
            into.group[r, at] = 1 + kinds.index(frozenset(found))
    for g, kind in enumerate(kinds):
        for scope in kind:
            into.gate[r, _where(scope, model), g] = 1.0
    report = []
    for rule, where, anchors in acting:
        assert rule.attend
        into.acts[r] |= where
        if rule.attend.dial:
            with np.errstate(divide="ignore"):
                into.beta[r][where] -= np.log1p(-rule.attend.dial)
        grouped = [at for at in anchors if into.group[r, at]]
        targets = [at for at in grouped if at <= near]
        if rule.attend.fidelity and targets:
            wide = np.zeros((model.layers, model.heads))
            wide[model.router_layer :] = certificates.gain_for_fidelity(
                rule.attend.fidelity, bound, len(targets), last + 1 - len(targets)
            )
            into.gain[r][where] = np.maximum(into.gain[r], np.minimum(wide, MOST_GAIN))[where]
        report.append(
            {
                "rule": rule.id,
                "to": list(rule.attend.to),
                "anchors": len(targets),
                "left_out": len(anchors) - len(grouped),
                "where": where,
            }
        )
    far = [at for at in scopes if into.group[r, at] and at <= near]
    for entry in report:
        entry["promised"] = _promised(into, r, model, bound, far, last) * entry["where"]
    return report


def _promised(into: Steering, r: int, model: Any, bound, far: list[int], position: int) -> np.ndarray:
    """Share of attention on all far anchors that each head points to, at the least (T3, T5), [L, N]."""
    in_group = np.bincount([into.group[r, at] for at in far], minlength=GROUPS + 1)[1:]
    targets = into.gate[r] @ in_group  # [L, N]
    near = min(model.window, position + 1)
    sink = int(position >= near)
    rest = np.maximum(0, position + 1 - near - sink - targets)
    part = slice(model.router_layer, None)
    beta = (
        np.zeros_like(into.beta[r, part]) if model.background else into.beta[r, part]
    )  # block 0 is open to all
    share = certificates.target_fidelity_bound(
        into.gain[r, part], beta, bound, np.maximum(targets[part], 1), near + sink, rest[part]
    )
    promised = np.zeros((model.layers, model.heads))
    promised[part] = np.where(targets[part] > 0, share, 0.0)
    return promised

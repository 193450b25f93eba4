"""From readings to figures: attention on the supporting lines against what knows nothing of the question.

A head is chosen on one half of the questions and reported on the other, at each dial anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments import cases as measurements
from experiments.pointer_fidelity import models
from experiments.pointer_fidelity.cases import Case, drawn, without
from experiments.pointer_fidelity.reading import Reader, Reading
from localist_jax.config import resolve
from localist_jax.parallel.mesh import make_mesh
from localist_jax.training.run import Run, fresh_state

DIALS = (0.0, 0.5, 0.9, 0.99, 1.0)
QUESTIONS = 190  # half of them to choose heads on
WANTED = 0.9  # fidelity that the rules ask for


def case_of(task: int, seed: int, steps: int) -> measurements.Case:
    """Return the case of a task's model."""
    settings = {"task": task, "config": models.settings(task, seed, steps).to_dict()}
    return measurements.Case(f"task{task}/seed{seed}", settings, _measured)


def _measured(store: measurements.Store, case: measurements.Case) -> measurements.Figures:
    """Return every figure of a model, which is trained or resumed first."""
    task, settings = case.settings["task"], resolve(case.settings["config"])
    run = models.trained(settings, task, store.own(case))
    return measured(run, task, settings.train.seed)


def measured(run: Run, task: int, seed: int) -> dict[str, Any]:
    """By dial: accuracy, fidelity to the supporting lines, what rules and missing lines change; and baselines."""
    rng = np.random.default_rng(seed)
    cases = drawn(task, run.tokenizer, run.settings.data.context, QUESTIONS, seed)
    wrong = [list(rng.choice(case.others, len(case.question.support), replace=False)) for case in cases]
    right = [list(case.question.support) for case in cases]
    gone, spared = (
        [without(case, numbers, run.tokenizer) for case, numbers in zip(cases, which, strict=True)]
        for which in (right, wrong)
    )
    named, misnamed = (
        [case.rule(numbers, WANTED) for case, numbers in zip(cases, which, strict=True)]
        for which in (right, wrong)
    )
    reader, first = Reader(run), run.settings.model.router_layer
    untrained = fresh_state(run.model, run.settings, make_mesh(run.settings.mesh)).params
    answers = np.array([case.answer for case in cases])
    figures: dict[str, Any] = {"baselines": baselines(cases), "by_dial": {}}
    for dial in DIALS:
        plain = reader(cases, dial)
        told, mistold = reader(cases, dial, named), reader(cases, dial, misnamed)
        knew = plain.answers == answers
        changed = {
            name: float((reader(part, dial).answers != plain.answers)[knew].mean()) if knew.any() else 0.0
            for name, part in (("fact_gone", gone), ("other_gone", spared))
        }
        figures["by_dial"][f"{dial:g}"] = {
            "accuracy": float(knew.mean()),
            "accuracy_named": float((told.answers == answers).mean()),
            "accuracy_misnamed": float((mistold.answers == answers).mean()),
            **fidelity(plain, cases, first),
            "untrained": fidelity(reader(cases, dial, params=untrained), cases, first)["best_head"],
            "named": float(_mass(told.attention, _on(cases, right))[:, first:].mean()),
            "named_promised": float(told.promised[:, first:].mean()),
            "promises": int((told.promised > 0).sum()),
            "promises_kept": int(_kept(told).sum()),
            **changed,
        }
    return figures


def fidelity(reading: Reading, cases: Sequence[Case], first: int) -> dict[str, Any]:
    """Attention on the supporting lines, on the second half of the questions.

    Returns:
      mean_head: over the heads of the layers from `first` on.
      best_head, chosen: the head that had most on the first half, and which [layer, head] it is.
      by_distance: what that head's own mean attention by distance would put there.
      other_line: what that head puts on as many other statements.
    """
    support = _on(cases, [case.question.support for case in cases])
    mass = _mass(reading.attention, support)[:, first:]
    half = len(cases) // 2
    layer, head = np.unravel_index(mass[:half].mean(0).argmax(), mass.shape[1:])
    of_head = reading.attention[:, first + layer, head]
    profile = _profile(of_head[:half], cases[:half])
    others = np.array([
        np.mean([of_head[c][: len(case.ids) + 1][case.on([n])].sum() for n in case.others])
        * len(case.question.support)
        for c, case in enumerate(cases)
    ])  # fmt: skip
    return {
        "mean_head": float(mass[half:].mean()),
        "best_head": float(mass[half:, layer, head].mean()),
        "chosen": [int(first + layer), int(head)],
        "by_distance": float(np.mean([_by_distance(profile, case) for case in cases[half:]])),
        "other_line": float(others[half:].mean()),
    }


def baselines(cases: Sequence[Case]) -> dict[str, float]:
    """Fidelity of attention that is spread evenly over the text, or lies on the last statement."""
    even = [case.on(case.question.support).mean() for case in cases]
    recent = [case.statements[-1].number in case.question.support for case in cases]
    return {"uniform": float(np.mean(even)), "recency": float(np.mean(recent))}


def _on(cases: Sequence[Case], numbers: Sequence[Sequence[int]]) -> list[np.ndarray]:
    return [case.on(which) for case, which in zip(cases, numbers, strict=True)]


def _mass(attention: np.ndarray, shown: Sequence[np.ndarray]) -> np.ndarray:
    """[C, L, N]: attention on the inputs marked for each case."""
    return np.stack([a[..., : len(on)][..., on].sum(-1) for a, on in zip(attention, shown, strict=True)])


def _profile(attention: np.ndarray, cases: Sequence[Case]) -> np.ndarray:
    """Mean attention [S] by distance from the last input, where there is an input so far away."""
    total, seen = np.zeros(attention.shape[-1]), np.zeros(attention.shape[-1])
    for a, case in zip(attention, cases, strict=True):
        n = len(case.ids) + 1
        total[:n] += a[:n][::-1]
        seen[:n] += 1
    return total / np.maximum(seen, 1)


def _by_distance(profile: np.ndarray, case: Case) -> float:
    n = len(case.ids) + 1
    spread = profile[:n][::-1] / profile[:n].sum()
    return float(spread[case.on(case.question.support)].sum())


def _kept(told: Reading) -> np.ndarray:
    """bool: promises that the measured mass on the anchors keeps."""
    mass = np.einsum("clns,cs->cln", told.attention, told.anchors)
    return (told.promised > 0) & (mass >= told.promised - 1e-4)

"""Runs one theorem's checks: many instances, the attaining ones, an attack, the wrong twin, trained models."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from proofs_check.theorem import Claim, Instance, Theorem

STARTS, STEPS, RATE = 128, 150, 0.05  # of the gradient attack
KEPT = 1500  # instances kept for the figure
TIGHT = 1 - 1e-4  # attained/bound of claims that are said to be attained; certificates round outward by less
TWIN_MARGIN = 100  # a twin is caught by a violation this many times the tolerance


@dataclasses.dataclass
class Count:
    """The result of checking one claim."""

    instances: int = 0
    assumed: int = 0
    violations: int = 0
    smallest_slack: float = float("inf")

    def add(self, other: Count) -> None:
        """Counts other instances of the same claim too."""
        self.instances += other.instances
        self.assumed += other.assumed
        self.violations += other.violations
        self.smallest_slack = min(self.smallest_slack, other.smallest_slack)


@dataclasses.dataclass
class Result:
    """The results of a theorem's checks. Tightness is attained/bound of its loosest attained claim."""

    theorem: Theorem
    claims: dict[str, Count]
    tightness: float | None
    starts: int
    attacked: dict[str, Count]
    twin_caught: bool
    twin_slack: float
    trained: dict[str, Count]
    seconds: float
    shown: tuple[Instance, Mapping[str, Claim]]
    figures: list[Any]

    @property
    def total(self) -> Count:
        """All claims, sampled, attacked and from trained models, together."""
        total = Count()
        for counts in (self.claims, self.attacked, self.trained):
            for count in counts.values():
                total.add(count)
        return total

    @property
    def instances(self) -> int:
        """Instances sampled."""
        return max((count.instances for count in self.claims.values()), default=0)

    @property
    def loose(self) -> bool:
        """Whether a bound that should be attained is not."""
        return self.tightness is not None and self.tightness < TIGHT

    @property
    def vacuous(self) -> list[str]:
        """Claims whose assumptions never held."""
        return [name for name, count in self.claims.items() if not count.assumed]


@contextlib.contextmanager
def double_precision() -> Iterator[None]:
    """Float64 for the whole process, callbacks' threads included; as it was before, afterwards."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


def check(
    theorem: Theorem,
    cases: int,
    key: jax.Array,
    run: Any = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Result:
    """Checks one theorem.

    Args:
      theorem: what to check.
      cases: instances asked for; the theorem takes its share of them.
      key: of all random draws.
      run: a trained run (`training.run.Run`), or None.
      progress: told (instances done, instances in all).
    """
    begun = time.perf_counter()
    wanted = max(8, round(cases * theorem.share))
    chunk = min(theorem.chunk, wanted)
    chunks = -(-wanted // chunk)
    sample = jax.jit(lambda k: theorem.sample(k, chunk))
    summary = jax.jit(lambda x: _summary(theorem.claims(x), theorem.tolerance))
    counts: dict[str, Count] = {}
    first: Instance = None
    for i in range(chunks):
        instances = sample(jax.random.fold_in(key, i))
        first = instances if first is None else first
        _add(counts, summary(instances))
        progress(min((i + 1) * chunk, wanted), wanted)
    attacked, starts = _attack(theorem, first, jax.random.fold_in(key, chunks))
    caught, worst = _twin(theorem, first)
    trained, figures = _trained(theorem, run)
    shown = _part(first, KEPT)
    seen = shown, jax.jit(theorem.claims)(shown)
    tightness = _tightness(theorem, counts)
    return Result(
        theorem,
        counts,
        tightness,
        starts,
        attacked,
        caught,
        worst,
        trained,
        time.perf_counter() - begun,
        seen,
        figures,
    )


def _summary(claims: Mapping[str, Claim], tolerance: float) -> dict[str, tuple]:
    """Per claim: instances, assumed, violations (a slack that is not a number is one), smallest slack."""
    return {
        name: (
            c.slack.size,
            c.assumed.sum(),
            (c.assumed & ~(c.slack >= -tolerance)).sum(),
            jnp.where(c.assumed, c.slack, jnp.inf).min(),
        )
        for name, c in claims.items()
    }


def _add(counts: dict[str, Count], summary: Mapping[str, tuple]) -> None:
    for name, (instances, assumed, violations, smallest) in jax.device_get(summary).items():
        one = Count(int(instances), int(assumed), int(violations), float(smallest))
        counts.setdefault(name, Count()).add(one)


def _tightness(theorem: Theorem, counts: dict[str, Count]) -> float | None:
    """Attained/bound (or its inverse) of the attaining instances; they are also checked."""
    if theorem.attain is None:
        return None
    claims = jax.jit(theorem.claims)(theorem.attain())
    _add(counts, _summary(claims, theorem.tolerance))
    ratios = []
    for name in theorem.attained:
        value, bound = (np.abs(np.asarray(x, float)) for x in (claims[name].value, claims[name].bound))
        keep = np.asarray(claims[name].assumed)
        assert keep.any(), f"{theorem.name}: no attaining instance meets the assumptions of {name!r}"
        low, high = np.minimum(value, bound)[keep], np.maximum(value, bound)[keep]
        ratios.append(float(np.where(high > 0, low / np.where(high > 0, high, 1.0), 1.0).max()))
    return min(ratios) if ratios else 1.0


def _part(instances: Instance, n: int) -> Instance:
    return jax.tree.map(lambda leaf: leaf[:n], instances)


def _attack(theorem: Theorem, first: Instance, key: jax.Array) -> tuple[dict[str, Count], int]:
    """Instances that try to break the claims: an adversary's own, or gradient descent on the slack."""
    if theorem.attack is not None:
        found = theorem.attack(key, STARTS)
    else:
        found = descend(_part(first, STARTS), lambda x: _worst(theorem.claims(x)))
    counts: dict[str, Count] = {}
    _add(counts, jax.jit(lambda x: _summary(theorem.claims(x), theorem.tolerance))(found))
    return counts, len(jax.tree.leaves(found)[0])


def _worst(claims: Mapping[str, Claim]) -> jax.Array:
    """[n]: the smallest slack of anything that is assumed."""
    slacks = [jnp.where(c.assumed & jnp.isfinite(c.slack), c.slack, jnp.inf) for c in claims.values()]
    return jnp.stack([x.reshape(len(x), -1).min(1) for x in slacks]).min(0)


def descend(start: Instance, objective: Callable[[Instance], jax.Array]) -> Instance:
    """The lowest instances that Adam finds on [n] objectives, moving all floating-point leaves."""
    leaves, tree = jax.tree.flatten(start)
    moved = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.floating)]

    def rebuild(free):
        mixed = list(leaves)
        for i, leaf in zip(moved, free, strict=True):
            mixed[i] = leaf
        return jax.tree.unflatten(tree, mixed)

    def total(free):
        each = objective(rebuild(free))
        return jnp.where(jnp.isfinite(each), each, 0.0).sum(), each

    def better(new, old, where):
        return [
            jnp.where(where.reshape(-1, *[1] * (n.ndim - 1)), n, o) for n, o in zip(new, old, strict=True)
        ]

    tx = optax.adam(RATE)

    def step(carry, _):
        # The slope is carried over the loop's edge, lest it be computed anew for each of Adam's moments: at a tie of
        # two claims, rounding may take one moment to one side and the other to the other.
        free, state, slope, best, lowest = carry
        updates, state = tx.update(slope, state)
        free = optax.apply_updates(free, updates)
        (_, each), slope = jax.value_and_grad(total, has_aux=True)(free)
        best, lowest = better(free, best, each < lowest), jnp.minimum(each, lowest)
        slope = [jnp.nan_to_num(s, posinf=0.0, neginf=0.0) for s in slope]
        return (free, state, slope, best, lowest), None

    @jax.jit
    def search(free):
        lowest, still = jnp.full(free[0].shape[0], jnp.inf), [jnp.zeros_like(x) for x in free]
        (*_, best, _), _ = jax.lax.scan(step, (free, tx.init(free), still, free, lowest), length=STEPS)
        return best

    return rebuild(search([leaves[i] for i in moved])) if moved else start


def _twin(theorem: Theorem, first: Instance) -> tuple[bool, float]:
    """Whether the wrong twin is violated by sampled instances, or else by attacked ones; its lowest slack."""
    twin = jax.jit(lambda x: _worst({"twin": theorem.twin(x)}))
    worst = float(twin(first).min())
    if worst >= -TWIN_MARGIN * theorem.tolerance:
        worst = min(worst, float(twin(descend(_part(first, STARTS), twin)).min()))
    return worst < -TWIN_MARGIN * theorem.tolerance, worst


def _trained(theorem: Theorem, run: Any) -> tuple[dict[str, Count], list[Any]]:
    counts: dict[str, Count] = {}
    figures: list[Any] = []
    if run is not None and theorem.on_checkpoint is not None:
        found = theorem.on_checkpoint(run)
        _add(counts, jax.jit(lambda x: _summary(theorem.claims(x), theorem.tolerance))(found))
    certified = theorem.certificate(run) if run is not None and theorem.certificate is not None else None
    if certified is not None:
        claims, figure = certified
        _add(counts, _summary(claims, theorem.tolerance))
        figures.append(figure)
    return counts, figures

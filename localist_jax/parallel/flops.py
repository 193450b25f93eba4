"""Floating-point operations of the matrix products in a traced function, counted from its jaxpr.

The count is over all devices and includes backward pass and recomputation; the body of a loop counts as often as it
runs. Products inside Pallas kernels and loops of unknown length are not counted.
"""

from __future__ import annotations

import math
from typing import Any

from jax.extend import core


def matrix_flops(jaxpr: core.Jaxpr | core.ClosedJaxpr) -> float:
    """Return twice the number of multiply–adds of all matrix products.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> def f(x):
    ...     return jax.lax.scan(lambda c, _: (c @ jnp.ones((3, 3)), None), x, length=5)[0]
    >>> matrix_flops(jax.make_jaxpr(f)(x)) == 5 * 2 * (2 * 3 * 3)
    True
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    return sum(_equation_flops(equation) for equation in inner.eqns)


def _equation_flops(equation: core.JaxprEqn) -> float:
    name, p = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracting, _), _ = p["dimension_numbers"]
        left, out = _shape(equation.invars[0]), _shape(equation.outvars[0])
        return 2.0 * math.prod(out) * math.prod(left[i] for i in contracting)
    if name.startswith("ragged_dot"):  # every row is multiplied with the matrix of one group
        return 2.0 * math.prod(_shape(equation.invars[0])) * _shape(equation.outvars[0])[-1]
    if name in ("while", "pallas_call"):
        return 0.0
    if name == "cond":
        return max(matrix_flops(branch) for branch in p["branches"])
    times = p["length"] if name == "scan" else 1
    if name == "shard_map":  # its body is the program of one device
        axes = p["manual_axes" if "manual_axes" in p else "newly_manual_axes"]  # by JAX's version
        times = math.prod(p["mesh"].shape[axis] for axis in axes)
    return times * sum(matrix_flops(inner) for inner in _inner(p))


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _inner(params: dict[str, Any]):
    for value in params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(part, (core.Jaxpr, core.ClosedJaxpr)):
                yield part

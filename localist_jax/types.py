"""The axis glossary: the only place where axis letters are defined.

======  =====================================  ======  =====================================
letter  axis                                   letter  axis
======  =====================================  ======  =====================================
B       batch (requests, rows)                 D       model width
T       query time                             F       hidden width of the shared feed-forward
S       key time                               U       localist units of one block
N       query heads                            V       vocabulary
G       key/value heads (N = G·group)          L       layers
H       head size                              K       semantic blocks (capacity)
A       anchors of one block                   M       specialist LLMs
======  =====================================  ======  =====================================

Inside the maths a suffix names the axes (``q_BTNH``); on public signatures jaxtyping's strings do
(``Float[Array, "B T N H"]``), which the test suite checks at run time.
"""

from __future__ import annotations

from typing import Any, dataclass_transform

import chex
import jax
import jax.numpy as jnp

PyTree = Any
Key = jax.Array  # a typed key from `jax.random.key`
Numeric = float | int | jax.Array


@dataclass_transform(frozen_default=True, kw_only_default=True)
def struct(cls):
    """Make a class a frozen dataclass and a pytree: `chex.dataclass`, in a form that type checkers understand."""
    return chex.dataclass(frozen=True, mappable_dataclass=False)(cls)


def widened(x: jax.Array) -> jax.Array:
    """Return x in the precision of norms, logits and sums: float64 if x has it, else float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

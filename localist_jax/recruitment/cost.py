"""The description length of a candidate, in code-length bits: its structure and its parameters.

Structure is coded so that 2^−bits sums to at most 1 over all candidates that could ever be proposed (Kraft): the
number of the trial by Rissanen's universal code, then each choice among what there was to choose from. That sum is
what T10 spends α on.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

from localist_jax import bits

CostModel = Literal["prequential", "bic", "fixed"]


def structure_bits(trial: int, *choices: int) -> float:
    """Bits of a candidate's structure: the number of its trial, and one pick out of each of `choices`.

    Args:
      trial: 1, 2, …; counts every trial ever opened, so no codeword is used twice.
      choices: how many alternatives each pick had (parents, anchors, candidates that share the number).

    Raises:
      ValueError: a trial or a choice below 1.

    >>> round(structure_bits(1, 4), 3)
    3.519
    """
    if min(choices, default=1) < 1:
        raise ValueError(f"structure_bits: every choice needs at least 1 alternative, got {choices}")
    return bits.integer_code_length(trial) + sum(math.log2(n) for n in choices)


def parameter_bits(model: str, parameters: int, tokens: int = 0, bits_per_parameter: float = 0.0) -> float:
    """Bits of a candidate's parameters.

    Args:
      model: a `CostModel`; "prequential": 0, since each token is coded before it is learned from, so
        that learning is paid for in code length; "bic": ½·log₂(tokens) each; "fixed": `bits_per_parameter` each.
      parameters: how many the candidate adds.
      tokens: that they are estimated from (bic).
      bits_per_parameter: (fixed).

    Raises:
      ValueError: an unknown model, or one that lacks its number.

    >>> parameter_bits("prequential", 1000), parameter_bits("bic", 1000, tokens=1024)
    (0.0, 5000.0)
    """
    if model not in get_args(CostModel):
        raise ValueError(
            f"parameter_bits: unknown cost model {model!r}; choose {', '.join(get_args(CostModel))}"
        )
    if model == "prequential":
        return 0.0
    if model == "bic":
        if tokens < 1:
            raise ValueError(f"parameter_bits: bic needs the number of tokens, got {tokens}")
        return parameters / 2 * math.log2(tokens)
    if bits_per_parameter <= 0:
        raise ValueError(f"parameter_bits: fixed needs bits_per_parameter above 0, got {bits_per_parameter}")
    return parameters * bits_per_parameter

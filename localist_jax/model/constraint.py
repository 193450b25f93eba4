"""The interface by which rules, formats and filters act on a generation between two steps.

A plain function (logits, tokens so far) → logits is enough to forbid tokens; a `Constraint` may also steer attention,
read measurements, and end a request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from localist_jax.locality.steering import Steering
from localist_jax.types import PyTree

Tokens = Sequence[Sequence[int]]


class Constraint:
    """A constraint that does nothing; override its methods, which `generate` calls in this order."""

    def start(self, prompts: Tokens, budgets: Sequence[int], context: int) -> None:
        """Prepare for the first step: prompts without BOS, the most tokens for each, and the size of the cache."""

    def steering(self, written: Tokens) -> Steering | None:
        """Return the steering of attention in the step that reads the last token; None: no steering.

        A constraint that ever steers must do so in the first two steps, if need be by `Steering.none`. The programs
        with and without steering are then both compiled, and later changes of the rules compile nothing.
        """

    def __call__(self, logits: jax.Array, written: Tokens) -> jax.Array:
        """Return the logits [B, V] to draw from; −∞ forbids a token. `written` holds the new tokens so far."""
        return logits

    def wanted(self, by_layer: jax.Array | None) -> PyTree:
        """Return arrays to pass to `ended`; they are fetched together with the tokens, in one transfer.

        Args:
          by_layer: mass on anchors, and fidelity, at the positions that predict the tokens, [2, L, B, N]; None if
            nothing is measured, or attention is not steered.
        """

    def ended(self, fetched: PyTree) -> Sequence[str]:
        """Return for each request why it ends before the token just drawn; "" if it continues."""
        return ()


class Function(Constraint):
    """A constraint made of a function."""

    def __init__(self, function: Callable[[jax.Array, Tokens], jax.Array]):
        self._function = function

    def __call__(self, logits: jax.Array, written: Tokens) -> jax.Array:
        """Return what the function returns."""
        return self._function(logits, written)

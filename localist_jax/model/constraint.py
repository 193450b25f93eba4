"""The door through which something may act on a generation between two steps: rules, formats, filters.

A plain function (logits, tokens so far) → logits is enough to forbid tokens; a `Constraint` may also steer attention,
see what was measured, and end a request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax

from localist_jax.locality.steering import Steering
from localist_jax.types import PyTree

Tokens = Sequence[Sequence[int]]


class Constraint:
    """Does nothing; each method may be overridden. `generate` calls them in this order."""

    def start(self, prompts: Tokens, budgets: Sequence[int], context: int) -> None:
        """Before the first step: prompts without BOS, the tokens that each can get at most, and the cache's size."""

    def steering(self, written: Tokens) -> Steering | None:
        """What attention rules ask of the step that reads the last token; None: nothing.

        Who ever steers must do so in the first two steps, if need be by a `Steering` of nothing: then the programs with
        and without steering are both compiled, and neither is when rules come or go.
        """

    def __call__(self, logits: jax.Array, written: Tokens) -> jax.Array:
        """Logits [B, V] from which the next tokens are drawn; −∞ forbids. `written` are the new tokens so far."""
        return logits

    def wanted(self, by_layer: jax.Array | None) -> PyTree:
        """Arrays of this step that `ended` is to be given; they are fetched along with the tokens, in one transfer.

        Args:
          by_layer: mass on anchors, and fidelity, of the positions from which the tokens are chosen, [2, L, B, N]; None
            where nothing is measured, or attention is not steered.
        """

    def ended(self, fetched: PyTree) -> Sequence[str]:
        """For each request the reason why it ends before the token just drawn; "" if it goes on."""
        return ()


class Function(Constraint):
    """A function as a constraint."""

    def __init__(self, function: Callable[[jax.Array, Tokens], jax.Array]):
        self._function = function

    def __call__(self, logits: jax.Array, written: Tokens) -> jax.Array:
        """What the function returns."""
        return self._function(logits, written)

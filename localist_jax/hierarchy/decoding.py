"""Decoding by a mixture: members read along with the one that writes, and Bayes' rule weighs them token by token."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from localist_jax import bits
from localist_jax.hierarchy.ensemble import Ensemble
from localist_jax.locality import Dial
from localist_jax.model import Transformer
from localist_jax.model.cache import Cache
from localist_jax.model.generate import read_tokens


class ReadingAlong:
    """For `model.generate(along=…)`: the mixture of the first member, which generates, and others.

    The next token has probability Σ_m w_m·P(token | m); then w_m ∝ w_m·P(token written | m). So a continuation costs
    at most log₂(1/w_m) bits more than under member m, where w_m is its weight after the prompt (T13).

    Args:
      model, ensemble: the members.
      others: places of those that read along.
      code: bits of every request's prompt under all members, [B, 1 + others], the first member's first.
      dial: for all; None: each member's own.
      context: positions of the cache.
    """

    def __init__(
        self,
        model: Transformer,
        ensemble: Ensemble,
        others: tuple[int, ...],
        code: Float[np.ndarray, "B M"],
        dial: Dial | None,
        context: int,
    ):
        self._model = model
        requests, c = code.shape[0], model.config
        self._readers = [
            (ensemble.state(at), (dial or ensemble.dial(at)).broadcast(requests, c.layers, c.heads))
            for at in others
        ]
        self._caches = [Cache.create(c, requests, context) for _ in others]
        self._weights = jax.nn.log_softmax(-bits.to_nats(jnp.asarray(code)))
        self._known: jax.Array | None = None  # ln P of the next token under each member, [B, M, V]

    @property
    def weights(self) -> Float[np.ndarray, "B M"]:
        """After all that was read so far."""
        return np.exp(np.asarray(self._weights))

    def __call__(
        self, logits: Float[Array, "B V"], tokens, positions, segments, at, rules
    ) -> Float[Array, "B V"]:
        """ln P of the next token under the mixture."""
        if self._known is not None:
            self._weights = _weighed(
                self._weights, self._known, jnp.asarray(tokens)[:, 0], jnp.asarray(segments)[:, 0]
            )
        each = [logits]
        for nth, (state, dial) in enumerate(self._readers):
            read, _, _, self._caches[nth] = read_tokens(
                self._model, state.params, state.blocks, self._caches[nth], tokens, positions, segments, at, dial,
                rules, stats="none", opening=self._known is None,
            )  # fmt: skip
            each.append(read)
        self._known, mixture = _mixture(self._weights, jnp.stack(each, 1))
        return mixture


@jax.jit
def _mixture(weights: Float[Array, "B M"], logits: Float[Array, "B M V"]):
    known = jax.nn.log_softmax(logits)
    return known, jax.nn.logsumexp(weights[..., None] + known, axis=1)


@jax.jit
def _weighed(
    weights: Float[Array, "B M"],
    known: Float[Array, "B M V"],
    written: Int[Array, " B"],
    running: Int[Array, " B"],
) -> Float[Array, "B M"]:
    """Weights after one more token, of the requests that still run."""
    said = jnp.take_along_axis(known, written[:, None, None], -1)[..., 0]
    return jnp.where(running[:, None] > 0, jax.nn.log_softmax(weights + said), weights)

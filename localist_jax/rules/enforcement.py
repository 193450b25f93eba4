"""Rules on a running generation: `generate(constraint=Enforcer(…))`.

Rules are swapped between two steps. Whatever they are, a step hands arrays of the same shapes to the same compiled
functions, so nothing is recompiled and no request is dropped.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax import config
from localist_jax.locality import certificates
from localist_jax.locality.steering import Steering
from localist_jax.model.constraint import Constraint, Tokens
from localist_jax.rules import attending, patterns, price
from localist_jax.rules.language import RuleSet
from localist_jax.rules.program import RuleProgram
from localist_jax.rules.request import Request
from localist_jax.rules.verification import verify
from localist_jax.rules.vocabulary import Vocabulary
from localist_jax.types import PyTree

KEPT = 16  # masks of a batch that stay on the device


class Enforcer(Constraint):
    """Enforces a rule set on the requests of one `generate` after the other.

    Attributes:
      program: the rules in force.
    """

    def __init__(
        self,
        tokenizer: Any,
        model: config.Model,
        params: PyTree = None,
        rules: RuleSet | None = None,
        *,
        name: str = "",
        attention: bool = True,
        output: bool = True,
    ):
        """Ready for rules of one model.

        Args:
          tokenizer: the model's `data.Tokenizer`.
          model: its sizes.
          params: its parameters, from which the logits' bound S comes (T5); None promises nothing.
          rules: those to begin with.
          name: what `scope.models` calls this model; "": every rule concerns it.
          attention, output: False leaves that side of the rules out, for studies.

        Raises:
          RuleError: as `prepare`.
        """
        self.vocabulary = Vocabulary(tokenizer)
        self.model, self.name = model, name
        self._attention, self._output = attention, output
        self._bound = logit_bound(model, params)
        self._engine: patterns.PatternEngine | None = None
        self._lock = threading.Lock()
        self._waiting: RuleProgram | None = None
        self._requests: list[Request] = []
        self._cost: jax.Array | None = None
        self._trail: list[dict[str, Any]] = []
        self._unwritten: tuple[Any, ...] | None = None
        self.program = self.prepare(rules or RuleSet())

    def prepare(self, rules: RuleSet) -> RuleProgram:
        """Verifies and compiles a rule set; touches nothing that runs, and may be called from another thread.

        Raises:
          RuleError: it contradicts itself, or does not fit the model.
        """
        attending.check_scope(rules, self.model)
        verify(rules).insist()
        program = RuleProgram(rules, self.vocabulary, self.name)
        if self._engine is None and (program.regexes or any(rule.format for rule in program.active)):
            self._engine = patterns.PatternEngine(self.vocabulary.tokenizer)
        return program

    def swap(self, program: RuleProgram) -> None:
        """Puts a prepared program into force from the next step on."""
        with self._lock:
            self._waiting = program

    def inject(self, rules: RuleSet) -> None:
        """`prepare`, then `swap`; a set that is refused leaves the present one in force.

        Raises:
          RuleError: as `prepare`.
        """
        self.swap(self.prepare(rules))

    def remove(self, *ids: str) -> None:
        """Takes rules out of the present set.

        Raises:
          RuleError: an unknown id.
        """
        self.inject(self.coming.rules.without(set(ids)))

    @property
    def coming(self) -> RuleProgram:
        """The rules that the next step is under."""
        with self._lock:
            return self._waiting or self.program

    # What `generate` calls

    def start(self, prompts: Tokens, budgets: Sequence[int], context: int) -> None:
        """Begin requests with these prompts (`Constraint`)."""
        self._take_over()
        self._context = context
        self._requests = [
            Request(prompt, budget, self.vocabulary.bytes)
            for prompt, budget in zip(prompts, budgets, strict=True)
        ]
        self._unwritten = None
        self._trail = [
            {"price_bits": [], "attention": [], "since": [(0, self.program)]} for _ in self._requests
        ]
        for request in self._requests:
            request.adopt(self.program, self._engine)
        c, B = self.model, len(prompts)
        self._steered: Steering = jax.device_put(Steering.none(B, c.layers, c.heads, context))
        self._steps = 0
        self._situations: list[tuple[Any, ...]] = [()] * B
        self._promises: list[list[dict[str, Any]]] = [[] for _ in prompts]
        self._anything = np.arange(self.vocabulary.size) >= 2  # specials are never sampled
        self._zero, self._warm = np.zeros((B, self.vocabulary.size), np.float32), False
        self._placed: dict[tuple[int, ...], tuple[list[np.ndarray], jax.Array]] = {}

    def steering(self, written: Tokens) -> Steering | None:
        """Return the masks of `Constraint`; swapped rules come into force here."""
        changed = self._take_over()
        for request, trail, tokens in zip(self._requests, self._trail, written, strict=True):
            for token in tokens[len(request.text.tokens) - request.prompt :]:
                request.add(token)
            if changed:
                request.adopt(self.program, self._engine)
                trail["since"].append((len(tokens), self.program))
        if not self._attention:
            return None
        self._steps += 1
        c, B = self.model, len(self._requests)
        situations = [attending.situation(q, c.window, self._context) for q in self._requests]
        if situations != self._situations:
            self._situations = situations
            self._promises = [[] for _ in self._requests]
            into = Steering.none(B, c.layers, c.heads, self._context)
            for r, situation in enumerate(situations):
                if situation:
                    found = attending.steer(into, r, self._requests[r], c, self._bound, situation[-1])
                    self._promises[r] = found
            self._steered = jax.device_put(into)
        return self._steered if any(situations) or self._steps <= 2 else None

    def __call__(self, logits: jax.Array, written: Tokens) -> jax.Array:
        """Finish the last step's host work while the device computes (`Constraint`)."""
        self._write_down()
        if not self._output:
            return logits
        masks, bias = [self._anything] * len(self._requests), None
        for r, request in enumerate(self._requests):
            if request.stop:
                continue
            mask, raised = request.allowed(), request.bias()
            if not request.stop:
                masks[r] = mask
                if raised is not None:
                    bias = self._zero.copy() if bias is None else bias
                    bias[r] = raised
        if self._warm and bias is None and all(mask is self._anything or mask.all() for mask in masks):
            self._cost = None
            return logits
        allowed = self._on_device(masks)
        if not self._warm:  # the first step goes all ways, so that rules that come later compile nothing
            for other in (None, self._zero):
                _condition(logits, allowed, other)
            self._warm = True
        free, self._cost = _condition(logits, allowed, bias)
        return free

    def _on_device(self, masks: list[np.ndarray]) -> jax.Array:
        """Masks of all requests as one array; mostly those of a step before, which lie there already."""
        key = tuple(map(id, masks))
        if key not in self._placed:
            if len(self._placed) >= KEPT:
                self._placed.clear()
            self._placed[key] = masks, jax.device_put(np.stack(masks) & self._anything)
        return self._placed[key][1]

    def wanted(self, by_layer: jax.Array | None) -> PyTree:
        """Record the step's price, and its attention where a rule promises some (`Constraint`)."""
        return self._cost if self._output else None, by_layer if any(self._promises) else None

    def ended(self, fetched: PyTree) -> Sequence[str]:
        """Return why each request ends, or "" (`Constraint`)."""
        cost, by_layer = fetched
        prices = [0.0] * len(self._requests) if cost is None else cost.tolist()
        steps = []
        for request, bits in zip(self._requests, prices, strict=True):
            if bits == np.inf and not request.stop:
                request.stop = "rules: every allowed token has probability 0"
            running = not request.stop and request.left > 0
            steps.append(len(request.text.tokens) - request.prompt if running else -1)
        self._unwritten = steps, prices, self._promises, by_layer
        return [request.stop for request in self._requests] if self._output else ()

    @property
    def trail(self) -> list[dict[str, Any]]:
        """For each request of the last generation what happened (`record.audit` makes a report of it)."""
        self._write_down()
        return self._trail

    def _write_down(self) -> None:
        """Keeps what the last step cost, and what attention that was promised came to."""
        if self._unwritten is None:
            return
        (*by_request, by_layer), self._unwritten = self._unwritten, None
        for r, (trail, step, bits, promises) in enumerate(zip(self._trail, *by_request, strict=True)):
            if step >= 0 and self._output:
                trail["price_bits"].append(bits)
            if step >= 0 and promises and by_layer is not None:
                mass, fidelity = by_layer[:, :, r]
                trail["attention"].append(
                    {"step": step, "rules": promises, "anchor_mass": mass, "fidelity": fidelity}
                )

    @property
    def requests(self) -> list[Request]:
        """The requests of the last generation."""
        return self._requests

    def finish(self, written: Tokens) -> None:
        """Reads the last tokens, so that what is due can be judged."""
        for request, tokens in zip(self._requests, written, strict=True):
            for token in tokens[len(request.text.tokens) - request.prompt :]:
                request.add(token)

    def _take_over(self) -> bool:
        with self._lock:
            program, self._waiting = self._waiting, None
        if program is not None:
            self.program = program
        return program is not None


@jax.jit
def _condition(logits, allowed, bias_bits):
    """`price.condition` of the distribution without the special tokens, so that no rule costs nothing."""
    plain = jnp.where(jnp.arange(logits.shape[-1]) < 2, -jnp.inf, logits)
    return price.condition(plain, allowed, bias_bits)[:2]


def logit_bound(model: config.Model, params: PyTree) -> np.ndarray:
    """S of the localist layers' heads, [L − router_layer, N]; ∞ where there is none."""
    shape = (model.layers - model.router_layer, model.heads)
    if params is None or not model.qk_norm or not shape[0]:
        return np.full(shape, np.inf)
    attention = params["localist"]["attention"]
    q_gain, k_gain = (np.asarray(attention[name]["gain"]) for name in ("query_norm", "key_norm"))
    bound = certificates.logit_bound(q_gain, k_gain, dtype=model.dtype)
    return np.broadcast_to(bound[:, None], shape).copy()

"""Rules that enter a running model: read, verified, compiled, enforced, priced and audited."""

from localist_jax.rules.language import RuleError, RuleSet
from localist_jax.rules.reading import parse, read
from localist_jax.rules.verification import verify

__all__ = ["RuleError", "RuleSet", "parse", "read", "verify"]

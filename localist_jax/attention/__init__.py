"""One operation, `attend`, and several implementations behind it.

`api.attend` checks its arguments and picks an implementation by name. `reference` is the definition. `sparse` plans
which tiles to visit and hands each pass to an `AttentionEngine`; its own engines are in plain XLA (`flash`), `tpu` and
`hopper` bring kernels. To add an engine: build a `sparse.AttentionEngine` whose `forward` and `backward` have the
signatures of those in `flash` (`kernel_passes` adapts kernels that take tiles), name it in `api.implementations`, and
subclass the shared tests in tests/attention/attend_suite.py. The dial's odds are computed in `locality/dial.py`.
"""

from localist_jax.attention.api import attend, implementations
from localist_jax.attention.stats import AttentionStats

__all__ = ["AttentionStats", "attend", "implementations"]

"""Pure functions of the locality dial, gates, routing and measures; they know no model.

The dial λ and its log-odds β are in `dial`; `gates.odds` combines β with the gates into the odds ω = A + (1−A)·e^{−β}
that attention multiplies its weights by. `pricing` closes gates in training, `router` assigns positions to blocks,
`measures` defines fidelity, entropy and price, and `certificates` bounds them. Attention itself is in `attention/`.
"""

from localist_jax.locality.anchors import Blocks
from localist_jax.locality.dial import REGIMES, Dial

__all__ = ["REGIMES", "Blocks", "Dial"]

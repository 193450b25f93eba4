"""A first any-dial model on text that every machine has; minutes on 2 CPU cores.

    python -m experiments.launch --config=experiments/configs/quickstart.py --workdir=runs/quickstart

The corpus is the reference prose of the running Python: its help topics and the docstrings of its
standard library. Variant `:tiny` trains for seconds, for tests.
"""

from ml_collections import ConfigDict

from localist_jax import config


def get_config(variant: str = "") -> ConfigDict:
    """The configuration; `variant` is empty or "tiny"."""
    c = config.default()
    c.data.corpus = "python-docs"
    c.data.vocab_size = 2048
    c.data.context = 256
    c.data.batch = 8
    c.data.valid_rows = 64
    c.model.layers = 4
    c.model.width = 192
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 48
    c.model.feed_forward = 512
    c.model.perception_window = 8
    c.optimizer.learning_rate = 6e-3
    c.train.steps = 750
    c.train.eval_every = 150
    c.train.save_every = 150
    if variant == "tiny":
        c.data.update(vocab_size=512, context=64, batch=4, valid_rows=16)
        c.model.update(
            layers=3, width=32, heads=2, kv_heads=2, head_size=16, feed_forward=64, perception_window=8
        )
        c.model.update(blocks=6, block_capacity=8, block_units=8, window=4)
        c.gates.open_share_target = 0.4
        c.train.update(steps=60, log_every=5, eval_every=20, save_every=20)
    elif variant:
        raise ValueError(f"quickstart: unknown variant {variant!r}; leave it out, or use 'tiny'")
    return c

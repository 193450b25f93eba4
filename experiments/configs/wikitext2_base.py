"""About 50 M parameters on WikiText-2 at context 1024, for one GPU (bfloat16 activations).

    LOCALIST_DATA=… python -m experiments.launch \\
        --config=experiments/configs/wikitext2_base.py --workdir=runs/wikitext2_base

WikiText-2 is small for this size: the run stops after about six epochs.
"""

from ml_collections import ConfigDict

from localist_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.default()
    c.data.corpus = "wikitext-2"
    c.data.vocab_size = 16_384
    c.data.context = 1024
    c.data.batch = 16
    c.data.valid_rows = 0
    c.model.layers = 10
    c.model.width = 512
    c.model.heads = c.model.kv_heads = 8
    c.model.head_size = 64
    c.model.feed_forward = 1408
    c.model.router_layer = 2
    c.model.blocks = c.model.block_capacity = 32
    c.model.block_units = 16
    c.model.window = 16
    c.model.perception_window = 16
    c.model.dtype = "bfloat16"
    c.dial.share_localist = 0.6  # what the dial study recommends for text
    c.optimizer.learning_rate = 1e-3
    c.train.steps = 1000
    c.train.eval_every = 200
    c.train.save_every = 200
    return c

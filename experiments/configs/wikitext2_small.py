"""About 5 M parameters on WikiText-2; under an hour on 2 CPU cores.

    LOCALIST_DATA=… python -m experiments.launch \\
        --config=experiments/configs/wikitext2_small.py --workdir=runs/wikitext2_small

`LOCALIST_DATA` is the folder that holds `wikitext-2/`; or set --config.data.path to that folder itself.
"""

from ml_collections import ConfigDict

from localist_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.default()
    c.data.corpus = "wikitext-2"
    c.data.vocab_size = 4096
    c.data.context = 256
    c.data.batch = 8
    c.data.valid_rows = 128
    c.model.layers = 5
    c.model.width = 256
    c.model.heads = c.model.kv_heads = 4
    c.model.head_size = 64
    c.model.feed_forward = 640
    c.model.perception_window = 8
    c.dial.share_localist = 0.6  # what the dial study recommends for text
    c.optimizer.learning_rate = 6e-3
    c.train.steps = 3000
    c.train.eval_every = 500
    c.train.save_every = 250
    return c

"""Eight specialist LLMs of 1.2 G parameters each, for a TPU v5e-256 or v5p-512: 32 chips a specialist.

    python -m experiments.compile_for --config=experiments/configs/pod_1b.py --topology=v5e:16x16
    python -m experiments.compile_for --config=experiments/configs/pod_1b.py --topology=v5p:4x8x8

Layers like those of Llama 3.2 1B, with wider heads, 64 blocks and a smaller vocabulary.
`docs/tpu.md` tells how to launch it.
"""

from ml_collections import ConfigDict

from localist_jax import config


def get_config() -> ConfigDict:
    """The configuration."""
    c = config.default()
    c.data.corpus = "text"  # a folder of text: --config.data.path
    c.data.vocab_size = 32_768
    c.data.context = 4096
    c.data.batch = 64  # 262,144 tokens a step for each specialist
    c.data.valid_rows = 64
    c.model.update(layers=16, width=2048, heads=16, kv_heads=8, head_size=128, feed_forward=8192)
    c.model.update(router_layer=2, blocks=64, block_capacity=64, block_units=32)
    c.model.update(window=64, perception_window=128, rope_base=500_000.0)
    c.model.update(dtype="bfloat16", remat=True)
    c.optimizer.kind = "adamw"
    c.optimizer.learning_rate = 4e-4
    c.train.update(steps=20_000, eval_every=1000, save_every=500)
    c.mesh.update(specialist=8, data=1, fsdp=-1, tensor=1)
    return c

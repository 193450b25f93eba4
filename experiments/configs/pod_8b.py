"""Eight specialist LLMs of 7.8 G parameters each, meant for a TPU v5e-256 or v5p-512: 32 chips a specialist.

    python -m experiments.compile_for --config=experiments/configs/pod_8b.py --topology=v5e:16x16
    python -m experiments.compile_for --config=experiments/configs/pod_8b.py --topology=v5p:4x8x8

Layers of the sizes of Llama 3 8B, with 64 blocks and a smaller vocabulary. `docs/tpu.md` tells how to launch it,
`docs/measurements/compile_for.md` for which chips it was compiled.
"""

from ml_collections import ConfigDict

from experiments.configs import pod_1b


def get_config() -> ConfigDict:
    """The configuration."""
    c = pod_1b.get_config()
    c.data.batch = 32  # 131,072 tokens a step for each specialist
    c.model.update(layers=32, width=4096, heads=32, kv_heads=8, head_size=128, feed_forward=14_336)
    c.model.tied = False
    c.optimizer.learning_rate = 3e-4
    c.mesh.update(fsdp=-1, tensor=4)
    return c

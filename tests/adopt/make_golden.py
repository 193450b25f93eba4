"""Writes golden.npz: what `transformers` computes for the tiny checkpoints. Needs the extra `parity`.

cd tests/adopt && python make_golden.py
"""

import sys
import tempfile
from importlib import metadata
from pathlib import Path

import checkpoints
import numpy as np

HERE = Path(__file__).parent
T = 40


def tokens():
    return np.random.default_rng(1).integers(2, checkpoints.V, (2, T)).astype(np.int32)


def reference(folder, ids, dtype="float32"):
    """Logits of `transformers`, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(ids, np.int64))).logits.float().numpy()


if __name__ == "__main__":
    found = {"versions": np.array([f"{x} {metadata.version(x)}" for x in ("torch", "transformers")])}
    with tempfile.TemporaryDirectory() as folder:
        for variant in checkpoints.VARIANTS:
            where = checkpoints.write(Path(folder) / variant, variant)
            found[variant] = reference(where, tokens())[:, ::3]
    np.savez_compressed(HERE / "golden.npz", **found)
    print(HERE / "golden.npz", file=sys.stderr)

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import checkpoints

from localist_jax.adopt import adopt

WORDS = "a cat sat on mat and the dog looked at it; so goes. why? or"


@pytest.fixture(scope="session")
def original(tmp_path_factory):
    """An adopted run of a tiny checkpoint, and a made-up text."""
    at = tmp_path_factory.mktemp("original")
    folder = checkpoints.write(at / "checkpoint", "qwen3, tied", bos=False)
    drawn = np.random.default_rng(0).choice(WORDS.split(), (300, 12))
    (at / "text.txt").write_text("\n\n".join(" ".join(line) for line in drawn))
    return adopt(folder, at / "run", context=64, corpus=str(at / "text.txt"))

"""How much of its own memory a process takes while it reads a checkpoint; run as a program, in a process of its own.

python peak_memory.py CHECKPOINT STRIP_BYTES
"""

import ctypes
import gc
import json
import sys
import threading
from pathlib import Path

import jax
import numpy as np

from localist_jax.adopt import families, load, shards
from localist_jax.adopt.tensors import tensors
from localist_jax.config import Config

LARGE = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 32_000, "tie_word_embeddings": True,
}  # fmt: skip


def large_checkpoint(folder):
    """Write a checkpoint of zeros, large enough that its memory is not the compiler's."""
    wanted = tensors(families.model_of(LARGE), LARGE["vocab_size"])
    folder.mkdir(parents=True)
    named = ((t.name, np.zeros(t.shape, np.float32)) for t in wanted)
    shards.write(folder, named, shard_bytes=100_000_000)
    (folder / "config.json").write_text(json.dumps(LARGE))
    return folder


def own_memory():
    """Return the bytes of resident anonymous pages: those of mapped files are not the process's own."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def memory_of(folder):
    """Return the peak while a checkpoint is read a second time, over what was held before, looked at every millisecond.

    It is read once before, so that the compiler has done its work.
    """
    raw = families.read_config(folder)
    settings = Config(model=families.model_of(raw)).replace(
        data={"vocab_size": families.vocabulary_of(raw)}, optimizer={"trunk": 0.0, "kind": "adamw"}
    )
    jax.block_until_ready(load(folder, settings)[0].params)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler had goes back to the system (glibc)
    before, peak, done = own_memory(), [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    state, _ = load(folder, settings)
    jax.block_until_ready(state.params)
    done.set()
    watcher.join()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    largest = max(4 * int(np.prod(t.shape)) for t in tensors(settings.model, settings.data.vocab_size))
    return {"model_bytes": size, "peak_bytes": peak[0] - before, "largest_tensor_bytes": largest}


if __name__ == "__main__":
    shards.STRIP_BYTES = int(sys.argv[2])
    print(json.dumps(memory_of(Path(sys.argv[1]))))

"""The runs of the study, kept in their folders: pretrained, exported, adopted, localised, measured."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from localist_jax.adopt import adopt, export, families, shards
from localist_jax.adopt import load as load_checkpoint
from localist_jax.adopt.localise import localise, settings_of
from localist_jax.adopt.tensors import tensors
from localist_jax.config import Config, Data, resolve
from localist_jax.data import load, valid_batches
from localist_jax.locality import Dial
from localist_jax.model import Transformer, forward
from localist_jax.training.evaluate import Evaluator
from localist_jax.training.loop import train
from localist_jax.training.run import Run, write_json
from localist_jax.training.state import GATES, at_path, with_leaf

BASE: dict[str, Any] = {
    "data": {"vocab_size": 1024, "context": 128, "batch": 16, "valid_rows": 256},
    "model": {
        "layers": 4, "width": 128, "heads": 4, "kv_heads": 2, "head_size": 32, "feed_forward": 384, "blocks": 1,
        "block_capacity": 1, "background": True, "block_units": 0, "window": 1, "perception_window": 0,
    },
    "dial": {"mode": "fixed", "locality": 0.0},
    "optimizer": {"learning_rate": 6e-3},
}  # fmt: skip
CORPUS_BYTES = 5_000_000  # of each of the two corpora
OPEN_SHARE, BLOCKS = 0.45, 12
MADE = {"frozen": 0.0, "tuned": 0.1}  # by condition: the trunk's share of the learning rate


@dataclasses.dataclass(frozen=True)
class Study:
    """Where runs lie, and how long they are."""

    folder: Path
    pretrain: int
    budgets: tuple[int, ...]

    def corpus(self) -> Path:
        """WikiText-2 and openstax, the first bytes of each, one document a line."""
        path = self.folder / "corpus.jsonl"
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            lines = []
            for name in ("wikitext-2", "openstax"):
                left = CORPUS_BYTES
                for document in load(Data(corpus=name)).train:
                    if left <= 0:
                        break
                    lines.append(json.dumps({"text": document[:left]}))
                    left -= len(document.encode())
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return path

    def foreign(self, seed: int) -> tuple[Path, Run]:
        """A checkpoint folder of a model pretrained here, and the run that adopting it makes."""
        at = self.folder / f"seed{seed}"
        made = resolve(BASE).replace(
            data={"corpus": str(self.corpus())}, train={"steps": self.pretrain, "seed": seed}
        )
        if not (at / "checkpoint" / "config.json").exists():
            export(train(made, at / "pretrained"), at / "checkpoint")
        if not (at / "adopted" / "config.json").exists():
            adopt(at / "checkpoint", at / "adopted", context=made.data.context, corpus=str(self.corpus()))
        run = Run.open(at / "adopted")
        return at / "checkpoint", dataclasses.replace(
            run, settings=run.settings.replace(data=BASE["data"] | {"tokenizer": run.settings.data.tokenizer})
        )

    def localised(self, run: Run, seed: int, condition: str, steps: int, **changes: Any) -> Run:
        """The run of a condition; trained once."""
        trunk = MADE["tuned" if condition.startswith("tuned") else condition]
        made = settings_of(
            run, steps=steps, blocks=BLOCKS, trunk=trunk, open_share=OPEN_SHARE,
        ).replace(train={"seed": seed}, gates={"flat_window": 10})  # fmt: skip
        return localise(run, made.replace(**changes), self.folder / f"seed{seed}" / f"{condition}{steps}")


def measured(study: Study, seed: int) -> dict[str, Any]:
    """Every figure of a seed; kept in its folder, with what it was measured for."""
    path = study.folder / f"seed{seed}" / "figures.json"
    asked = {"base": BASE, "pretrain": study.pretrain, "budgets": list(study.budgets)}
    if path.is_file():
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["asked"] == asked:
            return kept["figures"]
    checkpoint, original = study.foreign(seed)
    longest = max(study.budgets)
    runs = {
        (name, steps): study.localised(original, seed, name, steps)
        for name in MADE
        for steps in study.budgets
    }
    ends = {
        "tuned_dense": study.localised(
            original, seed, "tuned_dense", longest, dial={"mode": "fixed", "locality": 0.0}
        ),
        "tuned_always": study.localised(
            original, seed, "tuned_always", longest,
            dial={"mode": "fixed", "locality": 1.0}, gates={"pattern": "closed"},
        ),
    }  # fmt: skip
    frozen = runs["frozen", longest]
    batches = valid_batches(frozen.data.valid, frozen.settings.data.batch, frozen.settings.data.valid_rows)
    score = _Score(frozen, batches)
    gates = at_path(frozen.state.params, GATES)
    closed = with_leaf(frozen.state.params, GATES, jnp.zeros_like(gates))
    shuffled = with_leaf(frozen.state.params, GATES, _shuffled(gates, seed))
    figures: dict[str, Any] = {
        "original": score(frozen, 0.0)["bits_per_token"],
        "always": score(frozen, 1.0, closed)["bits_per_token"],
        "shuffled gates": score(frozen, 1.0, shuffled)["bits_per_token"],
        "tuned_dense": score(ends["tuned_dense"], 0.0)["bits_per_token"],
        "tuned_always": score(ends["tuned_always"], 1.0)["bits_per_token"],
        "dial0_bit_equal": _bit_equal(original, frozen, batches[0]),
    }
    for (name, steps), run in runs.items():
        for dial in (0.0, 1.0):
            figures[f"{name}/{steps}@{dial:g}"] = score(run, dial)
    share = figures[f"frozen/{longest}@1"]["open_share"]
    figures["window"], figures["wider window"] = score.window(frozen, closed, share)
    figures |= _on_the_way(checkpoint, study.folder / f"seed{seed}")
    write_json(path, {"asked": asked, "figures": figures})
    return figures


class _Score:
    """Measures runs of one shape, compiled once."""

    def __init__(self, run: Run, batches):
        self._batches, self._lengths = batches, run.tokenizer.byte_lengths
        self._evaluator = Evaluator(run.model, self._lengths)

    def __call__(self, run: Run, dial: float, params=None) -> dict[str, float]:
        params = run.state.params if params is None else params
        found = self._evaluator.measure(params, run.state.blocks, self._batches, Dial(dial))
        return {name: found[name] for name in ("bits_per_token", "open_share")}

    def window(self, run: Run, closed, share: float) -> tuple[int, float]:
        """The control without gates: the smallest window with at least this open share, and its bits per token."""
        length = run.settings.data.context
        for size in range(run.settings.model.window, length + 1, 2):
            model = Transformer(
                dataclasses.replace(run.settings.model, window=size), run.tokenizer.vocab_size
            )
            pairs = size * (2 * length - size + 1) / (length * (length + 1))  # of a full row
            c = run.settings.model
            if (c.router_layer + (c.layers - c.router_layer) * pairs) / c.layers >= share:
                break
        evaluator = Evaluator(model, self._lengths)
        found = evaluator.bits_per_token(closed, run.state.blocks, self._batches, Dial(1.0))
        return size, found["bits_per_token"]


def _shuffled(gates, seed: int):
    """Every head's gates between blocks 1 …, in another order: as many open, but not the same ones."""
    rng, inner = np.random.default_rng(seed), np.array(gates)
    for head in inner.reshape(-1, *inner.shape[-2:]):
        part = head[1:, 1:]
        part[:] = rng.permutation(part.ravel()).reshape(part.shape)
    return jnp.asarray(inner)


def logit_error(study: Study, seeds: list[int]) -> float:
    """Largest difference between the adopted model's logits at λ=0 and those of `transformers`, float32.

    Raises:
      ValueError: `transformers` or `torch` is not installed.
    """
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        raise ValueError(
            f"localise: {error.name} is missing, which the adopted model is compared with: pip install -e '.[parity]'"
        ) from error
    largest = 0.0
    for seed in seeds:
        folder, run = study.foreign(seed)
        ids = np.random.default_rng(seed).integers(2, run.tokenizer.vocab_size, (4, 64))
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        with torch.no_grad():
            theirs = peer(torch.from_numpy(ids)).logits.numpy()
        ours = forward(run.model, run.state.params, jnp.asarray(ids), Dial(0.0), run.state.blocks).logits
        largest = max(largest, float(np.abs(theirs - np.asarray(ours)).max()))
    return largest


def _bit_equal(original: Run, made: Run, batch) -> bool:
    """Whether λ=0 gives the same logits bit for bit, on the first 64 tokens of rows.

    There attention sums in the order of positions; tiles of longer rows go by blocks.
    """
    found = []
    for run in (original, made):
        read = jax.jit(forward, static_argnums=0)
        found.append(
            np.asarray(
                read(run.model, run.state.params, batch.tokens[:, :64], Dial(0.0), run.state.blocks).logits
            )
        )
    return found[0].tobytes() == found[1].tobytes()


def _on_the_way(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Adopting and exporting once more: is it exact?"""
    back = folder / "back"
    if not (back / "config.json").exists():
        export(Run.open(folder / "adopted"), back)
    same = (checkpoint / "model.safetensors").read_bytes() == (back / "model.safetensors").read_bytes()
    return {"roundtrip_exact": same}


LARGE: dict[str, Any] = {
    "model_type": "llama", "num_hidden_layers": 8, "hidden_size": 512, "num_attention_heads": 8,
    "num_key_value_heads": 4, "intermediate_size": 2048, "vocab_size": 32_000, "tie_word_embeddings": True,
}  # fmt: skip


def large_checkpoint(folder: Path) -> Path:
    """A checkpoint of zeros, large enough that its memory is not the compiler's."""
    if not folder.exists():
        wanted = tensors(families.model_of(LARGE), LARGE["vocab_size"])
        folder.mkdir(parents=True)
        shards.write(
            folder, ((t.name, np.zeros(t.shape, np.float32)) for t in wanted), shard_bytes=100_000_000
        )
        write_json(folder / "config.json", LARGE)
    return folder


PROBE = """
import sys, json
from pathlib import Path
from experiments.localise import study
print(json.dumps(study.memory_of(Path(sys.argv[1]))))
"""


def memory_of(folder: Path) -> dict[str, float]:
    """Peak of the process's own memory while a checkpoint is read, over what it held before; bytes.

    It is read once before, so that the compiler has done its work. Resident anonymous pages, looked at every
    millisecond (Linux); pages of mapped files are not the process's own.
    """
    raw = families.read_config(folder)
    settings = Config(model=families.model_of(raw)).replace(
        data={"vocab_size": families.vocabulary_of(raw)}, optimizer={"trunk": 0.0, "kind": "adamw"}
    )
    jax.block_until_ready(load_checkpoint(folder, settings)[0].params)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the compiler had goes back to the system (glibc)
    before, seen, done = _own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            seen[0] = max(seen[0], _own_memory())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    state, _ = load_checkpoint(folder, settings)
    jax.block_until_ready(state.params)
    done.set()
    watcher.join()
    peak = seen[0]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    largest = max(4 * int(np.prod(t.shape)) for t in tensors(settings.model, settings.data.vocab_size))
    return {"model_bytes": size, "peak_bytes": peak - before, "largest_tensor_bytes": largest}


def _own_memory() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def memory(folder: Path) -> dict[str, float]:
    """`memory_of` in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)], capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])

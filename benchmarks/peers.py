"""PyTorch as a peer, its attention or a training step, in a process of its own: its threads and JAX's would fight.

    python -m benchmarks.peers

reads a JSON object per line and answers with one: {"make": {…}} prepares a call under a name, {"call": name}
runs it once and says how long it took, {"drop": true} forgets all calls. The first line it says of its own
accord: PyTorch's version, or that PyTorch is missing. `Worker` is the other end. This file needs NumPy alone,
so that a Python which has PyTorch but no JAX can run it.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
MISSING = "torch is not installed (pip install '.[benchmarks]')"


class Refused(Exception):
    """A call that this machine or this library cannot serve; says why."""


def blocks_of(tokens: int, count: int) -> np.ndarray:
    """Random blocks 1 … count, one per position; the first position is the sink, block 0. int32 [T]."""
    blocks = np.random.default_rng(0).integers(1, count + 1, tokens, dtype=np.int32)
    blocks[0] = 0
    return blocks


class Worker:
    """A running `benchmarks.peers`; a context manager.

    Attributes:
      version: of PyTorch; None without it.
      cuda: whether it computes on a GPU.
      refusal: why calls are refused, if they are.
    """

    def __init__(self, python: str = sys.executable):
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.peers"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        first = self._read()
        self.version: str | None = first.get("torch")
        self.refusal: str | None = first.get("missing")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def make(self, name: str, kind: str, **sizes) -> dict[str, Any]:
        """Prepares a call; returns what there is to say about it.

        Raises:
          Refused: without PyTorch, or where PyTorch does not serve it.
        """
        if self.refusal:
            raise Refused(self.refusal)
        return self._ask({"make": {"name": name, "kind": kind, **sizes}})

    def call(self, name: str) -> float:
        """Seconds of one call."""
        return self._ask({"call": name})["seconds"]

    def drop(self) -> None:
        """Forgets all calls, and frees their memory."""
        if not self.refusal:
            self._ask({"drop": True})

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        answer = self._read()
        if "error" in answer:
            raise Refused(answer["error"])
        return answer

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"benchmarks: the PyTorch worker ended with status {self.process.wait()}")
        return json.loads(line)


def serve() -> None:
    """Answers requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever PyTorch and its compilers print must not come between the answers

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")

    try:
        import torch
    except ImportError:
        say({"missing": MISSING})
        return
    torch.set_num_threads(_cores())
    torch.manual_seed(0)
    say({"torch": torch.__version__, "threads": torch.get_num_threads()})
    calls: dict[str, Callable[[], Any]] = {}
    kinds: dict[str, Callable] = {"sdpa": _sdpa, "flex": _flex, "llama": _llama}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "make" in request:
                wanted = request["make"]
                name, kind = wanted.pop("name"), wanted.pop("kind")
                calls[name], about = kinds[kind](torch, **wanted)
                say(about)
            elif "call" in request:
                say({"seconds": _seconds(calls[request["call"]])})
            else:
                calls.clear()
                say({})
        except (
            Exception
        ) as error:  # the other end decides; a worker that dies would take the other peers along
            say({"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"})


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(call: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _random(torch, device: str, dtype: str, *shape: int, gradient: bool = False):
    return torch.randn(shape, device=device, dtype=getattr(torch, dtype), requires_grad=gradient)


def _sdpa(
    torch,
    *,
    batch: int,
    heads: int,
    size: int,
    tokens: int,
    keys: int,
    gradient: bool,
    dtype: str,
    device: str,
):
    """`scaled_dot_product_attention`: causal, or one query that sees every key."""
    shapes = [(batch, heads, length, size) for length in (tokens, keys, keys)]
    q, k, v = (_random(torch, device, dtype, *shape, gradient=gradient) for shape in shapes)
    w = _random(torch, device, dtype, *shapes[0])
    attention = torch.nn.functional.scaled_dot_product_attention

    def call():
        with torch.set_grad_enabled(gradient):
            out = attention(q, k, v, is_causal=tokens == keys)
            return (out, *torch.autograd.grad(out, (q, k, v), w)) if gradient else out

    return _finished(torch, device, call), {}


def _finished(torch, device: str, call):
    """The call, and waiting for its end."""

    def run():
        found = call()
        if device == "cuda":
            torch.cuda.synchronize()
        return found

    return run


def _flex(
    torch, *, batch: int, heads: int, size: int, tokens: int, blocks: int, window: int, gradient: bool, dtype: str,
    device: str,
):  # fmt: skip
    """Compiled FlexAttention over the open pairs, in the order of positions that is faster for it.

    On CPU it has no backward. Making the mask and sorting the positions by block are not part of its time.
    """
    from torch.nn.attention.flex_attention import create_block_mask

    q, k, v, w = (
        _random(torch, device, dtype, batch, heads, tokens, size, gradient=gradient and i < 3)
        for i in range(4)
    )
    block = torch.from_numpy(blocks_of(tokens, blocks)).to(device)
    compiled, is_open, order_of, block_of = _flex_program(torch, tokens, window, device)

    def arranged(order):
        order_of.copy_(order)
        block_of.copy_(block[order])
        mask = create_block_mask(is_open, None, None, tokens, tokens, device=device)
        kept = order_of.clone(), block_of.clone()

        def call():
            order_of.copy_(kept[0])  # the mask of single pairs reads them
            block_of.copy_(kept[1])
            with torch.set_grad_enabled(gradient):
                out = compiled(q, k, v, block_mask=mask)
                return (out, *torch.autograd.grad(out, (q, k, v), w)) if gradient else out

        return _finished(torch, device, call)

    ways = {
        "in order": arranged(torch.arange(tokens, device=device)),
        "by block": arranged(torch.argsort(block, stable=True)),
    }
    seconds = {}
    for name, call in ways.items():
        call()  # compiles
        seconds[name] = min(_seconds(call) for _ in range(2))
    best = min(ways, key=lambda name: seconds[name])
    return ways[best], {"positions": best}


@functools.cache
def _flex_program(torch, tokens: int, window: int, device: str):
    """FlexAttention, compiled once for all blocks: which pairs are open it reads from two tensors."""
    from torch.nn.attention.flex_attention import flex_attention

    position, block = (torch.zeros(tokens, dtype=torch.int32, device=device) for _ in range(2))

    def is_open(_batch, _head, i, j):
        gap = position[i] - position[j]
        return (gap >= 0) & ((block[i] == block[j]) | (block[j] == 0) | (gap < window))

    return torch.compile(flex_attention, dynamic=False), is_open, position, block


def _llama(torch, *, part: str, sizes: dict[str, Any]):
    """The Llama class of Hugging Face's transformers: "forward", "gradient" or "step" with AdamW, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    s = sizes
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=s["vocabulary"], hidden_size=s["width"], intermediate_size=s["hidden"],
            num_hidden_layers=s["layers"], num_attention_heads=s["heads"], num_key_value_heads=s["heads"],
            max_position_embeddings=s["context"], tie_word_embeddings=True, use_cache=False,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    tokens, targets = torch.randint(0, s["vocabulary"], (2, s["batch"], s["context"]))

    def loss():
        logits = model(input_ids=tokens).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def forward():
        with torch.no_grad():
            return float(loss())

    def gradient():
        model.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        return float(value)

    def step():
        value = gradient()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return value

    about = {"parameters": sum(p.numel() for p in model.parameters())}
    return {"forward": forward, "gradient": gradient, "step": step}[part], about


if __name__ == "__main__":
    serve()

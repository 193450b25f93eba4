"""Configuration: `ml_collections` for config files, validated frozen dataclasses everywhere else.

Each field is declared once, with its default, range and meaning (`ranges`), from which help and reference pages are
made; what relates two fields is in `_relations` of its section. `default()` returns a locked `ConfigDict` for config
files and flags; `resolve()` turns one back into dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from localist_jax.ranges import ConfigSection, Relation, build, choice, flag, number, share, text

COSTS = ("prequential", "bic", "fixed")
MODES = ("any", "fixed", "schedule")
PATTERNS = ("learned", "closed", "own")


@dataclasses.dataclass(frozen=True)
class Data(ConfigSection, path="data"):
    """The corpus, and how it is cut into tokens and batches."""

    corpus: str = text("python-docs", "a name that data.corpora knows, or a file or folder")
    path: str = text("", "folder of the named corpus; empty: $LOCALIST_DATA/<corpus>")
    field: str = text("text", "the field of a record that holds the text")
    vocab_size: int = number(
        4096,
        "size of the byte-level BPE trained on the corpus, including 256 bytes and special tokens",
        least=260,
        most=2**24,
    )
    tokenizer: str = text("", "a tokenizer.json to use, as adopted models do; empty: train one")
    context: int = number(256, "tokens per row", least=8, most=2**24)
    batch: int = number(16, "rows per step, over all devices", least=1, most=2**24)
    shuffle: bool = flag(True, "whether to shuffle rows; off: in the order of the text, as a stream")
    valid_fraction: float = share(
        0.05, "share held out for validation if the corpus has no split", above=0, below=1
    )
    valid_rows: int = number(128, "rows used by an evaluation; 0: all", least=0)


@dataclasses.dataclass(frozen=True)
class RopeScaling(ConfigSection, path="model.rope_scaling"):
    """The scaling of rotary frequencies for contexts longer than the original one."""

    kind: str = choice(
        "none", "linear divides all by `factor`, llama3 the slow ones", "none", "linear", "llama3"
    )
    factor: float = number(1.0, "divisor of frequencies", least=1, most=1e6)
    low: float = number(
        1.0, "llama3: a frequency with fewer turns within `context` is slow", above=0, most=1e6
    )
    high: float = number(4.0, "llama3: a frequency with more turns is fast", above=0, most=1e6)
    context: int = number(8192, "llama3: the original context, in tokens", least=1)

    def _relations(self) -> Iterator[Relation]:
        pair = (self.low, self.high)
        yield self.low < self.high, "low, high", "low < high", pair


@dataclasses.dataclass(frozen=True)
class Model(ConfigSection, path="model"):
    """The shape of the transformer; letters as in `types`."""

    layers: int = number(
        4, "L, number of layers, at least one on either side of the router", least=2, most=10_000
    )
    width: int = number(192, "D, width of the model", least=1, most=2**20)
    heads: int = number(6, "N, number of query heads", least=1, most=2**14)
    kv_heads: int = number(6, "G, number of key/value heads", least=1, most=2**14)
    head_size: int = number(32, "H, size of a head; even, for rotary pairs", least=2, most=2**14)
    feed_forward: int = number(512, "F, hidden width of the feed-forward", least=1, most=2**24)
    router_layer: int = number(
        1, "layers before it are perception layers, the others are localist", least=1, most=10_000
    )
    router_bias: bool = flag(
        False, "whether the router has a bias for each block, which a calibrated model needs"
    )
    router_cells: int = number(
        0,
        "cells that the router tells apart, each of which belongs to a block; 0: one for each block",
        least=0,
        most=2**16,
    )
    blocks: int = number(
        16, "blocks in use at the start, including block 0 (sink and background)", least=1, most=2**16
    )
    block_capacity: int = number(16, "K, number of blocks allocated", least=1, most=2**16)
    block_units: int = number(32, "U, localist units of each block; 0: none", least=0, most=2**20)
    generations: int = number(
        1,
        "blocks in a line of descent whose units are summed; recruitment needs 2 or more",
        least=1,
        most=1000,
    )
    dialled_units: bool = flag(False, "whether units are weighted by λ, so that they are absent at λ=0")
    anchor_capacity: int = number(16, "anchor tokens per block", least=1, most=2**20)
    background: bool = flag(False, "whether the router may choose block 0, which is open to all queries")
    neighbours: int = number(
        0, "a control: blocks are runs of this many positions; 0: blocks are routed", least=0, most=2**24
    )
    filings: int = number(
        1, "2: a key/value head may file a key under the block of the position before it", least=1, most=2
    )
    sink: int = number(
        1, "first positions of a text, which are in block 0 and open to all later ones", least=1, most=2**16
    )
    window: int = number(
        8, "always-open window of localist layers, in positions; 1: the position itself", least=1, most=2**24
    )
    perception_window: int = number(
        0, "window of perception layers, in positions; 0: dense", least=0, most=2**24
    )
    perception_dialled: bool = flag(
        False, "whether perception layers are dense at λ=0; else they have their window at every λ"
    )
    delta_rank: int = number(
        0, "rank of deltas on q, k, v, o of localist layers, weighted by λ; 0: none", least=0, most=2**14
    )
    qk_norm: bool = flag(True, "whether queries and keys are normalised in each head, which T5 needs")
    qkv_bias: bool = flag(False, "whether queries, keys and values have biases, before the norm")
    rope_base: float = number(10_000.0, "base of the rotary frequencies", least=1, most=1e12)
    rope_scaling: RopeScaling = RopeScaling()
    unturned_every: int = number(
        0, "n: every n-th layer has no rotary positions; 0: all have them", least=0, most=10_000
    )
    tied: bool = flag(True, "whether logits use the embedding matrix; else a separate one")
    norm_eps: float = number(1e-6, "ε, added to the mean square in norms", above=0, most=1)
    dtype: str = choice(
        "float32", "dtype of activations; float64 needs JAX_ENABLE_X64=1", "bfloat16", "float32", "float64"
    )
    remat: bool = flag(False, "whether to recompute activations in the backward pass")

    def _relations(self) -> Iterator[Relation]:
        divides, even = self.heads % self.kv_heads == 0, self.head_size % 2 == 0
        least, most = (1 if self.background else 2), self.block_capacity
        fits = least <= self.blocks <= most
        below = f"1 … layers-1 = {self.layers - 1}"
        yield self.router_layer < self.layers, "router_layer", below, self.router_layer
        yield divides, "kv_heads", f"a divisor of heads = {self.heads}", self.kv_heads
        yield even, "head_size", "an even number (rotary pairs)", self.head_size
        yield fits, "blocks", f"{least} … block_capacity = {most}", self.blocks
        celled = self.router_cells == 0 or self.router_bias
        yield celled, "router_cells", "0, or router_bias to be on", self.router_cells


@dataclasses.dataclass(frozen=True)
class DialTraining(ConfigSection, path="dial"):
    """The dial λ in training."""

    mode: str = choice(
        "any", "any: sampled at each step; fixed: `locality`; schedule: from 0 to `locality`", *MODES
    )
    locality: float = number(1.0, "λ of `fixed`, and at the end of `schedule`", least=0, most=1, noun="λ")
    power: float = number(
        0.0, "layer ℓ of L gets λ·((ℓ+1)/L)^power; 0: the same λ everywhere", least=0, most=100
    )
    share_distributed: float = share(0.2, "share of steps at exactly λ=0 under `any`")
    share_localist: float = share(0.4, "share of steps at exactly λ=1 under `any`")
    max_log_odds: float = number(
        7.0, "under `any`, other steps draw β uniformly from [0, max_log_odds]", above=0, most=80
    )

    def _relations(self) -> Iterator[Relation]:
        shares = (self.share_distributed, self.share_localist)
        names = "share_distributed + dial.share_localist"
        yield sum(shares) <= 1, names, "shares with a sum in [0, 1]", shares


@dataclasses.dataclass(frozen=True)
class Gates(ConfigSection, path="gates"):
    """The price of attention gates. One of the two targets sets it; the other is 0."""

    pattern: str = choice(
        "learned", "learned, or a control: closed (the window alone), own (each block itself)", *PATTERNS
    )
    open_share_target: float = share(
        0.24, "share of pairs open at λ=1, met by dual ascent; 1: all; 0: use `gate_bits`"
    )
    gate_bits: float = number(
        0.0,
        "bits to describe one gate, spread over the training tokens; 0: use the target",
        least=0,
        most=1e9,
    )
    step_travel: float = number(
        6.0, "how often a useless gate could go from 1 to 0 in the price phase", least=3, most=1e6
    )
    flat_tolerance: float = number(
        0.01,
        "the price phase begins when the loss falls slower than this; 0: when it does not fall",
        least=0,
        most=1e3,
    )
    flat_window: int = number(100, "steps of the running means of the loss that are compared", least=1)
    open_at_least: float = share(0.2, "share of the steps before which the price phase does not begin")
    open_at_most: float = share(0.35, "share of the steps after which it begins at the latest")
    ramp: float = share(0.5, "share of the price phase over which the price rises", above=0)
    settle: float = share(
        0.2, "last share of the steps, in which gates only close, and only above the target; 0: none", below=1
    )

    def _relations(self) -> Iterator[Relation]:
        targets, opening = (self.open_share_target, self.gate_bits), (self.open_at_least, self.open_at_most)
        one = (targets[0] > 0) != (targets[1] > 0)
        yield one, "", "exactly one of open_share_target and gate_bits above 0", targets
        yield opening[0] <= opening[1], "open_at_least", "open_at_least ≤ open_at_most", opening


@dataclasses.dataclass(frozen=True)
class RouterTraining(ConfigSection, path="router"):
    """The router's terms of the training loss."""

    noise: float = number(
        0.3, "scale of the Gumbel noise on the router's logits in training; 0: none", least=0, most=100
    )
    usage_floor: float = share(0.2, "share of a block, times K, below which a penalty applies; 0: never")
    usage_weight: float = number(
        1.0, "weight of log-usage below the floor, nats per token; 0: no floor", least=0, most=1e3
    )
    doubt_weight: float = number(
        0.02, "weight of the router's entropy, so that it becomes certain; 0: none", least=0, most=1e3
    )
    switching_weight: float = number(
        0.0,
        "weight of neighbours in different blocks, so that blocks outlast words; 0: none",
        least=0,
        most=1e3,
    )


@dataclasses.dataclass(frozen=True)
class Optimizer(ConfigSection, path="optimizer"):
    """The optimizer of everything but the gates, with warm-up and cosine decay."""

    kind: str = choice(
        "muon", "optimizer of the layers' matrices: muon (orthogonalised momentum) or adamw", "adamw", "muon"
    )
    learning_rate: float = number(3e-3, "peak learning rate, after the warm-up", above=0, most=10)
    warmup: float = share(0.05, "share of the steps over which the learning rate rises; 0: one step", below=1)
    final: float = share(0.1, "last learning rate, as a share of the peak; 0: it decays to 0")
    weight_decay: float = number(
        0.1, "decay of weights per step at learning rate 1; 0: none", least=0, most=10
    )
    b1: float = share(0.9, "decay of AdamW's mean of gradients; 0: no mean", below=1)
    b2: float = share(0.99, "decay of AdamW's mean of squares; 0: no mean", below=1)
    clip_norm: float = number(
        1.0, "largest global norm of the gradient, to which larger ones are clipped", above=0, most=1e9
    )
    unit_price: float = number(
        0.0, "group penalty ‖·‖₂ on each localist unit, nats per token; 0: none", least=0, most=1e3
    )
    trunk: float = share(1.0, "learning-rate multiplier of the pretrained weights; 0: frozen")


@dataclasses.dataclass(frozen=True)
class Recruitment(ConfigSection, path="recruitment"):
    """The recruitment of blocks: when it is tried, and the evidence that it needs."""

    every: int = number(0, "steps between the end of a trial and the next survey; 0: no recruitment", least=0)
    start: float = share(0.1, "share of the steps before the first trial; 0: at once")
    stop: float = share(0.9, "share of the steps after which no trial begins; 0: no trial at all")
    horizon: int = number(40, "steps of a trial", least=1)
    candidates: int = number(
        1, "number of ways to divide a block that are tried side by side", least=1, most=1000
    )
    placebos: int = number(
        16, "random divisions compared with each; at least 2, to know their spread", least=2, most=10_000
    )
    survey: int = number(
        8, "batches that proposals are made from, and batches of a pilot", least=1, most=2**20
    )
    alpha: float = number(
        0.05, "probability of any false recruitment", above=0, below=1, noun="a probability"
    )
    cost: str = choice("prequential", "cost model of a candidate's parameters", *COSTS)
    bits_per_parameter: float = number(
        0.0, "cost of a parameter under `fixed`; 0 for the other models", least=0, most=1e6
    )
    blocks_at_most: int = number(64, "largest capacity that recruitment may grow to", least=1, most=2**16)

    def _relations(self) -> Iterator[Relation]:
        yield self.start <= self.stop, "start", "start ≤ stop", (self.start, self.stop)
        yield _cost_relation(self)


def _cost_relation(section: Recruitment | Hierarchy) -> Relation:
    bits, cost = section.bits_per_parameter, section.cost
    expected = "above 0 for the cost model `fixed`, 0 for the others"
    return (bits > 0) == (cost == "fixed"), "bits_per_parameter", expected, bits


@dataclasses.dataclass(frozen=True)
class Hierarchy(ConfigSection, path="hierarchy"):
    """The recruitment of whole LLMs into an ensemble; batches are those of the stream, a document per row."""

    base: str = text("", "folder of a run whose model and tokenizer to begin with; empty: a fresh LLM")
    capacity: int = number(4, "LLMs allocated at the start; doubles when full", least=1, most=2**16)
    members_at_most: int = number(64, "largest number of LLMs", least=1, most=2**16)
    batches: int = number(
        0, "length of the stream; 0: the whole corpus; `train.steps` is the schedule of each LLM", least=0
    )
    every: int = number(
        0, "batches between trials, doubled if no new domain appears; 0: no recruitment", least=0
    )
    start: int = number(40, "batches before the first survey; 0: at once", least=0)
    survey: int = number(
        16,
        "batches of documents that a member remembers, from which divisions are proposed",
        least=1,
        most=2**20,
    )
    smallest: int = number(12, "least number of documents on either side of a division", least=1)
    horizon: int = number(256, "documents that both sides of a trial need", least=1)
    patience: int = number(
        400, "batches after which a trial that has not reached its horizon is abandoned", least=1
    )
    placebos: int = number(
        8,
        "random divisions compared with the candidate; at least 2, to know their spread",
        least=2,
        most=10_000,
    )
    alpha: float = number(
        0.05, "probability of any false recruitment", above=0, below=1, noun="a probability"
    )
    cost: str = choice("prequential", "cost model of an LLM's parameters", *COSTS)
    bits_per_parameter: float = number(
        0.0, "cost of a parameter under `fixed`; 0 for the other models", least=0, most=1e6
    )

    def _relations(self) -> Iterator[Relation]:
        yield _cost_relation(self)


@dataclasses.dataclass(frozen=True)
class Train(ConfigSection, path="train"):
    """The length of a run, and what it writes."""

    steps: int = number(1000, "number of training steps", least=1)
    seed: int = number(0, "random seed of parameters, noise and the order of rows", least=0, most=2**32 - 1)
    log_every: int = number(20, "steps between two log records", least=1)
    eval_every: int = number(
        250, "steps between two evaluations, with one more at the end; 0: no evaluation", least=0
    )
    save_every: int = number(250, "steps between two checkpoints, with one more at the end", least=1)
    keep: int = number(2, "number of checkpoints kept", least=1)


@dataclasses.dataclass(frozen=True)
class Mesh(ConfigSection, path="mesh"):
    """The sizes of the mesh axes, slowest network first; −1 takes the devices that are left."""

    slice: int = number(
        1,
        "TPU slices joined by the data-centre network, over which rows of a batch are split",
        least=1,
        besides=-1,
    )
    specialist: int = number(1, "groups of devices, each with its own specialist LLM", least=1, besides=-1)
    data: int = number(-1, "splits rows of a batch; parameters are replicated", least=1, besides=-1)
    fsdp: int = number(
        1,
        "splits rows of a batch, and parameters by their width; these are gathered for use",
        least=1,
        besides=-1,
    )
    tensor: int = number(1, "splits heads, hidden units, vocabulary and blocks", least=1, besides=-1)


@dataclasses.dataclass(frozen=True)
class Config(ConfigSection):
    """Everything that defines a run."""

    data: Data = Data()
    model: Model = Model()
    dial: DialTraining = DialTraining()
    gates: Gates = Gates()
    router: RouterTraining = RouterTraining()
    optimizer: Optimizer = Optimizer()
    recruitment: Recruitment = Recruitment()
    hierarchy: Hierarchy = Hierarchy()
    train: Train = Train()
    mesh: Mesh = Mesh()

    def _relations(self) -> Iterator[Relation]:
        m, recruits, others = self.model, self.recruitment.every > 0, max(1, self.model.blocks - 1)
        covers = not 0 < m.neighbours * others < self.data.context
        runs = f"runs of at least {-(-self.data.context // others)} positions to cover the context"
        yield covers, "model.neighbours", runs, m.neighbours
        units = "at least 1 where recruitment is on, since units set a new block apart"
        yield not recruits or m.block_units > 0, "model.block_units", units, m.block_units
        line = "at least 2 where recruitment is on, since a new block adds units to its parent's"
        yield not recruits or m.generations > 1, "model.generations", line, m.generations

    def to_dict(self) -> dict[str, Any]:
        """Return a nested dictionary that JSON can hold."""
        return dataclasses.asdict(self)

    def replace(self, **sections: dict[str, Any]) -> Config:
        """Return a copy with some fields of some sections changed: `config.replace(train={"steps": 3})`."""
        changed = {k: dataclasses.replace(getattr(self, k), **v) for k, v in sections.items()}
        return dataclasses.replace(self, **changed)


def default() -> ConfigDict:
    """Return the defaults as a locked `ConfigDict`, with which every config file begins."""
    return ConfigDict(Config().to_dict()).lock()


def resolve(raw: ConfigDict | dict[str, Any]) -> Config:
    """Validate a config and freeze it.

    Args:
      raw: nested mapping; missing sections and fields take their defaults.

    Raises:
      ValueError: for an unknown key (names the nearest known one), a wrong type, or a value out of range.

    >>> resolve({"model": {"layer": 3}})
    Traceback (most recent call last):
    ...
    ValueError: config.model.layer: unknown key; did you mean 'layers'?
    """
    mapping = raw.to_dict() if isinstance(raw, ConfigDict) else raw
    return build(Config, mapping, "config")

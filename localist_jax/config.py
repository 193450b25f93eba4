"""Configuration: `ml_collections` at the edge, validated frozen dataclasses inside.

The dataclasses below are the only place where a default, a range and a meaning stand (see `ranges`). `default()` turns
them into a locked `ConfigDict` for config files and flags; `resolve()` turns one back, once, at the edge.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from localist_jax.ranges import build, check, choice, flag, number, require, share, text

COSTS = ("prequential", "bic", "fixed")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read, and how it is cut into tokens and batches."""

    corpus: str = text("python-docs", "a known name (see data.corpora), or a file or folder")
    path: str = text("", "where the named corpus lies; empty: $LOCALIST_DATA/<corpus>")
    field: str = text("text", "the field of a record that holds the text")
    vocab_size: int = number(
        4096,
        "of the byte-level BPE trained on the corpus, its 256 bytes and the specials included",
        least=260,
        most=2**24,
    )
    tokenizer: str = text("", "a tokenizer.json to use instead, as adopted models do; empty: one is trained")
    context: int = number(256, "tokens per row", least=8, most=2**24)
    batch: int = number(16, "rows per step, over all devices", least=1, most=2**24)
    shuffle: bool = flag(True, "off: rows come in the order of the text, as a stream does")
    valid_fraction: float = share(0.05, "held out where the corpus has no split of its own", above=0, below=1)
    valid_rows: int = number(128, "rows used by an evaluation; 0: all of them", least=0)

    def __post_init__(self):
        check(self, "data")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those first trained at."""

    kind: str = choice(
        "none", "linear: all by `factor`; llama3: the slow ones by `factor`, the fast ones not at all",
        "none", "linear", "llama3",
    )  # fmt: skip
    factor: float = number(1.0, "by which frequencies are divided", least=1, most=1e6)
    low: float = number(
        1.0, "llama3: turns within `context` below which a frequency is slow", above=0, most=1e6
    )
    high: float = number(4.0, "llama3: turns above which it is fast", above=0, most=1e6)
    context: int = number(8192, "llama3: tokens first trained at", least=1)

    def __post_init__(self):
        check(self, "model.rope_scaling")
        require(self.low < self.high, "model.rope_scaling.low, high", "low < high", (self.low, self.high))


@dataclasses.dataclass(frozen=True)
class Model:
    """Shape of the transformer; letters as in `types`."""

    layers: int = number(4, "L: one before the router and one behind it at least", least=2, most=10_000)
    width: int = number(192, "D", least=1, most=2**20)
    heads: int = number(6, "N", least=1, most=2**14)
    kv_heads: int = number(6, "G", least=1, most=2**14)
    head_size: int = number(32, "H, even: rotary pairs", least=2, most=2**14)
    feed_forward: int = number(512, "F", least=1, most=2**24)
    router_layer: int = number(
        1, "layers below it are perception, the others are localist", least=1, most=10_000
    )
    router_bias: bool = flag(False, "a bias for each block: the router of a calibrated model needs one")
    blocks: int = number(
        16, "blocks in use at the start, block 0 (sink and background) included", least=1, most=2**16
    )
    block_capacity: int = number(16, "K: blocks allocated", least=1, most=2**16)
    block_units: int = number(32, "U; 0: no localist units", least=0, most=2**20)
    generations: int = number(
        1, "blocks in a line of descent whose units add up; recruiting needs 2 or more", least=1, most=1000
    )
    dialled_units: bool = flag(False, "units weigh λ of their layer, so that λ=0 is the model without them")
    anchor_capacity: int = number(16, "anchor tokens per block", least=1, most=2**20)
    background: bool = flag(False, "may the router send positions to block 0, which everyone sees?")
    neighbours: int = number(
        0, "a control: blocks are runs of so many positions, not routed; 0: routed", least=0, most=2**24
    )
    filings: int = number(
        1, "2: a key/value head may file keys under the block of the position before them", least=1, most=2
    )
    sink: int = number(
        1, "first positions of a text, in block 0: every later one reads them", least=1, most=2**16
    )
    window: int = number(
        8, "always-open local window of localist layers; 1: the position itself", least=1, most=2**24
    )
    perception_window: int = number(0, "of perception layers; 0: dense", least=0, most=2**24)
    perception_dialled: bool = flag(
        False, "perception layers are dense at λ=0 and have their window at λ=1; else at every λ"
    )
    delta_rank: int = number(
        0, "rank of deltas on q, k, v, o of localist layers, which weigh λ; 0: none", least=0, most=2**14
    )
    qk_norm: bool = flag(
        True, "queries and keys are normed in each head, which makes T5 hold for every input"
    )
    qkv_bias: bool = flag(False, "biases of queries, keys and values; a norm comes after them")
    rope_base: float = number(10_000.0, "of the rotary frequencies", least=1, most=1e12)
    rope_scaling: RopeScaling = RopeScaling()
    unturned_every: int = number(
        0, "every so-manyth layer has no rotary positions; 0: all have them", least=0, most=10_000
    )
    tied: bool = flag(True, "logits are read off the embedding; False: a matrix of their own")
    norm_eps: float = number(1e-6, "added to the mean square that a norm divides by", above=0, most=1)
    dtype: str = choice(
        "float32", "of activations; parameters are float32. float64: for proofs, with jax_enable_x64",
        "bfloat16", "float32", "float64",
    )  # fmt: skip
    remat: bool = flag(False, "recompute activations in the backward pass")

    def __post_init__(self):
        check(self, "model")
        require(
            self.router_layer < self.layers,
            "model.router_layer",
            f"1 … layers-1 = {self.layers - 1}",
            self.router_layer,
        )
        divides = self.heads % self.kv_heads == 0
        require(divides, "model.kv_heads", f"a divisor of heads = {self.heads}", self.kv_heads)
        require(self.head_size % 2 == 0, "model.head_size", "an even number (rotary pairs)", self.head_size)
        smallest = 1 if self.background else 2
        require(
            smallest <= self.blocks <= self.block_capacity,
            "model.blocks",
            f"{smallest} … block_capacity = {self.block_capacity}",
            self.blocks,
        )


@dataclasses.dataclass(frozen=True)
class DialTraining:
    """How λ is set in training."""

    mode: str = choice(
        "any",
        "any: sampled per step; fixed: `locality`; schedule: 0 → `locality`",
        "any",
        "fixed",
        "schedule",
    )
    locality: float = number(1.0, "λ of `fixed`, end of `schedule`", least=0, most=1, noun="λ")
    power: float = number(
        0.0, "layer ℓ of L gets λ·((ℓ+1)/L)^power; 0: the same λ everywhere", least=0, most=100
    )
    share_distributed: float = share(0.2, "share of steps at exactly λ=0 under `any`")
    share_localist: float = share(0.4, "share of steps at exactly λ=1 under `any`")
    max_log_odds: float = number(
        7.0, "the steps between draw β uniformly from [0, max_log_odds]", above=0, most=80
    )

    def __post_init__(self):
        check(self, "dial")
        shares = (self.share_distributed, self.share_localist)
        names = "dial.share_distributed + dial.share_localist"
        require(sum(shares) <= 1, names, "shares with a sum in [0, 1]", shares)


@dataclasses.dataclass(frozen=True)
class Gates:
    """How attention gates are priced. One of the two targets sets the price; the other is 0."""

    pattern: str = choice(
        "learned", "or a control, fixed: closed (nothing beyond the window), own (each block itself)",
        "learned", "closed", "own",
    )  # fmt: skip
    open_share_target: float = share(
        0.24, "open pairs at λ=1 over all layers; μ by dual ascent; 1: all stay open; 0: `gate_bits` counts"
    )
    gate_bits: float = number(
        0.0, "or: description length of one gate over the training tokens, bits; 0: the target counts",
        least=0, most=1e9,
    )  # fmt: skip
    step_travel: float = number(
        6.0, "how often a useless gate could travel 1 → 0 in the price phase", least=3, most=1e6
    )
    flat_tolerance: float = number(
        0.01, "the price phase opens when the loss falls slower than this; 0: when it does not fall",
        least=0, most=1e3,
    )  # fmt: skip
    flat_window: int = number(100, "steps of the two running means that are compared", least=1)
    open_at_least: float = share(0.2, "share of the steps before which the price phase does not open")
    open_at_most: float = share(0.35, "share of the steps after which it opens at the latest")
    ramp: float = share(0.5, "share of the price phase over which μ rises", above=0)
    settle: float = share(
        0.2, "last share of the steps: gates only close, and only while above the target; 0: none", below=1
    )

    def __post_init__(self):
        check(self, "gates")
        require(
            (self.open_share_target > 0) != (self.gate_bits > 0),
            "gates",
            "exactly one of open_share_target and gate_bits above 0",
            (self.open_share_target, self.gate_bits),
        )
        opening = (self.open_at_least, self.open_at_most)
        require(opening[0] <= opening[1], "gates.open_at_least", "open_at_least ≤ open_at_most", opening)


@dataclasses.dataclass(frozen=True)
class RouterTraining:
    """What the router itself is trained on, beside the model's loss."""

    noise: float = number(
        0.3, "scale of the Gumbel noise on its logits in training; 0: none", least=0, most=100
    )
    usage_floor: float = share(
        0.2, "a block's share may fall to this part of 1/K free of charge; 0: to nothing"
    )
    usage_weight: float = number(
        1.0, "nats per token and unit of log-usage below the floor; 0: no floor", least=0, most=1e3
    )
    doubt_weight: float = number(
        0.02, "nats per token and nat of the router's own entropy: it should make up its mind; 0: it need not",
        least=0, most=1e3,
    )  # fmt: skip
    switching_weight: float = number(
        0.0, "nats per token and neighbour in another block: topics outlast words; 0: free", least=0, most=1e3
    )

    def __post_init__(self):
        check(self, "router")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Warm-up and cosine decay for everything but the gates."""

    kind: str = choice(
        "muon", "of the layers' matrices: muon (orthogonalised momentum) or adamw", "adamw", "muon"
    )
    learning_rate: float = number(3e-3, "the highest, after the warm-up", above=0, most=10)
    warmup: float = share(0.05, "share of the steps over which the learning rate rises; 0: one step", below=1)
    final: float = share(0.1, "last learning rate as a share of the highest; 0: it falls to nothing")
    weight_decay: float = number(0.1, "share of a weight that a step at learning rate 1 takes; 0: none",
                                 least=0, most=10)  # fmt: skip
    b1: float = share(0.9, "decay of AdamW's mean of gradients; 0: none is kept", below=1)
    b2: float = share(0.99, "decay of AdamW's mean of squares; 0: none is kept", below=1)
    clip_norm: float = number(
        1.0,
        "gradients of a larger global norm are shortened to it; a large one never clips",
        above=0,
        most=1e9,
    )
    unit_price: float = number(
        0.0, "nats per token: group penalty ‖·‖₂ on each localist unit; 0: free", least=0, most=1e3
    )
    trunk: float = share(1.0, "learning rate of all that any transformer has, as a share; 0: frozen")

    def __post_init__(self):
        check(self, "optimizer")


@dataclasses.dataclass(frozen=True)
class Recruitment:
    """When the model takes on blocks, and what evidence that takes."""

    every: int = number(0, "steps between the end of a trial and the next survey; 0: off", least=0)
    start: float = share(0.1, "share of the steps before the first trial; 0: it may come at once")
    stop: float = share(0.9, "share of the steps after which none is opened; 0: none at all")
    horizon: int = number(40, "steps of a trial", least=1)
    candidates: int = number(1, "ways to divide a block that are tried side by side", least=1, most=1000)
    placebos: int = number(
        16, "random divisions beside each; 2 at least, to know their spread", least=2, most=10_000
    )
    survey: int = number(8, "batches that proposals are made from, and those of a pilot", least=1, most=2**20)
    alpha: float = number(
        0.05, "chance of a false recruitment, in all", above=0, below=1, noun="a probability"
    )
    cost: str = choice("prequential", "of a candidate's parameters", *COSTS)
    bits_per_parameter: float = number(0.0, "of `fixed`; 0 for the others", least=0, most=1e6)
    blocks_at_most: int = number(64, "the capacity may double up to here", least=1, most=2**16)

    def __post_init__(self):
        check(self, "recruitment")
        phase = (self.start, self.stop)
        require(phase[0] <= phase[1], "recruitment.start", "start ≤ stop", phase)
        _check_cost(self, "recruitment")


def _check_cost(section: Any, name: str) -> None:
    require(
        (section.bits_per_parameter > 0) == (section.cost == "fixed"),
        f"{name}.bits_per_parameter",
        "above 0 for the cost model `fixed`, 0 for the others",
        section.bits_per_parameter,
    )


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """When an ensemble takes on a whole LLM; batches are those of the stream, a document per row."""

    base: str = text("", "folder of a run to begin with: its LLM, model and tokenizer; empty: a fresh LLM")
    capacity: int = number(4, "LLMs allocated to begin with; it doubles", least=1, most=2**16)
    members_at_most: int = number(64, "LLMs that the ensemble may come to", least=1, most=2**16)
    batches: int = number(
        0, "of the stream; 0: as many as the corpus has. `train.steps` is each LLM's own schedule", least=0
    )
    every: int = number(
        0, "batches between trials, twice as many where no domain seems to arrive; 0: off", least=0
    )
    start: int = number(40, "batches before the first survey; 0: none", least=0)
    survey: int = number(
        16, "batches of documents that a member remembers, to be divided", least=1, most=2**20
    )
    smallest: int = number(12, "documents on either side of a division", least=1)
    horizon: int = number(256, "documents that both sides of a trial must have had", least=1)
    patience: int = number(
        400, "batches after which a trial is abandoned that has not come to its horizon", least=1
    )
    placebos: int = number(
        8, "random divisions beside the candidate; 2 at least, to know their spread", least=2, most=10_000
    )
    alpha: float = number(
        0.05, "chance of a false recruitment, in all", above=0, below=1, noun="a probability"
    )
    cost: str = choice("prequential", "of an LLM's parameters", *COSTS)
    bits_per_parameter: float = number(0.0, "of `fixed`; 0 for the others", least=0, most=1e6)

    def __post_init__(self):
        check(self, "hierarchy")
        _check_cost(self, "hierarchy")


@dataclasses.dataclass(frozen=True)
class Train:
    """Length of a run, and what it leaves behind."""

    steps: int = number(1000, "of training, in all", least=1)
    seed: int = number(0, "of parameters, noise and the order of rows", least=0, most=2**32 - 1)
    log_every: int = number(20, "steps between two records", least=1)
    eval_every: int = number(250, "steps between two evaluations, one more at the end; 0: never", least=0)
    save_every: int = number(250, "steps between two checkpoints, one more at the end", least=1)
    keep: int = number(2, "checkpoints kept", least=1)

    def __post_init__(self):
        check(self, "train")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes, slowest network first; −1 takes the devices that are left."""

    slice: int = number(
        1, "TPU slices that only a data-centre network joins: they split rows of a batch", least=1, besides=-1
    )
    specialist: int = number(1, "groups of devices with specialist LLMs of their own", least=1, besides=-1)
    data: int = number(-1, "splits rows of a batch, and repeats parameters", least=1, besides=-1)
    fsdp: int = number(
        1,
        "splits rows of a batch, and parameters by their width: gathered where they are used",
        least=1,
        besides=-1,
    )
    tensor: int = number(1, "splits heads, hidden units, vocabulary and blocks", least=1, besides=-1)

    def __post_init__(self):
        check(self, "mesh")


@dataclasses.dataclass(frozen=True)
class Config:
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

    def __post_init__(self):
        others = max(1, self.model.blocks - 1)
        require(
            not 0 < self.model.neighbours * others < self.data.context,
            "model.neighbours",
            f"runs of at least {-(-self.data.context // others)} positions to cover the context",
            self.model.neighbours,
        )
        require(
            not self.recruitment.every or self.model.block_units > 0,
            "model.block_units",
            "at least 1 where recruitment is on: a newcomer is told by its units",
            self.model.block_units,
        )
        require(
            not self.recruitment.every or self.model.generations > 1,
            "model.generations",
            "at least 2 where recruitment is on: a newcomer adds units to its parent's",
            self.model.generations,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, ready for JSON."""
        return dataclasses.asdict(self)

    def replace(self, **sections: dict[str, Any]) -> Config:
        """A copy with some fields of some sections changed: `config.replace(train={"steps": 3})`."""
        changed = {k: dataclasses.replace(getattr(self, k), **v) for k, v in sections.items()}
        return dataclasses.replace(self, **changed)


def default() -> ConfigDict:
    """The defaults as a locked `ConfigDict`: the start of every config file."""
    return ConfigDict(Config().to_dict()).lock()


def resolve(raw: ConfigDict | dict[str, Any]) -> Config:
    """Validates a config and freezes it.

    Args:
      raw: nested mapping; sections and fields that are left out take their defaults.

    Raises:
      ValueError: unknown key (with the nearest known one), wrong type, or value out of range.

    >>> resolve({"model": {"layer": 3}})
    Traceback (most recent call last):
    ...
    ValueError: config.model.layer: unknown key; did you mean 'layers'?
    """
    mapping = raw.to_dict() if isinstance(raw, ConfigDict) else raw
    return build(Config, mapping, "config")

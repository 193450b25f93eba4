"""Configuration: `ml_collections` at the edge, validated frozen dataclasses inside.

The dataclasses below are the only place where a default stands. `default()` turns them into a
locked `ConfigDict` for config files and flags; `resolve()` turns one back, once, at the edge.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from typing import Any

from ml_collections import ConfigDict


def _require(ok: bool, field: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"config.{field}: expected {expected}, got {got!r}")


@dataclasses.dataclass(frozen=True)
class Data:
    """What is read, and how it is cut into tokens and batches."""

    corpus: str = "python-docs"  # a known name (see data.corpora), or a file or folder
    path: str = ""  # where the named corpus lies; empty: $LOCALIST_DATA/<corpus>
    field: str = "text"  # the JSONL field that holds the text
    vocab_size: int = 4096  # of the byte-level BPE trained on the corpus, specials included
    tokenizer: str = ""  # a tokenizer.json to use instead, as adopted models do; empty: one is trained
    context: int = 256  # tokens per row
    batch: int = 16  # rows per step, over all devices
    shuffle: bool = True  # off: rows come in the order of the text, as a stream does
    valid_fraction: float = 0.05  # held out where the corpus has no split of its own
    valid_rows: int = 128  # rows used by an evaluation; 0: all of them

    def __post_init__(self):
        _require(
            self.vocab_size >= 260, "data.vocab_size", "at least 260 (256 bytes + specials)", self.vocab_size
        )
        _require(self.context >= 8, "data.context", "at least 8 tokens", self.context)
        _require(self.batch >= 1, "data.batch", "at least 1", self.batch)
        _require(0 < self.valid_fraction < 1, "data.valid_fraction", "a share in (0, 1)", self.valid_fraction)
        _require(self.valid_rows >= 0, "data.valid_rows", "0 (all) or more", self.valid_rows)


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for contexts longer than those first trained at."""

    kind: str = "none"  # linear: all by `factor`; llama3: the slow ones by `factor`, the fast ones not at all
    factor: float = 1.0
    low: float = 1.0  # llama3: turns within `context` below which a frequency is slow …
    high: float = 4.0  # … and above which it is fast
    context: int = 8192  # llama3: tokens first trained at

    def __post_init__(self):
        field = "model.rope_scaling"
        _require(
            self.kind in ("none", "linear", "llama3"), f"{field}.kind", "none, linear or llama3", self.kind
        )
        _require(self.factor >= 1, f"{field}.factor", "at least 1", self.factor)
        _require(0 < self.low < self.high, f"{field}.low, high", "0 < low < high", (self.low, self.high))
        _require(self.context >= 1, f"{field}.context", "at least 1 token", self.context)


@dataclasses.dataclass(frozen=True)
class Model:
    """Shape of the transformer; letters as in `types`."""

    layers: int = 4  # L
    width: int = 192  # D
    heads: int = 6  # N
    kv_heads: int = 6  # G
    head_size: int = 32  # H
    feed_forward: int = 512  # F
    router_layer: int = 1  # layers below it are perception, the others are localist
    router_bias: bool = False  # a bias for each block: the router of a calibrated model needs one
    blocks: int = 16  # blocks in use at the start, block 0 (sink and background) included
    block_capacity: int = 16  # K: blocks allocated
    block_units: int = 32  # U; 0: no localist units
    generations: int = 1  # blocks in a line of descent whose units add up; recruited blocks need 2 or more
    dialled_units: bool = False  # units weigh λ of their layer, so that λ=0 is the model without them
    anchor_capacity: int = 16  # anchor tokens per block
    background: bool = False  # may the router send positions to block 0, which everyone sees?
    neighbours: int = 0  # a control: blocks are runs of so many positions, not routed; 0: routed
    filings: int = 1  # 2: a key/value head may file keys under the block of the position before them
    sink: int = 1  # first positions of a text, in block 0: every later one reads them
    window: int = 8  # always-open local window of localist layers; 1: the position itself
    perception_window: int = 0  # of perception layers; 0: dense
    perception_dialled: bool = (
        False  # perception layers are dense at λ=0 and have their window at λ=1; else at every λ
    )
    delta_rank: int = 0  # rank of low-rank deltas on q, k, v and o of localist layers, which weigh λ; 0: none
    qk_norm: bool = True
    qkv_bias: bool = False  # of queries, keys and values; a norm comes after it
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling = RopeScaling()
    unturned_every: int = 0  # every so-manyth layer has no rotary positions; 0: all have them
    tied: bool = True  # logits are read off the embedding; False: a matrix of their own
    norm_eps: float = 1e-6
    dtype: str = "float32"  # of activations; parameters are float32
    remat: bool = False  # recompute activations in the backward pass

    def __post_init__(self):
        _require(self.layers >= 1, "model.layers", "at least 1", self.layers)
        _require(
            1 <= self.router_layer < self.layers or self.layers == self.router_layer == 1,
            "model.router_layer",
            f"1 … layers-1 = {self.layers - 1}",
            self.router_layer,
        )
        _require(
            self.heads % self.kv_heads == 0,
            "model.kv_heads",
            f"a divisor of heads = {self.heads}",
            self.kv_heads,
        )
        _require(self.head_size % 2 == 0, "model.head_size", "an even number (rotary pairs)", self.head_size)
        smallest = 1 if self.background else 2
        _require(
            smallest <= self.blocks <= self.block_capacity,
            "model.blocks",
            f"{smallest} … block_capacity = {self.block_capacity}",
            self.blocks,
        )
        _require(self.unturned_every >= 0, "model.unturned_every", "0 (none) or more", self.unturned_every)
        _require(self.generations >= 1, "model.generations", "at least 1", self.generations)
        _require(self.neighbours >= 0, "model.neighbours", "0 (routed) or more", self.neighbours)
        _require(self.filings in (1, 2), "model.filings", "1 or 2", self.filings)
        _require(self.sink >= 1, "model.sink", "at least 1 position", self.sink)
        _require(self.delta_rank >= 0, "model.delta_rank", "0 (none) or more", self.delta_rank)
        _require(self.window >= 1, "model.window", "at least 1 (the position itself)", self.window)
        _require(
            self.perception_window >= 0,
            "model.perception_window",
            "0 (dense) or more",
            self.perception_window,
        )
        _require(
            self.dtype in ("bfloat16", "float32", "float64"),
            "model.dtype",
            "bfloat16, float32 or (for proofs, with jax_enable_x64) float64",
            self.dtype,
        )


@dataclasses.dataclass(frozen=True)
class Dial:
    """How λ is set in training."""

    mode: str = "any"  # any: sampled per step; fixed: `locality`; schedule: 0 → `locality`
    locality: float = 1.0  # λ of `fixed`, end of `schedule`
    power: float = 0.0  # layer ℓ of L gets λ·((ℓ+1)/L)^power; 0: the same λ everywhere
    share_distributed: float = 0.2  # share of steps at exactly λ=0 under `any`
    share_localist: float = 0.4  # share of steps at exactly λ=1 under `any`
    max_log_odds: float = 7.0  # the steps between draw β uniformly from [0, max_log_odds]

    def __post_init__(self):
        _require(self.mode in ("any", "fixed", "schedule"), "dial.mode", "any, fixed or schedule", self.mode)
        _require(0 <= self.locality <= 1, "dial.locality", "λ in [0, 1]", self.locality)
        _require(self.power >= 0, "dial.power", "0 or more", self.power)
        _require(
            min(self.share_distributed, self.share_localist) >= 0
            and self.share_distributed + self.share_localist <= 1,
            "dial.share_distributed + dial.share_localist",
            "shares with a sum in [0, 1]",
            (self.share_distributed, self.share_localist),
        )
        _require(self.max_log_odds > 0, "dial.max_log_odds", "above 0", self.max_log_odds)


@dataclasses.dataclass(frozen=True)
class Gates:
    """How attention gates are priced. One of the two targets sets the price; the other is 0."""

    pattern: str = (
        "learned"  # or a control, fixed: closed (nothing beyond the window), own (each block itself)
    )
    open_share_target: float = 0.24  # open pairs at λ=1 over all layers; μ by dual ascent; 1: all stay open
    gate_bits: float = 0.0  # or: description length of one gate over the training tokens, bits
    step_travel: float = 6.0  # how often a useless gate could travel 1 → 0 in the price phase
    flat_tolerance: float = 0.01  # the price phase opens when the loss falls slower than this
    flat_window: int = 100  # steps of the two running means that are compared
    open_at_least: float = 0.2  # … but not before this share of the steps
    open_at_most: float = 0.35  # … and at the latest after this share
    ramp: float = 0.5  # share of the price phase over which μ rises
    settle: float = 0.2  # last share of the steps: gates only close, and only while above the target

    def __post_init__(self):
        _require(
            self.pattern in ("learned", "closed", "own"),
            "gates.pattern",
            "learned, closed or own",
            self.pattern,
        )
        _require(
            (self.open_share_target > 0) != (self.gate_bits > 0),
            "gates",
            "exactly one of open_share_target and gate_bits above 0",
            (self.open_share_target, self.gate_bits),
        )
        _require(
            0 <= self.open_share_target <= 1,
            "gates.open_share_target",
            "a share in [0, 1]",
            self.open_share_target,
        )
        _require(self.step_travel >= 3, "gates.step_travel", "at least 3", self.step_travel)
        _require(
            0 <= self.open_at_least <= self.open_at_most <= 1,
            "gates.open_at_least",
            "0 ≤ open_at_least ≤ open_at_most ≤ 1",
            (self.open_at_least, self.open_at_most),
        )
        _require(0 < self.ramp <= 1, "gates.ramp", "a share in (0, 1]", self.ramp)
        _require(0 <= self.settle < 1, "gates.settle", "a share in [0, 1)", self.settle)


@dataclasses.dataclass(frozen=True)
class Router:
    """What the router itself is trained on, beside the model's loss."""

    noise: float = 0.3  # scale of the Gumbel noise on its logits in training
    usage_floor: float = 0.2  # a block's share may fall to this part of 1/K free of charge
    usage_weight: float = 1.0  # nats per token and unit of log-usage below the floor
    doubt_weight: float = (
        0.02  # nats per token and nat of the router's own entropy: it should make up its mind
    )
    switching_weight: float = 0.0  # nats per token and neighbour in another block: topics outlast words

    def __post_init__(self):
        _require(self.noise >= 0, "router.noise", "0 or more", self.noise)
        _require(0 <= self.usage_floor <= 1, "router.usage_floor", "a share in [0, 1]", self.usage_floor)
        _require(self.switching_weight >= 0, "router.switching_weight", "0 or more", self.switching_weight)


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """Warm-up and cosine decay for everything but the gates."""

    kind: str = "muon"  # of the layers' matrices: muon (orthogonalised momentum) or adamw
    learning_rate: float = 3e-3
    warmup: float = 0.05  # share of the steps
    final: float = 0.1  # last learning rate as a share of the first
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.99
    clip_norm: float = 1.0
    unit_price: float = 0.0  # nats per token: group penalty ‖·‖₂ on each localist unit
    trunk: float = 1.0  # learning rate of all that any transformer has, as a share; 0: frozen

    def __post_init__(self):
        _require(self.kind in ("adamw", "muon"), "optimizer.kind", "adamw or muon", self.kind)
        _require(self.learning_rate > 0, "optimizer.learning_rate", "above 0", self.learning_rate)
        _require(0 <= self.warmup < 1, "optimizer.warmup", "a share in [0, 1)", self.warmup)
        _require(0 <= self.trunk <= 1, "optimizer.trunk", "a share in [0, 1]", self.trunk)


@dataclasses.dataclass(frozen=True)
class Recruitment:
    """When the model takes on blocks, and what evidence that takes."""

    every: int = 0  # steps between the end of a trial and the next survey; 0: off
    start: float = 0.1  # share of the steps before the first trial
    stop: float = 0.9  # share of the steps after which none is opened
    horizon: int = 40  # steps of a trial
    candidates: int = 1  # ways to divide a block that are tried side by side
    placebos: int = 16  # random divisions beside each
    survey: int = 8  # batches that proposals are made from, and those of a pilot
    alpha: float = 0.05  # chance of a false recruitment, in all
    cost: str = "prequential"  # of a candidate's parameters: prequential, bic or fixed
    bits_per_parameter: float = 0.0  # of `fixed`
    blocks_at_most: int = 64  # the capacity may double up to here

    def __post_init__(self):
        _require(self.every >= 0, "recruitment.every", "0 (off) or more", self.every)
        for name in ("horizon", "candidates", "survey"):
            _require(getattr(self, name) >= 1, f"recruitment.{name}", "at least 1", getattr(self, name))
        _require(
            self.placebos >= 2, "recruitment.placebos", "at least 2, to know their spread", self.placebos
        )
        _require(
            0 <= self.start <= self.stop <= 1,
            "recruitment.start",
            "0 ≤ start ≤ stop ≤ 1",
            (self.start, self.stop),
        )
        _require(0 < self.alpha < 1, "recruitment.alpha", "a probability in (0, 1)", self.alpha)
        _require(
            self.cost in ("prequential", "bic", "fixed"),
            "recruitment.cost",
            "prequential, bic or fixed",
            self.cost,
        )
        _require(
            (self.bits_per_parameter > 0) == (self.cost == "fixed"),
            "recruitment.bits_per_parameter",
            "above 0 for the cost model `fixed`, 0 for the others",
            self.bits_per_parameter,
        )


@dataclasses.dataclass(frozen=True)
class Hierarchy:
    """When an ensemble takes on a whole LLM; batches are those of the stream, a document per row."""

    base: str = ""  # folder of a run to begin with: its LLM, model and tokenizer; empty: a fresh LLM
    capacity: int = 4  # LLMs allocated to begin with; it doubles
    members_at_most: int = 64
    batches: int = 0  # of the stream; 0: as many as the corpus has. `train.steps` is each LLM's own schedule
    every: int = 0  # batches between trials, twice as many where no domain seems to arrive; 0: off
    start: int = 40  # batches before the first survey
    survey: int = 16  # batches of documents that a member remembers, to be divided
    smallest: int = 12  # documents on either side of a division
    horizon: int = 256  # documents that both sides of a trial must have had
    patience: int = 400  # batches after which a trial is abandoned that has not come to its horizon
    placebos: int = 8  # random divisions beside the candidate
    alpha: float = 0.05  # chance of a false recruitment, in all
    cost: str = "prequential"  # of an LLM's parameters: prequential, bic or fixed
    bits_per_parameter: float = 0.0  # of `fixed`

    def __post_init__(self):
        for name in ("capacity", "members_at_most", "survey", "smallest", "horizon", "patience"):
            _require(getattr(self, name) >= 1, f"hierarchy.{name}", "at least 1", getattr(self, name))
        for name in ("every", "start", "batches"):
            _require(getattr(self, name) >= 0, f"hierarchy.{name}", "0 or more", getattr(self, name))
        _require(self.placebos >= 2, "hierarchy.placebos", "at least 2, to know their spread", self.placebos)
        _require(0 < self.alpha < 1, "hierarchy.alpha", "a probability in (0, 1)", self.alpha)


@dataclasses.dataclass(frozen=True)
class Train:
    """Length of a run, and what it leaves behind."""

    steps: int = 1000
    seed: int = 0
    log_every: int = 20
    eval_every: int = 250  # and at the end; 0: never
    save_every: int = 250
    keep: int = 2  # checkpoints kept

    def __post_init__(self):
        _require(self.steps >= 1, "train.steps", "at least 1", self.steps)
        for name in ("log_every", "save_every", "keep"):
            _require(getattr(self, name) >= 1, f"train.{name}", "at least 1", getattr(self, name))
        _require(self.eval_every >= 0, "train.eval_every", "0 (never) or more", self.eval_every)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Sizes of the mesh axes, slowest network first; −1 takes the devices that are left."""

    slice: int = 1  # TPU slices that only a data-centre network joins: they split rows of a batch
    specialist: int = 1  # groups of devices with specialist LLMs of their own
    data: int = -1  # splits rows of a batch, and repeats parameters
    fsdp: int = 1  # splits rows of a batch, and parameters by their width: gathered where they are used
    tensor: int = 1  # splits heads, hidden units, vocabulary and blocks

    def __post_init__(self):
        for name, size in dataclasses.asdict(self).items():
            _require(size >= 1 or size == -1, f"mesh.{name}", "a size of at least 1, or -1", size)


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that defines a run."""

    data: Data = Data()
    model: Model = Model()
    dial: Dial = Dial()
    gates: Gates = Gates()
    router: Router = Router()
    optimizer: Optimizer = Optimizer()
    recruitment: Recruitment = Recruitment()
    hierarchy: Hierarchy = Hierarchy()
    train: Train = Train()
    mesh: Mesh = Mesh()

    def __post_init__(self):
        others = max(1, self.model.blocks - 1)
        _require(
            not 0 < self.model.neighbours * others < self.data.context,
            "model.neighbours",
            f"runs of at least {-(-self.data.context // others)} positions to cover the context",
            self.model.neighbours,
        )
        _require(
            not self.recruitment.every or self.model.block_units > 0,
            "model.block_units",
            "at least 1 where recruitment is on: a newcomer is told by its units",
            self.model.block_units,
        )
        _require(
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
    return _build(Config, mapping, "config")


def _build(cls: type, mapping: Any, path: str) -> Any:
    if not isinstance(mapping, dict):
        raise ValueError(f"{path}: expected a section with keys, got {mapping!r}")
    hints = typing.get_type_hints(cls)
    for key in mapping:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            known = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(hints)}"
            raise ValueError(f"{path}.{key}: unknown key; {known}")
    return cls(**{key: _convert(hints[key], value, f"{path}.{key}") for key, value in mapping.items()})


def _convert(wanted: type, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(wanted):
        return _build(wanted, value, path)
    if wanted is float and type(value) is int:
        return float(value)
    if type(value) is not wanted:
        raise ValueError(f"{path}: expected {wanted.__name__}, got {value!r}")
    return value

"""The cases: a corpus each, and nulls, in which words are shuffled within documents or dealt out over all of them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from scipy.cluster import hierarchy

from experiments.cases import Case, Figures
from experiments.recruitment_text.senses import agreement, supersenses
from localist_jax.adopt import adopt
from localist_jax.config import Data
from localist_jax.data import Batch, load
from localist_jax.data.corpora import find
from localist_jax.locality import Dial, clusters
from localist_jax.locality.anchors import telling
from localist_jax.model import forward
from localist_jax.recruitment import chronicle, frozen_job
from localist_jax.recruitment.cells import Partition
from localist_jax.recruitment.frozen import SearchState
from localist_jax.training.run import Run

CONTEXT, ROWS, TEST_ROWS = 1024, 80, 8
NULL_ROWS, NULL_DOCUMENTS = 24, 400
CORPORA = {
    "wikitext-2": "",
    "pharmacology": "openstax",
    "dc_code": "",
}  # name → folder that holds it, if not its own
RANDOM_SEEDS = (0, 1)
WORDS = 6  # that name a block
Blocks = Callable[[Sequence[Batch]], tuple[np.ndarray, np.ndarray]]


class Bench:
    """The adopted model, and a folder for its searches."""

    def __init__(self, folder: Path):
        self.folder = folder
        if not (folder / "adopted" / "config.json").is_file():
            adopt("smollm2", folder / "adopted", context=CONTEXT)
        self.run = Run.open(folder / "adopted")
        embedding = np.asarray(self.run.state.params["embedding"][:64])
        self.fingerprint = hashlib.sha256(embedding.tobytes()).hexdigest()[:16]


def plan(rows: int) -> list[Case]:
    """Return the cases, the most valuable first."""
    found = [Case(name, {"rows": rows, "corpus": name}, _recruited, 45.0 * rows) for name in CORPORA]
    null = {"rows": min(rows, NULL_ROWS), "corpus": "wikitext-2"}
    nulls = [
        Case("null/wikitext-2", {**null, "shuffled": True}, _null, 45.0 * NULL_ROWS),
        Case("null/wikitext-2/dealt", {**null, "shuffled": "over all documents"}, _null, 45.0 * NULL_ROWS),
    ]
    return [found[0], *nulls, *found[1:]]


def _corpus(name: str) -> str:
    folder = CORPORA[name]
    return str(find(folder, "JSONL with the fields text and split") / f"{name}.jsonl") if folder else name


def _searched(bench: Bench, case: Case, corpus: str) -> tuple[frozen_job.Search, SearchState]:
    settings = frozen_job.settings_of(bench.run, corpus=corpus)
    out = bench.folder / "searches" / case.name.replace("/", "-")
    search = frozen_job.begin(bench.run, settings, out, rows=case.settings["rows"])
    return search, frozen_job.searched(search)


def _decisions(search: frozen_job.Search) -> Figures:
    """Return what the search decided, and what it cost."""
    records = chronicle.read(search.out)
    births = [r for r in records if r["kind"] == "recruited"]
    return {
        "records": records,
        "births": len(births),
        "trials": len(chronicle.tried(records)),
        "retired": sum(r["kind"] == "retired" for r in records),
        "bits_saved": sum(r["llr_bits"] for r in births),
        "bits_beyond_placebos": min((chronicle.beyond_bits(r) for r in births), default=None),
        "search_seconds": sum(r["seconds"] for r in records),
        "passes": sum(r["passes"] for r in records),
        "stream_rows": records[-1]["step"] if records else 0,
    }


def _null(bench: Bench, case: Case) -> Figures:
    """Search where little or nothing can be told from what stands before."""
    random = np.random.default_rng(0)
    texts = load(Data(corpus=case.settings["corpus"])).train[:NULL_DOCUMENTS]
    words = [re.findall(r"\S+", text) for text in texts]
    folder = bench.folder / "shuffled"
    if case.settings["shuffled"] is not True:
        folder = bench.folder / "dealt"
        dealt = iter(random.permutation([word for each in words for word in each]).tolist())
        words = [[next(dealt) for _ in each] for each in words]
    folder.mkdir(parents=True, exist_ok=True)
    for nth, each in enumerate(words):
        shuffled = random.permutation(each)
        (folder / f"{nth:04}.txt").write_text(" ".join(shuffled), encoding="utf-8")
    search, _ = _searched(bench, case, str(folder))
    return _decisions(search)


def _recruited(bench: Bench, case: Case) -> Figures:
    """Search a corpus, and code unseen rows of it with what was found and with its rivals."""
    search, state = _searched(bench, case, _corpus(case.settings["corpus"]))
    rows = search.prepared.valid
    batches = [rows.take(np.array([nth])) for nth in range(min(TEST_ROWS, len(rows)))]
    tokens = sum(int(np.asarray(batch.scored).sum()) for batch in batches)
    single = Partition.single(len(state.partition.block_of_cell), state.partition.capacity)
    code, contender = search.recruiter.code, search.recruiter.contender
    bits = {"original": [code(contender(state.seen, single), batch, 0.0) for batch in batches]}
    partitions = {"one block": single, "recruited": state.partition, **dict(_rivals(state))}
    about = {}
    for name, partition in partitions.items():
        one = contender(state.seen, partition)
        bits[name] = [code(one, batch) for batch in batches]
        about[name] = {"mass_let_through": one.found.mass, "filing_share": float(one.found.filing.mean())}
    readers = {
        name: _blocks(search, state, partitions[name])
        for name in ("recruited", "k-means")
        if name in partitions
    }
    return {
        **_decisions(search),
        "blocks": len(state.partition.blocks),
        "test_rows": len(batches),
        "test_tokens": tokens,
        "bits_per_token": {name: sum(each) / tokens for name, each in bits.items()},
        "bits_by_row": bits,
        "contenders": about,
        "supersenses": {name: _agreement(bench, read, batches) for name, read in readers.items()},
        "names": _names(bench, readers["recruited"], state, search.stream[: state.rows]),
    }


def _rivals(state: SearchState) -> Iterator[tuple[str, Partition]]:
    """Yield partitions of the same cells into as many blocks: by K-means, by the tree's cut, and at random."""
    count, cells = len(state.partition.blocks), len(state.partition.block_of_cell) - 1
    if count < 2:
        return

    def of(labels: np.ndarray) -> Partition:
        return Partition(np.concatenate([[0], 1 + labels]), state.partition.capacity)

    centres = state.seen.centres
    yield (
        "k-means",
        of(np.asarray(clusters.spherical_kmeans(jax.random.key(0), jnp.asarray(centres), count)[1])),
    )
    linkage = hierarchy.linkage(centres, "average", "cosine")
    yield "tree's cut", of(hierarchy.fcluster(linkage, count, "maxclust") - 1)
    for seed in RANDOM_SEEDS:
        order = np.random.default_rng(seed).permutation(cells)
        yield f"random {seed}", of(order % count)


def _blocks(search: frozen_job.Search, state: SearchState, partition: Partition) -> Blocks:
    """Return a function of batches to tokens and blocks, one after another."""
    one = search.recruiter.contender(state.seen, partition)
    params, c = one.put_into(search.fresh.params), search.settings.model

    @jax.jit  # the layers above the router are never computed
    def routed(params, tokens):
        dial = Dial(0.0).broadcast(1, c.layers, c.heads)
        return forward(search.model, params, tokens, dial, one.blocks).blocks

    def read(batches: Sequence[Batch]) -> tuple[np.ndarray, np.ndarray]:
        blocks = [np.asarray(routed(params, batch.tokens))[0] for batch in batches]
        return np.concatenate([np.asarray(batch.tokens)[0] for batch in batches]), np.concatenate(blocks)

    return read


def _names(bench: Bench, read: Blocks, state: SearchState, batches: Sequence[Batch]) -> dict[str, list[str]]:
    """Return the words that tell most about whether a position is in a block, by block."""
    tokens, blocks = read(batches)
    counts = np.zeros((state.partition.capacity, bench.run.tokenizer.vocab_size))
    np.add.at(counts, (blocks, tokens), 1)
    return {
        str(block): [bench.run.tokenizer.token_text(token) for token in telling(counts, block, WORDS).tokens]
        for block in state.partition.blocks
    }


def _agreement(bench: Bench, read: Blocks, batches: Sequence[Batch]) -> dict[str, float] | None:
    """Return what blocks tell of the supersenses of words; None where WordNet's table is not there."""
    sense = supersenses(bench.run.tokenizer)
    embedding = np.asarray(bench.run.state.params["embedding"])
    return None if sense is None else agreement(*read(batches), sense, embedding, 0)

"""A synthetic world with known concepts, and with a known price in bits.

Each of K* concepts owns words and a sparse Markov chain over them. A document switches between
concepts (sticky, with Zipf shares), sprinkled with function words that belong to no concept. **A
concept that is resumed goes on from the word where it stopped**, however long ago: only attention
to earlier positions of the same concept can know that word.

Every word betrays its concept, so the latent state is known from the history and the ideal code
length is exact: the oracle that studies compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int32

SPECIALS = ("<pad>", "<bos>")  # the ids 0 and 1, as in `tokenizer`
SYLLABLES = tuple(c + v for c in "bdfgklmnprstvz" for v in "aeiou")
WORDS = tuple(a + b for a in SYLLABLES for b in SYLLABLES)  # of two syllables
_WORLD, _SAMPLE = 0, 1  # keep the draws of worlds and of documents apart when their seeds agree


@dataclass(frozen=True, eq=False)
class World:
    """The generating process. W words per concept; concepts are counted from 0 here.

    A word is a function word with probability `function_rate`. Otherwise the concept stays with
    probability `stickiness` or is drawn anew from `concept_shares`, and its chain moves one step.
    """

    words: tuple[str, ...]  # by token id: specials, function words, words of concept 0, 1, …
    function_rate: float
    stickiness: float
    function_shares: Float64[np.ndarray, "F"]
    concept_shares: Float64[np.ndarray, "K"]
    transitions: Float64[np.ndarray, "K W W"]  # each concept's chain, from row to column
    stationary: Float64[np.ndarray, "K W"]  # long-run shares of each chain's words
    concept_of: Int32[np.ndarray, "V"]  # by token id: 1 … K*, and 0 for specials and function words

    @classmethod
    def create(
        cls,
        seed: int,
        *,
        concepts: int = 8,
        vocabulary: int = 64,
        function_words: int = 16,
        function_rate: float = 0.25,
        stickiness: float = 0.8,
        branching: int = 3,
        zipf: float = 1.0,
    ) -> World:
        """Draws a world.

        Args:
          seed: the same seed and sizes give the same world.
          concepts: K*.
          vocabulary: words per concept.
          function_words: words that all concepts share.
          function_rate: share of function words in a text.
          stickiness: probability that the concept is not drawn anew.
          branching: successors of each word; 1 makes the chains deterministic cycles.
          zipf: exponent of the concepts' (and function words') shares; 0: all alike.

        Raises:
          ValueError: a size or share out of range, named.
        """
        _check_sizes(concepts, vocabulary, function_words, branching)
        _check_shares(function_rate, stickiness, zipf)
        rng = np.random.default_rng([_WORLD, seed])
        transitions = np.stack([_chain(rng, vocabulary, branching) for _ in range(concepts)])
        return cls(
            words=(*SPECIALS, *_pseudo_words(rng, function_words, concepts * vocabulary)),
            function_rate=function_rate,
            stickiness=stickiness,
            function_shares=_zipf_shares(function_words, zipf),
            concept_shares=_zipf_shares(concepts, zipf),
            transitions=transitions,
            stationary=np.stack([_stationary(chain) for chain in transitions]),
            concept_of=np.concatenate(
                [
                    np.zeros(len(SPECIALS) + function_words, np.int32),
                    np.repeat(np.arange(1, concepts + 1, dtype=np.int32), vocabulary),
                ]
            ),
        )

    @property
    def vocab_size(self) -> int:
        """V: specials, function words and all concepts' words."""
        return len(self.words)

    @property
    def first_concept_word(self) -> int:
        """Token id of the first word of concept 0."""
        return len(SPECIALS) + len(self.function_shares)

    def sample(self, seed: int, documents: int, length: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Draws documents of `length` words.

        Returns:
          token ids (2 … V−1) and concept labels (1 … K*; 0: function word), one int32 array
          [length] of each per document.
        """
        rng = np.random.default_rng([_SAMPLE, seed])
        vocabulary = self.stationary.shape[1]
        everyone = np.arange(documents)
        # A word before the first, drawn as the chain would have it, makes every visit alike.
        last_DK = np.stack([_draw(rng, _cdf(m)[None], documents) for m in self.stationary], 1)
        current_D = _draw(rng, _cdf(self.concept_shares)[None], documents)
        shares, functions, chains = map(_cdf, (self.concept_shares, self.function_shares, self.transitions))
        tokens = np.empty((documents, length), np.int32)
        for t in range(length):
            is_function = rng.random(documents) < self.function_rate
            drawn = _draw(rng, shares[None], documents)
            changes = ~is_function & (rng.random(documents) >= self.stickiness)
            current_D = np.where(changes, drawn, current_D)
            before = last_DK[everyone, current_D]
            word = _draw(rng, chains[current_D, before], documents)
            last_DK[everyone, current_D] = np.where(is_function, before, word)
            function = _draw(rng, functions[None], documents) if len(functions) else 0
            content = self.first_concept_word + current_D * vocabulary + word
            tokens[:, t] = np.where(is_function, len(SPECIALS) + function, content)
        return list(tokens), list(self.concept_of[tokens])

    def texts(self, documents: Iterable[np.ndarray]) -> list[str]:
        """Documents as words with spaces between them."""
        return [" ".join(self.words[i] for i in tokens) for tokens in documents]

    def code_length(
        self, tokens: Int32[np.ndarray, "T"] | Sequence[int], *, memory: bool = True
    ) -> Float64[np.ndarray, "T"]:
        """Ideal code length −log₂ p(word | words before) of each word of one document, in bits.

        Args:
          tokens: token ids of words.
          memory: False gives the best that can be done without the word at which a resumed concept
            stopped: only the run of the present concept is known.

        Raises:
          ValueError: an id that is not a word of this world.
        """
        bits = np.empty(len(tokens))
        last: dict[int, int] = {}
        current: int | None = None
        for t, token in enumerate(tokens):
            if not len(SPECIALS) <= token < self.vocab_size:
                raise ValueError(
                    f"tokens[{t}]: expected a word id {len(SPECIALS)} … {self.vocab_size - 1}, got {token}"
                )
            if token < self.first_concept_word:
                bits[t] = _bits(self.function_rate * self.function_shares[token - len(SPECIALS)])
                continue
            concept, word = divmod(int(token) - self.first_concept_word, self.stationary.shape[1])
            enter = self.concept_shares[concept]
            if current is not None:
                enter = self.stickiness * (concept == current) + (1 - self.stickiness) * enter
            if not memory and concept != current:
                last.pop(concept, None)
            chain = self.transitions[concept, last[concept]] if concept in last else self.stationary[concept]
            bits[t] = _bits((1 - self.function_rate) * enter * chain[word])
            current, last[concept] = concept, word
        return bits

    @property
    def entropy_rate(self) -> float:
        """Bits per word that no model can go below in the long run.

        H = h(ρ) + ρ·H(f) + (1−ρ)·[Σ_k π_k H(q_k) + Σ_k π_k Σ_w m_k(w) H(P_k[w])], where ρ is the
        function rate, f the function shares, π the concept shares (stationary under switching),
        q_k = s·δ_k + (1−s)·π the next concept, m_k and P_k the chain of concept k. Documents cost
        more while concepts are visited for the first time: see `code_length`.
        """
        rho, s, shares = self.function_rate, self.stickiness, self.concept_shares
        switching = shares @ _entropy(s * np.eye(len(shares)) + (1 - s) * shares)
        stepping = shares @ self._chain_bits()
        coin = float(_entropy(np.array([rho, 1 - rho])))
        return coin + rho * float(_entropy(self.function_shares)) + (1 - rho) * float(switching + stepping)

    @property
    def memory_bits(self) -> float:
        """Bits per word that remembering where concepts stopped is worth, in the long run.

        (1−ρ)(1−s) Σ_k π_k(1−π_k)·I_k, where I_k = H(m_k) − Σ_w m_k(w) H(P_k[w]) is what a word of
        concept k tells of the next one: the long-run gap between the two kinds of `code_length`.
        """
        shares = self.concept_shares
        told = _entropy(self.stationary) - self._chain_bits()
        resumed = (1 - self.function_rate) * (1 - self.stickiness) * shares * (1 - shares)
        return float(resumed @ told)

    def _chain_bits(self) -> Float64[np.ndarray, "K"]:
        return (self.stationary * _entropy(self.transitions)).sum(-1)


def _check_sizes(concepts: int, vocabulary: int, function_words: int, branching: int) -> None:
    limits = {
        "concepts": (concepts, 1, None),
        "vocabulary": (vocabulary, 2, None),
        "function_words": (function_words, 1, len(SYLLABLES)),
        "branching": (branching, 1, vocabulary),
        "concepts · vocabulary": (concepts * vocabulary, 2, len(SYLLABLES) ** 2),
    }
    for name, (got, least, most) in limits.items():
        if got < least or (most is not None and got > most):
            wanted = f"at least {least}" if most is None else f"{least} … {most}"
            raise ValueError(f"{name}: expected {wanted}, got {got}")


def _check_shares(function_rate: float, stickiness: float, zipf: float) -> None:
    for name, share in (("function_rate", function_rate), ("stickiness", stickiness)):
        if not 0 <= share < 1:
            raise ValueError(f"{name}: expected a share in [0, 1), got {share}")
    if zipf < 0:
        raise ValueError(f"zipf: expected 0 or more, got {zipf}")


def _zipf_shares(n: int, exponent: float) -> np.ndarray:
    weights = np.arange(1, n + 1) ** -float(exponent)
    return weights / weights.sum()


def _pseudo_words(rng: np.random.Generator, function_words: int, concept_words: int) -> list[str]:
    """Distinct words: one syllable for function words, two for the others."""
    short = rng.permutation(len(SYLLABLES))[:function_words]
    long = rng.permutation(len(SYLLABLES) ** 2)[:concept_words]
    pairs = (divmod(int(i), len(SYLLABLES)) for i in long)
    return [SYLLABLES[i] for i in short] + [SYLLABLES[a] + SYLLABLES[b] for a, b in pairs]


def _chain(rng: np.random.Generator, words: int, branching: int) -> np.ndarray:
    """A random chain with `branching` successors per word, one of them along a cycle through all words."""
    cycle = rng.permutation(words)
    successor = np.empty(words, np.int64)
    successor[cycle] = np.roll(cycle, -1)  # so every word can be reached from every other
    chain = np.zeros((words, words))
    for word in range(words):
        others = rng.permutation(np.delete(np.arange(words), successor[word]))[: branching - 1]
        following = rng.permutation([successor[word], *others])
        chain[word, following] = _zipf_shares(branching, 1.0)
    return chain


def _stationary(chain: np.ndarray) -> np.ndarray:
    """The only m with m = m·P and Σm = 1."""
    words = len(chain)
    equations = np.vstack([chain.T - np.eye(words), np.ones(words)])
    shares = np.linalg.lstsq(equations, np.append(np.zeros(words), 1.0), rcond=None)[0]
    return shares / shares.sum()


def _cdf(shares: np.ndarray) -> np.ndarray:
    sums = np.cumsum(shares, -1)
    return sums / sums[..., -1:]  # ends in exactly 1, so nothing of probability 0 is drawn


def _draw(rng: np.random.Generator, cdf: np.ndarray, n: int) -> np.ndarray:
    """n draws from the rows of `cdf` ([n, …] or one row for all)."""
    return (cdf <= rng.random((n, 1))).sum(-1)


def _bits(p: float) -> float:
    return float(-np.log2(p)) if p > 0 else float("inf")


def _entropy(p: np.ndarray) -> np.ndarray | np.float64:
    # Not `bits.entropy`: the oracle is kept in float64.
    return -(p * np.log2(np.where(p > 0, p, 1.0))).sum(-1)

"""T12. Recruitment on fixed data stops, and what it then has.

J = L(data | model) + L(model) ≥ 0 in bits. Moves (recruit, merge, retire; blocks or whole LLMs) are proposed in any
order and accepted only when J falls by at least ε > 0. Training between moves does not raise J.

(a) At most ⌊J0/ε⌋ moves are accepted; to be exact, moves·ε ≤ J0 − J.
(b) If every block costs at least ℓ_min bits of L(model), there are never more than J0/ℓ_min blocks.
(c) The search ends when every proposal has been rejected *since the last accepted move*; then none of them lowers J
    by ε or more. One pass over the proposals is not enough: a later move can make an earlier one worth its bits.

Proof. Each move takes ε from J, nothing adds to it, and J ≥ 0: (a). blocks·ℓ_min ≤ L(model) ≤ J ≤ J0: (b). Between
the last accepted move and the end the model is the same, so each rejection still holds: (c). ∎
"""

import dataclasses

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from localist_jax.report import figures
from proofs_check.models import searches
from proofs_check.theorem import Theorem, at_least, at_most

EXACT = 1 - 1e-12  # so that a fall that is to equal ε counts as one after rounding


def claims(x: searches.Searches):
    """(a)–(c)."""
    first, _ = searches.description(x.text, x.model)
    found = searches.search(x)
    last, blocks = searches.description(x.text, found.model)
    return {
        "a: moves": at_most(found.moves, jnp.floor(first / x.epsilon)),
        "a: bits of the moves": at_most(found.moves * x.epsilon, first - last),
        "b: blocks": at_most(blocks, first / searches.BLOCK_BITS),
        "c: ε-optimal": at_least(searches.on_offer(x.text, found.model), last - x.epsilon),
    }


def twin(x: searches.Searches):
    """(c) after one pass over the proposals."""
    model = searches.search(x).one_pass
    return at_least(searches.on_offer(x.text, model), searches.description(x.text, model)[0] - x.epsilon)


def attack(key: jax.Array, n: int) -> searches.Searches:
    """Accepts every fall, then sets ε to the smallest of them: as many moves as ε allows."""
    x = dataclasses.replace(searches.sample(key, n), epsilon=jnp.full(n, 1e-9))
    found = searches.search(x)
    return dataclasses.replace(x, epsilon=jnp.where(found.moves > 0, found.smallest * EXACT, x.epsilon))


def attain() -> searches.Searches:
    """Two halves: ε is what the cut between them saves, so it is the only move."""
    text = (jnp.arange(searches.SYMBOLS)[None] >= searches.SYMBOLS // 2).astype(int)
    model = jnp.zeros((1, searches.MOVES), bool)
    fall = searches.description(text, model)[0] - searches.on_offer(text, model)
    return searches.Searches(
        text=text, model=model, order=jnp.arange(searches.MOVES)[None], epsilon=fall * EXACT
    )


def figure(x: searches.Searches, _) -> Figure:
    """Accepted moves against J0/ε, and what the best move still saves: all retried, and after one pass."""
    found = searches.search(x)
    bound = np.asarray(searches.description(x.text, x.model)[0] / x.epsilon)
    with matplotlib.rc_context(figures.STYLE):
        drawn = Figure(figsize=(7.8, 2.8), layout="constrained")
        moves, saved = drawn.subplots(1, 2)
        moves.plot(
            bound, np.asarray(found.moves), ".", ms=2.5, alpha=0.5, color=figures.BLUE, rasterized=True
        )
        line = np.geomspace(1, max(2.0, bound.max()), 50)
        moves.plot(line, line, color=figures.ORANGE, lw=0.9)
        moves.set_xscale("log")
        moves.set_ylim(-0.5, float(np.asarray(found.moves).max()) + 2)
        moves.set_title("accepted moves")
        moves.set_xlabel("J0/ε")
        for model, colour, label in (
            (found.one_pass, figures.RED, "one pass"),
            (found.model, figures.BLUE, "all retried"),
        ):
            fall = (searches.description(x.text, model)[0] - searches.on_offer(x.text, model)) / x.epsilon
            saved.plot(np.linspace(0, 1, len(bound)), np.sort(np.asarray(fall)), color=colour, label=label)
        saved.axhline(1, color=figures.ORANGE, lw=0.9)
        saved.set_ylim(-0.3, 6)
        saved.set_title("what the best move still saves, in ε")
        saved.set_xlabel("share of searches")
        saved.legend()
        return drawn


THEOREM = Theorem(
    "T12", "recruitment terminates", searches.sample, claims, twin, "(c) after a single pass over the proposals",
    attain=attain, attained=("a: bits of the moves",), attack=attack, share=0.05, chunk=2048, figure=figure,
    note="the rule by which the library's account books moves (`hierarchy.account`), on small models",
    found="exactly, moves·ε ≤ J₀ − J; ⌊J₀/ε⌋ is not attained, since J never reaches 0",
)  # fmt: skip

"""T16. Non-interference: at λ=1 the open pairs of a text say exactly who may influence whom.

All localist heads at λ=1. M_ℓ[i,j]: in some head of layer ℓ the odds of query i for key j are above 0, that is, j
is in i's segment, not after i, and lies in the window (i itself included), in block 0 (sink, background), or
A[c_i,c_j] > 0. Reach = Π_ℓ (M_ℓ ∨ I), a boolean product, the first layer rightmost; I is the residual connection.

(a) Not Reach[i,j] ⇒ the output at i does not depend on the router-level state at j, block ids kept: the
    Jacobian is exactly 0, and any other (finite) states there leave the output bit-identical.
(b) If j reaches i neither with c_j = l nor with c_j = l', the state *and* the id of j may change: same output.
(c) For all texts, window 1: G_ℓ are the gate graphs (union over heads) of the active blocks, column 0 open, row 0
    empty where block 0 holds the sink alone. Position i of block k depends on a position j ≠ i of block l only if
    P_L[k,l], the paths of at least one edge: P_ℓ = P_{ℓ−1} ∨ G_ℓ ∨ G_ℓ P_{ℓ−1}, P_0 = 0. Off the diagonal this is
    Π(G_ℓ ∨ I); on it, it is sharper: a block whose gates to itself are closed keeps its own positions apart.
    The background row need not be closed: an open one relays, and the product counts it.

Proof. A state after layer ℓ at i is a function of the states before it at i and at the keys with α_ij ≠ 0: a closed
key is left out of the row maximum, has weight 0, 0·v = 0 for finite v, and its gradient is a sum of products with that
0. Induct over ℓ: (a). In (b) both texts read the same tree of positions: a row of it that opened towards j would let
j reach i. (c): every pair of M_ℓ with i ≠ j is an edge of G_ℓ; a sink sees only itself. ∎
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from proofs_check.models import flows, stacks
from proofs_check.theorem import Theorem, at_most, equal

NARROW, WIDE = 1, 3  # windows
ACTIVE = jnp.arange(stacks.CAPACITY) < stacks.BLOCKS
ROUNDING = 1e-9  # of (b): an id that changes moves positions between tiles, hence the order of sums


def sample(key, n):
    """Stacks at λ=1 with few open gates, packed texts, with and without background."""
    stack = stacks.sample(key, n, 0.06)
    return stack.replace(beta=jnp.full_like(stack.beta, jnp.inf))


def attack(key, n):
    """Where zeros are hardest to keep: sharp heads, states of 1e100, open gates next to 0."""
    stack = stacks.sharpened(sample(key, n))
    return stack.replace(states=1e100 * stack.states)


def _probe(stack, window, believed=None):
    """Reach and Jacobian [n, B, T, T], movement [n, B, T]; the certificate may believe in another window."""
    model = dataclasses.replace(stacks.MODEL, window=window)
    reached = jax.vmap(partial(flows.certified, window=believed or window))(stack.gates, stack.text)

    def one(given):
        stack, reached = given
        outputs = partial(stacks.read, model, stack.params, stack.beta, text=stack.text)
        return flows.influence(outputs, stack.states, reached)

    return reached, *jax.lax.map(one, (stack, reached))


def _nothing(free, slopes):
    """The Jacobian vanishes on these pairs; one row per text."""
    some = free.any((-1, -2)).ravel()
    return equal(jnp.where(free, slopes, 0.0).max((-1, -2)).ravel(), 0.0, some)


def _apart(stack):
    """(c): pairs [n, B, T, T] that are independent in every text."""
    of_one = partial(flows.certified_by_blocks, active=ACTIVE)
    may = jax.vmap(lambda g, b, t: of_one(g, background=b, text=t))(stack.gates, stack.background, stack.text)
    return ~may & flows.earlier(stack.text)


@jax.jit
def claims(stack):
    """(a) with and without a window, (b) with one, (c) without."""
    found = {}
    for window in (NARROW, WIDE):
        reached, slopes, moved = _probe(stack, window)
        free = ~reached & flows.earlier(stack.text)
        found[f"a: Jacobian, window {window}"] = exact = _nothing(free, slopes)
        found[f"a: other states, window {window}"] = equal(moved.max(-1).ravel(), 0.0, exact.assumed)
        if window == NARROW:
            apart = _apart(stack)
            found["c: Jacobian, all texts"] = _nothing(apart, slopes)
            found["c: not above (a)"] = at_most(
                (apart & reached).sum((-1, -2)).ravel(), 0, apart.any((-1, -2)).ravel()
            )
    return found | {"b: ids too": _other_ids(stack)}


def _other_ids(stack):
    """One position of each text takes another block and another state."""
    at, j = jnp.arange(stacks.POSITIONS), 1 + jnp.arange(stacks.TEXTS) % (stacks.POSITIONS - 1)
    here = (at == j[:, None]) & (stack.text.positions > 0)
    text = dataclasses.replace(stack.text, block=jnp.where(here, 1 + stack.text.block % 3, stack.text.block))
    other = stack.replace(text=text, states=jnp.where(here[..., None], 2 - stack.states, stack.states))
    reached = jax.vmap(partial(flows.certified, window=WIDE))
    either = reached(stack.gates, stack.text) | reached(stack.gates, text)
    free = ~(either & here[..., None, :]).any(-1) & here.any(-1, keepdims=True)
    moved = jnp.abs(stacks.outputs(stack, WIDE) - stacks.outputs(other, WIDE)).max(-1)
    relative = moved / (1 + jnp.abs(stack.states).max((-1, -2, -3))[:, None, None])
    return at_most(jnp.where(free, relative, 0.0).max(-1).ravel(), ROUNDING, free.any(-1).ravel())


@jax.jit
def twin(stack):
    """The certificate without the window, on a model that has one."""
    reached, slopes, _ = _probe(stack, WIDE, believed=NARROW)
    return _nothing(~reached & flows.earlier(stack.text), slopes)


def measure(stack):
    """Shares of the pairs j < i: certified for the text and for all texts, and truly without influence."""
    pairs, found = flows.earlier(stack.text), {}
    for window in (NARROW, WIDE):
        reached, slopes, _ = jax.jit(_probe, static_argnums=1)(stack, window)
        found[f"certified_share_window_{window}"] = (~reached & pairs).sum() / pairs.sum()
        found[f"uninfluenced_share_window_{window}"] = ((slopes == 0) & pairs).sum() / pairs.sum()
    return found | {"certified_share_all_texts": _apart(stack).sum() / pairs.sum()}


def figure(stack, _):
    """The text with the most independent pairs under a window, with it and without."""
    pairs = flows.earlier(stack.text)
    reached = jax.vmap(partial(flows.certified, window=WIDE))(stack.gates, stack.text)
    free = (~reached & pairs).sum((-1, -2))
    n, text = np.unravel_index(int(free.argmax()), free.shape)
    one, panels = jax.tree.map(lambda leaf: leaf[n : n + 1], stack), {}
    for window in (NARROW, WIDE):
        shown = (np.asarray(x)[0, text] for x in _probe(one, window)[:2])
        panels[f"a sampled text, window {window}"] = *shown, np.asarray(pairs)[n, text]
    return flows.draw(panels)


THEOREM = Theorem(
    "T16", "non-interference", sample, claims, twin, "the certificate without the local window",
    tolerance=0.0, because="none: the zeros are exact and the outputs bit-identical, (b) within 1e-9",
    attack=attack, share=1e-3, chunk=128, certificate=flows.certificate, figure=figure,
    found="the background row need not be closed; paths of at least one edge are sharper on the diagonal",
)  # fmt: skip

"""A trial: a candidate beside the model, and placebos beside the candidate, on the data as it comes.

All of them share the incumbent's parameters as they learn; what is their own is the newcomer: its place below a
parent, the direction that tells it from the parent, and fresh units beside the parent's, without output at first. A
batch is scored by the incumbent and by every contender *before* anyone learns from it, all at λ=1. Then those units
learn, by the run's own optimizer; the directions stay, so that a placebo cannot find what it was not given.

A trial is about one parent: its candidates divide it in different ways. Each has placebos of its own, which divide it
along directions drawn at random, in the candidate's proportion: a small newcomer and a large one learn differently.
More units alone save bits where a model is short of them, whoever gets them; the placebos tell how many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from localist_jax import bits, config
from localist_jax.data import Batch
from localist_jax.locality import Blocks, Dial
from localist_jax.model import Transformer, forward
from localist_jax.recruitment import growth
from localist_jax.recruitment.evidence import Evidence
from localist_jax.recruitment.growth import Birth, Names
from localist_jax.training.state import TrainState, optimizer
from localist_jax.types import PyTree, struct


@struct
class Contenders:
    """C candidates in a row, then m placebos of each; every leaf has them, C·(1 + m), on its first axis.

    Attributes:
      births: where each newcomer stands, what tells it from its parent, and what its units have learned.
      anchor_tokens, anchor_log_odds: [.., A], of the newcomer.
    """

    births: Birth
    anchor_tokens: chex.Array
    anchor_log_odds: chex.Array


@struct
class TrialState:
    """The state of a trial from step to step; it is saved with the run.

    Attributes:
      evidence: evidence of candidates and placebos, in bits.
      contenders: candidates and placebos.
      curve_bits: float32 [horizon, C, 1 + m], evidence of candidates and their placebos after every step.
      leaving: int32, the block that the model is also tried without, or 0.
      leaving_llr_bits: evidence for the model without that block.
      number: int32, candidates tried so far, including these and excluding those of pilots.
      births: int32, blocks recruited so far.
      tokens: int32, tokens that the evidence was gathered on.
    """

    evidence: Evidence
    contenders: Contenders
    curve_bits: chex.Array
    leaving: chex.Array
    leaving_llr_bits: chex.Array
    number: chex.Array
    births: chex.Array
    tokens: chex.Array


def closed(settings: config.Config) -> TrialState:
    """No trial: every array has its shape, and nothing is open."""
    r, c = settings.recruitment, settings.model
    lanes = r.candidates * (1 + r.placebos)
    whole = jnp.zeros((), jnp.int32)
    return TrialState(
        evidence=Evidence.create(r.candidates, r.placebos),
        contenders=Contenders(
            births=jax.tree.map(lambda x: jnp.broadcast_to(x, (lanes, *x.shape)), Birth.blank(settings)),
            anchor_tokens=jnp.full((lanes, c.anchor_capacity), -1, jnp.int32),
            anchor_log_odds=jnp.zeros((lanes, c.anchor_capacity)),
        ),
        curve_bits=jnp.zeros((r.horizon, r.candidates, 1 + r.placebos)),
        leaving=whole,
        leaving_llr_bits=jnp.zeros(()),
        number=whole,
        births=whole,
        tokens=whole,
    )


def make_trial_step(
    model: Transformer, settings: config.Config, names: Names
) -> Callable[[TrainState, TrialState, Batch], TrialState]:
    """The pure step of a trial, ready for `jax.jit(…, donate_argnums=1)`.

    Args:
      model: the network, at the state's capacity.
      settings: the run's configuration.
      names: of the axes of the state's leaves (`growth.axis_names`).
    """
    r = settings.recruitment
    of_params = tuple((p.removeprefix("params/"), n) for p, n in names if p.startswith("params/"))
    at_work = (settings.model.layers, settings.model.heads)

    def code(params: PyTree, blocks: Blocks, batch: Batch) -> Float[Array, ""]:
        dial = Dial(1.0).broadcast(batch.tokens.shape[0], *at_work)
        where = {"positions": batch.positions, "segments": batch.segments}
        out = forward(model, params, batch.tokens, dial, blocks, **where)
        return jnp.where(batch.scored, bits.code_length(out.logits, batch.targets), 0.0).sum()

    def contend(state: TrainState, batch: Batch, lane: Contenders) -> tuple[jax.Array, Birth]:
        birth = lane.births
        blocks = state.blocks.with_child(birth.child, birth.parent, birth.number)
        blocks = dataclasses.replace(
            blocks,
            anchor_tokens=blocks.anchor_tokens.at[birth.child].set(lane.anchor_tokens),
            anchor_log_odds=blocks.anchor_log_odds.at[birth.child].set(lane.anchor_log_odds),
        )
        before = jax.lax.stop_gradient(state.params)

        def loss(units: PyTree) -> jax.Array:
            born = dataclasses.replace(birth, units=units)
            return code(growth.born_params(before, of_params, born), blocks, batch)

        score, slope = jax.value_and_grad(loss)(birth.units)
        per_token = jax.tree.map(lambda g: bits.to_nats(g) / jnp.maximum(1, batch.scored.sum()), slope)
        own, slopes = ({"localist": {"units": x}} for x in (birth.units, per_token))
        updates, opt_state = optimizer(settings).update(slopes, birth.opt_state, own)
        units = optax.apply_updates(own, updates)["localist"]["units"]
        return score, dataclasses.replace(birth, units=units, opt_state=opt_state)

    def trial_step(state: TrainState, trial: TrialState, batch: Batch) -> TrialState:
        with jax.named_scope("trial"):
            incumbent = code(state.params, state.blocks, batch)
            score, births = jax.vmap(partial(contend, state, batch))(trial.contenders)
            fewer = jax.lax.cond(
                trial.leaving > 0,
                lambda: code(state.params, state.blocks.without(trial.leaving), batch),
                lambda: incumbent,
            )
        candidates = score[: r.candidates]
        placebos = score[r.candidates :].reshape(r.candidates, r.placebos)
        contenders = dataclasses.replace(trial.contenders, births=births)
        evidence = trial.evidence.observed(incumbent, candidates, placebos)
        so_far = jnp.concatenate([evidence.llr_bits[:, None], evidence.placebo_bits], -1)
        return dataclasses.replace(
            trial,
            evidence=evidence,
            contenders=contenders,
            curve_bits=trial.curve_bits.at[state.step - evidence.opened_at[0]].set(so_far),
            leaving_llr_bits=trial.leaving_llr_bits + incumbent - fewer,
            tokens=trial.tokens + batch.scored.sum().astype(jnp.int32),
        )

    return trial_step


def opened(
    trial: TrialState,
    state: TrainState,
    settings: config.Config,
    births: list[Birth],
    anchors: list[tuple[np.ndarray, np.ndarray]],
    cost_bits: list[float],
    leaving: int = 0,
    is_pilot: bool = False,
) -> TrialState:
    """A copy in which a trial of these newcomers is open; places left over stay closed.

    Args:
      trial: its counters go on.
      state: at whose step it opens.
      settings: the run's configuration.
      births, anchors: of C candidates, then of m placebos for each.
      cost_bits: ℓ of each candidate; fewer than C leave the other places closed.
      leaving: a block that the model is scored without, beside them; 0: none.
      is_pilot: nobody can be recruited by it, so that it spends no codeword.
    """
    r = settings.recruitment
    fresh = closed(settings)
    stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *births)
    evidence, step = fresh.evidence, int(state.step)
    for at, cost in enumerate(cost_bits):
        evidence = evidence.opened(at, cost, step, r.horizon)
    tokens, log_odds = (jnp.asarray(np.stack(rows)) for rows in zip(*anchors, strict=True))
    contenders = dataclasses.replace(
        fresh.contenders, births=stacked, anchor_tokens=tokens, anchor_log_odds=log_odds
    )
    return dataclasses.replace(
        fresh,
        evidence=evidence,
        contenders=contenders,
        leaving=jnp.asarray(leaving, jnp.int32),
        number=trial.number + (0 if is_pilot else len(cost_bits)),
        births=trial.births,
    )

"""The compiled functions that a recruiter needs, made once for all recruiters of models of one shape.

The members of an ensemble each have a recruiter of their own; that they share these is what makes it affordable.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from localist_jax import config
from localist_jax.model import Transformer
from localist_jax.parallel import hosts, sharding
from localist_jax.recruitment import growth, trial
from localist_jax.recruitment.growth import Birth
from localist_jax.recruitment.proposals import make_reader
from localist_jax.training.run import boxed_state
from localist_jax.types import PyTree


@dataclasses.dataclass(frozen=True)
class Programs:
    """Jitted, and where their results are placed.

    Attributes:
      boxed: the shapes of a training state, with the names of its axes.
      reader: of a batch, for a survey.
      fresh: (state, parent, number) → the birth of a block that has learned nothing.
      trial_step: of `trial.make_trial_step`; donates the trial.
      stack: batches → one, with a leading axis.
    """

    boxed: PyTree
    reader: Callable
    fresh: Callable
    trial_step: Callable
    stack: Callable


@functools.lru_cache(maxsize=4)
def programs(model: Transformer, settings: config.Config, mesh: Mesh) -> Programs:
    """Return the programs for a model at this capacity; equal arguments return the same compiled objects."""
    boxed, everywhere = boxed_state(model, settings), hosts.everywhere(mesh)
    names = growth.axis_names(boxed)
    surveyed = settings.recruitment.survey * settings.data.batch * settings.data.context
    rows = PartitionSpec(None, *sharding.batch_sharding(mesh).spec)
    return Programs(
        boxed=boxed,
        reader=make_reader(model, surveyed),
        fresh=jax.jit(
            functools.partial(growth.fresh, Birth.blank(settings), names), out_shardings=everywhere
        ),
        trial_step=jax.jit(
            trial.make_trial_step(model, settings, names), donate_argnums=1, out_shardings=everywhere
        ),
        stack=jax.jit(
            lambda *batches: jax.tree.map(lambda *x: jnp.stack(x), *batches),
            out_shardings=NamedSharding(mesh, rows),
        ),
    )

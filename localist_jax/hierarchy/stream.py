"""A stream that was stopped in the middle, of a trial too, goes on exactly where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localist_jax.hierarchy.recruiter import MemberRecruiter
from localist_jax.hierarchy.shipping import EnsembleRun
from localist_jax.training.checkpoint import CheckpointError, Checkpoints


def save(recruiter: MemberRecruiter, house: EnsembleRun, command: str = "") -> None:
    """Saves the ensemble as it is now into the house's folder, and beside it what the recruiter knows.

    Hooks that recruit blocks inside members are not kept: they begin anew.
    """
    house.ensemble = recruiter.ensemble
    arrays, about = recruiter.memory()
    house.save(recruiter.batches, command, memory=arrays, stream=about)


def resume(house: EnsembleRun, workdir: Path, **options: Any) -> MemberRecruiter:
    """The recruiter of a folder that `save` wrote; `house` was opened from it.

    Args:
      house: with the ensemble as it was.
      workdir: with the recruiter's record, which is cut after the batch at which it was saved.
      options: of `MemberRecruiter`: seed, blocks, concepts.

    Raises:
      CheckpointError: the folder's ensemble was saved without a recruiter, or is damaged.
    """
    with Checkpoints(house.workdir / "checkpoints") as checkpoints:
        manifest = checkpoints.manifest()
        about = manifest.get("stream")
        if about is None:
            raise CheckpointError(
                f"{house.workdir}: no stream to go on with; it was saved without its recruiter"
            )
        recruiter = MemberRecruiter(
            house.ensemble,
            house.engine,
            house.settings.hierarchy,
            workdir,
            resume_step=about["batches"],
            **options,
        )
        recruiter.remember(about, lambda wanted: checkpoints.restore_memory([wanted], manifest["step"])[0])
    return recruiter

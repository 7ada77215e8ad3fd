"""Settings of the workers, and who starts them."""

from __future__ import annotations

import os
from typing import Annotated, Literal, get_args

from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from dist_embed.arguments import one_of
from dist_embed.jobs.settings import SubmitSection
from dist_embed.parallel.settings import DeviceChoice
from dist_embed.section import (
    EXPERT,
    NO_RESULT,
    NonNegativeInt,
    Seconds,
    Section,
    Timeout,
    Workers,
)

Launcher = Literal["ray", "local"]
LauncherChoice = Literal["auto", Launcher]


# Failures within `FAILURE_HOURS` that a run under Ray outlives, where nobody says how many.
MAX_FAILURES = 5
FAILURE_HOURS = 24


class WorkerRange(Section):
    """As many workers as there is room for on a cluster, within limits."""

    min: Workers = Field(description="Fewest workers; with less room the run waits.")
    max: Workers = Field(description="Most workers; as many where no cluster is.")

    @field_validator("max")
    @classmethod
    def _not_below_min(cls, most: int, info: ValidationInfo) -> int:
        if most < info.data.get("min", 1):
            raise PydanticCustomError("range", f"at least `min`, {info.data['min']}")
        return most


class ClusterSection(Section):
    """The workers and who starts them."""

    launcher: LauncherChoice = Field(
        "auto",
        description="`ray`: Ray Train, here or on a cluster; `local`: plain processes; `auto`: "
        "`ray` where `address` or RAY_ADDRESS names a cluster, or `max_failures` above 0 is given, "
        "else `local`.",
    )
    num_workers: Workers | WorkerRange = Field(
        2,
        description="Worker processes; one GPU each on CUDA. On a Ray cluster also "
        "`{min: 2, max: 8}`: as many as there is room for, changing as nodes come and go.",
    )
    address: str | None = Field(
        None, description="Ray cluster to use; else RAY_ADDRESS; else a local Ray is started."
    )
    device: DeviceChoice = Field("auto", description="`auto`: CUDA if there.")
    threads_per_worker: Annotated[int, EXPERT] = Field(
        0, ge=0, le=4096, description="CPU threads; 0: cores / workers."
    )
    timeout_seconds: Annotated[Timeout, NO_RESULT, EXPERT] = Field(
        600.0,
        description="Longest wait, seconds: of an exchange between workers, on the CPU five times "
        "as long for a worker that is lost as they join; under Ray for free "
        "slots; under torchrun for worker 0 to prepare the data. A worker alone that stays in a "
        "phase of a step for so long is ended.",
    )
    replace_seconds: Annotated[Seconds, NO_RESULT, EXPERT] = Field(
        60.0,
        description="With `num_workers` as a range: how long workers that were lost are waited "
        "for before the run goes on with fewer.",
    )
    hang_seconds: Annotated[Timeout, NO_RESULT, EXPERT] = Field(
        120.0,
        description="A worker that holds up a step for so long is named, with what it does. The "
        "run ends only after `timeout_seconds`.",
    )
    max_failures: Annotated[NonNegativeInt | None, NO_RESULT, EXPERT] = Field(
        None,
        description="Ray only: times in 24 hours that workers are started again after failures "
        f"that may pass; by default {MAX_FAILURES}.",
    )
    submit: Annotated[SubmitSection, NO_RESULT, EXPERT] = Field(
        SubmitSection(), description="Where `dist-embed submit` sends a job."
    )

    @property
    def min_workers(self) -> int:
        """The fewest workers that a run goes on with: then each holds most."""
        chosen = self.num_workers
        return chosen if isinstance(chosen, int) else chosen.min

    @property
    def max_workers(self) -> int:
        """The most workers, and how many there are where none come and go: on one machine, under
        Slurm.
        """
        chosen = self.num_workers
        return chosen if isinstance(chosen, int) else chosen.max

    def chosen_launcher(self, instead: LauncherChoice | None = None) -> Launcher:
        """Who starts the workers, by the environment of this process too.

        Args:
            instead: of ``launcher``, where it is given.

        Raises UserError for another name.
        """
        launcher = self.launcher if instead is None else instead
        one_of("launcher", launcher, sorted(get_args(LauncherChoice)))
        if launcher != "auto":
            return launcher
        # Only Ray starts failed workers again.
        wanted = self.address or self.max_failures or os.environ.get("RAY_ADDRESS")
        return "ray" if wanted else "local"

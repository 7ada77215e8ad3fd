"""Settings of the workers, and who starts them."""

from __future__ import annotations

import os
from typing import Annotated, Literal, get_args

from pydantic import Field

from dist_embed.arguments import one_of
from dist_embed.jobs.settings import SubmitSection
from dist_embed.parallel.settings import DeviceChoice
from dist_embed.section import EXPERT, NO_RESULT, PositiveFloat, PositiveInt, Section

Launcher = Literal["ray", "local"]
LauncherChoice = Literal["auto", Launcher]


class ClusterSection(Section):
    """The workers and who starts them."""

    launcher: LauncherChoice = Field(
        "auto",
        description="`ray`: Ray Train, here or on a cluster; `local`: plain processes; `auto`: "
        "`ray` where `address` or RAY_ADDRESS names a cluster, or `max_failures` are to be "
        "outlived, else `local`.",
    )
    num_workers: PositiveInt = Field(2, description="Worker processes; one GPU each on CUDA.")
    address: str | None = Field(
        None, description="Ray cluster to use; else RAY_ADDRESS; else a local Ray is started."
    )
    device: DeviceChoice = Field("auto", description="`auto`: CUDA if there.")
    threads_per_worker: Annotated[int, EXPERT] = Field(
        0, ge=0, description="CPU threads; 0: cores / workers."
    )
    timeout_seconds: Annotated[PositiveFloat, NO_RESULT, EXPERT] = Field(
        600.0,
        description="Longest wait, seconds: of an exchange between workers, on the CPU five times "
        "as long for a worker that is lost as they join; under Ray for free "
        "slots; under torchrun for worker 0 to prepare the data.",
    )
    max_failures: Annotated[int, NO_RESULT, EXPERT] = Field(
        0,
        ge=0,
        description="Ray only: times failed workers are started again.",
    )
    submit: Annotated[SubmitSection, NO_RESULT, EXPERT] = Field(
        SubmitSection(), description="Where `dist-embed submit` sends a job."
    )

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

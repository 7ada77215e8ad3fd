"""Settings of a job that is submitted to a cluster."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from dist_embed.section import EXPERT, PositiveFloat, PositiveInt, Section

Target = Literal["ray", "slurm"]
TARGETS: tuple[str, ...] = get_args(Target)

# What becomes a line of the script.
_ONE_LINE = r"^[^\n\r]*$"


class SlurmSection(Section):
    """A job under Slurm; what is not set is left to the cluster's defaults."""

    nodes: PositiveInt = Field(
        1, description="Machines; `cluster.num_workers` are spread evenly over them."
    )
    partition: str | None = Field(None, pattern=_ONE_LINE, description="As `sbatch --partition`.")
    hours: PositiveFloat | None = Field(
        None,
        description="Longest time at once. Before it ends the run saves, and the job queues again.",
    )
    cpus_per_worker: PositiveInt = Field(1, description="As `sbatch --cpus-per-task`.")
    gpus: bool | None = Field(
        None,
        description="Whether to ask for a GPU for each worker; by default with "
        "`cluster.device=cuda`.",
    )
    setup: str = Field(
        "",
        description="Lines of shell that make `dist-embed` known on a node: `module load …`, "
        "`source …/bin/activate`. Variables as `$HOME`: `${…}` is a reference to another key.",
    )
    options: Annotated[list[Annotated[str, Field(pattern=_ONE_LINE)]], EXPERT] = Field(
        [], description="More options of sbatch: `--account=lab`, `--constraint=a100`."
    )


class RaySection(Section):
    """A job of a Ray cluster."""

    address: str | None = Field(
        None,
        description="Of its job server: `http://HEAD:8265` or `HEAD:8265`; else "
        "RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.",
    )


class SubmitSection(Section):
    """What `dist-embed submit` sends a job to."""

    to: Target | None = Field(None, description="The kind of cluster; `--to` says so too.")
    ray: RaySection = Field(RaySection(), description="A job of a Ray cluster.")
    slurm: SlurmSection = Field(SlurmSection(), description="A job under Slurm.")

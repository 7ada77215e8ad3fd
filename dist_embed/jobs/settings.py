"""Settings of a job that is submitted to a cluster."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from dist_embed.section import (
    EXPERT,
    Cores,
    GiB,
    Hours,
    Minutes,
    NonNegativeInt,
    Section,
    Workers,
)

Target = Literal["ray", "slurm", "kubernetes"]
TARGETS: tuple[str, ...] = get_args(Target)

# What becomes a line of the script.
_ONE_LINE = r"^[^\n\r]*$"
# Names of Kubernetes' objects: of a namespace (DNS-1123 label), of most others (subdomain).
_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"
_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
KEEP_MINUTES = 10.0  # that pods of a job without `hours` stay, where nobody says how long
_Name = Annotated[str, Field(max_length=253, pattern=_SUBDOMAIN)]


class SlurmSection(Section):
    """A job under Slurm; what is not set is left to the cluster's defaults."""

    nodes: Workers = Field(
        1, description="Machines; `cluster.num_workers` are spread evenly over them."
    )
    partition: str | None = Field(None, pattern=_ONE_LINE, description="As `sbatch --partition`.")
    hours: Hours | None = Field(
        None,
        description="Longest time at once. Before it ends the run saves, and the job queues again.",
    )
    cpus_per_worker: Cores = Field(1, description="As `sbatch --cpus-per-task`.")
    gpus: bool | None = Field(
        None,
        description="Whether to ask for a GPU for each worker; by default with "
        "`cluster.device=cuda`.",
    )
    setup: str = Field(
        "",
        description="Lines of shell that make `dist-embed` known on a node: `module load …`, "
        "`source …/bin/activate`. Variables as `$HOME` or `\\${HOME}`: "
        "`${…}` is a reference to another key.",
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


class KubernetesSection(Section):
    """A `RayJob` of KubeRay: a head pod for the run's command, and pods that prepare and train."""

    image: str | None = Field(
        None,
        pattern=r"^[^\s]+$",
        description="With dist_embed, as `launch/Dockerfile` makes it. Has to be given.",
    )
    namespace: str = Field("default", pattern=_LABEL, description="Where the job lives.")
    secret: _Name | None = Field(
        None,
        description="Name of the Secret whose keys become environment variables of all pods, such "
        "as AWS_ACCESS_KEY_ID.",
    )
    workers_per_pod: Cores = Field(
        1,
        description="On machines with several GPUs as many as these: NVLink and shared memory join "
        "those of one pod alone.",
    )
    cpus_per_worker: Cores = Field(1, description="Cores, and threads, of a worker.")
    memory_gib: GiB | None = Field(
        None,
        description="Memory of a worker; by default what it is estimated to need, from the "
        "prepared data or, where there are none yet, `tokenizer.vocab_size`.",
    )
    hours: Hours | None = Field(
        None,
        description="Longest time in all. Then the pods go, the run saves, and the job does "
        "not go on.",
    )
    start_hours: Hours = Field(
        1.0, description="Longest wait for room for all pods; it counts as a failure."
    )
    retries: NonNegativeInt = Field(
        3,
        description="Failures after which the job starts again, with new pods, from the newest "
        "checkpoint. To KubeRay it is one, too, when the head's node is drained: more where that "
        "may happen often.",
    )
    keep_minutes: Annotated[Minutes | None, EXPERT] = Field(
        None,
        description="That the pods stay when the job has ended, and at the end of `hours` train "
        f"on; by default {KEEP_MINUTES:g}, with `hours` 0.",
    )
    head_cpus: Annotated[Cores, EXPERT] = Field(
        2, description="Cores of the head pod, in which the command reads the corpora."
    )
    head_memory_gib: Annotated[GiB, EXPERT] = Field(8.0, description="Memory of the head pod.")
    service_account: Annotated[_Name | None, EXPERT] = Field(
        None, description="Of all pods; where it stands for access to a store."
    )
    image_pull_secret: Annotated[_Name | None, EXPERT] = Field(
        None,
        description="Name of the Secret with which nodes fetch `image` from a registry that asks "
        "who they are (`kubectl create secret docker-registry`).",
    )
    volume_claim: Annotated[_Name | None, EXPERT] = Field(
        None,
        description="Name of a PersistentVolumeClaim that many pods may write to: then paths below "
        "`volume_path` serve as well as URLs.",
    )
    volume_path: Annotated[str, EXPERT] = Field(
        "/mnt/dist_embed", pattern=r"^/[^:]*[^:/]$", description="Where pods see that volume."
    )


class SubmitSection(Section):
    """What `dist-embed submit` sends a job to."""

    to: Target | None = Field(None, description="The kind of cluster; `--to` says so too.")
    ray: RaySection = Field(RaySection(), description="A job that a Ray cluster is sent.")
    slurm: SlurmSection = Field(SlurmSection(), description="A job under Slurm.")
    kubernetes: KubernetesSection = Field(
        KubernetesSection(), description="A job under Kubernetes, with KubeRay."
    )

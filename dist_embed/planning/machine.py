"""Machine files: what a worker's device, its node and the network do, in YAML that a user edits.

Those that come with the package are in ``planning/machines``; ``dist-embed bench calibrate`` writes
one of the machine that it runs on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field, ValidationError

from dist_embed.config.schema import Config
from dist_embed.errors import ConfigError, UserError
from dist_embed.mistakes import mistakes
from dist_embed.section import NonNegativeFloat, PositiveFloat, PositiveInt, Section

PAGE = "docs/planning.md"
_ENDING = ".yaml"
# What `bench calibrate` wrote before (docs/benchmarks/plan.md).
_GONE = ("factors", "crowding", "rest")
_SHIPPED = files("dist_embed.planning") / "machines"

Dtype = Literal["fp32", "bf16"]
Collective = Literal["all_to_all", "all_gather", "all_reduce"]


class Products(Section):
    """Matrix products of one type and one inner size."""

    type: Dtype = Field(description="Of what is multiplied.")
    inner: PositiveInt = Field(description="Values that are summed up for one of the result.")
    gflops: PositiveFloat = Field(description="10⁹ multiplications and additions a second.")


class Gather(Section):
    """Rows that are read one by one, anywhere in a table."""

    row_bytes: PositiveInt = Field(description="Of one row.")
    gb_s: PositiveFloat = Field(description="10⁹ bytes of rows a second.")


class Link(Section):
    """What one worker sends, while all do."""

    latency_us: NonNegativeFloat = Field(description="Until a message of no size is there, µs.")
    gb_s: PositiveFloat = Field(description="10⁹ bytes a second that a worker sends.")
    peer_us: NonNegativeFloat = Field(
        0.0, description="More for each worker that gets a message of its own, µs."
    )


class Exchange(Section):
    """A collective of some workers, as it was measured."""

    kind: Collective = Field(description="all_to_all, all_gather or all_reduce.")
    workers: Annotated[int, Field(ge=2)] = Field(description="That took part.")
    latency_us: NonNegativeFloat = Field(description="Of one without bytes, µs.")
    gb_s: PositiveFloat = Field(description="10⁹ bytes a second that a worker sends.")


class Store(Section):
    """Where checkpoints lie."""

    latency_ms: NonNegativeFloat = Field(description="Of a call that moves nothing, ms.")
    put_gb_s: PositiveFloat = Field(description="10⁹ bytes a second that a node writes.")
    get_gb_s: PositiveFloat = Field(description="10⁹ bytes a second that a node reads.")
    digest_gb_s: PositiveFloat = Field(
        1.0, description="10⁹ bytes a second that a worker takes the SHA-256 of."
    )


class Machine(Section):
    """What one kind of machine does. Speeds are of a worker's GPU, or of one core of a CPU."""

    name: str = Field(min_length=1, description="What a plan calls it.")
    source: str = Field(
        "not said", min_length=1, description="Where its figures are from; a plan tells it."
    )
    device: Literal["cpu", "cuda"] = Field(description="cpu or cuda.")
    workers_per_node: PositiveInt | None = Field(
        None, description="Workers of one node; null: all workers are on this machine."
    )
    cores: PositiveInt = Field(description="Cores of a node.")
    node_memory_gib: PositiveFloat = Field(description="Host memory of a node.")
    device_memory_gib: PositiveFloat | None = Field(None, description="Memory of a worker's GPU.")
    process_mib: NonNegativeFloat = Field(
        description="Host memory of a worker's process with its libraries."
    )
    host_link_gb_s: PositiveFloat | None = Field(
        None, description="10⁹ bytes a second between a GPU and its host, either way."
    )
    device_process_mib: NonNegativeFloat = Field(
        0.0, description="Of a GPU's memory, what the driver and libraries take."
    )
    efficiency: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="Share of `products` that products reach in a step."
    )
    products: Annotated[list[Products], Field(min_length=1)] = Field(
        description="Matrix products, by type and inner size."
    )
    thread_gflops: PositiveFloat | None = Field(
        None,
        description="10⁹ operations a second that a thread of a CPU does not exceed: by so many "
        "`train` refuses what takes minutes a step; null: what matrix units do.",
    )
    memory_gb_s: PositiveFloat = Field(description="10⁹ bytes a second read and written.")
    gather: Annotated[list[Gather], Field(min_length=1)] = Field(description="By size of rows.")
    operation_us: NonNegativeFloat = Field(
        description="What an operation on small tensors takes at least, µs."
    )
    within_node: Link = Field(description="Between two workers of a node.")
    between_nodes: Link | None = Field(None, description="Between workers of two nodes.")
    exchanges: list[Exchange] = Field([], description="Measured, instead of `within_node`.")
    store: Store = Field(description="Of checkpoints.")

    @property
    def narrow_is_native(self) -> bool:
        """Whether `train.precision: auto` is bf16 here."""
        return any(one.type == "bf16" for one in self.products)

    def nodes(self, workers: int) -> int:
        """How many nodes so many workers are on."""
        return 1 if self.workers_per_node is None else math.ceil(workers / self.workers_per_node)

    def workers_of_node(self, workers: int) -> int:
        """The most workers of a node, of so many in all."""
        return min(workers, self.workers_per_node or workers)

    def flops(self, dtype: Dtype, inner: int) -> float:
        """FLOP/s of products with sums of ``inner`` values; those of fp32 where there are none of
        ``dtype``.
        """
        of_type = [one for one in self.products if one.type == dtype] or self.products
        points = sorted((one.inner, one.gflops) for one in of_type)
        return 1e9 * self.efficiency * _between(points, inner)

    def host_link(self) -> float:
        """Bytes per second between where tables are trained and the memory of the host."""
        return 1e9 * (self.host_link_gb_s or self.memory_gb_s)

    def bytes_per_second(self) -> float:
        """That are read and written in a row."""
        return 1e9 * self.memory_gb_s

    def gathered_per_second(self, row_bytes: int) -> float:
        """Bytes of rows that are read or written one by one."""
        return 1e9 * _between(sorted((one.row_bytes, one.gb_s) for one in self.gather), row_bytes)


def _between(points: Sequence[tuple[int, float]], at: float) -> float:
    """A figure between measured ones, on a straight line over the logarithm; outside the last."""
    if at <= points[0][0]:
        return points[0][1]
    for (low, first), (high, second) in pairwise(points):
        if at <= high:
            share = math.log(at / low) / math.log(high / low)
            return first + share * (second - first)
    return points[-1][1]


def shipped_machines() -> list[str]:
    """The names of the machine files that come with the package."""
    found = (Path(entry.name) for entry in _SHIPPED.iterdir())
    return sorted(path.stem for path in found if path.suffix == _ENDING)


def usual_machine(config: Config) -> str:
    """The name of the one that a configuration is planned for where none is named."""
    return "8xh100" if config.cluster.device == "cuda" else "cpu"


def load_machine(name: str) -> Machine:
    """The machine of a name among `shipped_machines`, or of a file.

    Raises UserError: there is none, or a figure of it cannot be; the line names the figure, its
    value and what is allowed.
    """
    shipped = shipped_machines()
    if name in shipped:
        text = (_SHIPPED / f"{name}{_ENDING}").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, ValueError) as exc:
            raise UserError(
                f"--machine: {name!r} is neither a file nor one of {', '.join(shipped)} "
                f"({getattr(exc, 'strerror', None) or exc})"
            ) from None
    return machine_from_yaml(text, name)


def machine_from_yaml(text: str, origin: str) -> Machine:
    """A machine from the text of a file. Raises ConfigError."""
    values: object = None
    try:
        values = OmegaConf.to_container(OmegaConf.create(text))
    except (yaml.YAMLError, OmegaConfBaseException) as exc:
        raise ConfigError(f"{origin}: not valid YAML: {exc}") from None
    except AssertionError:  # OmegaConf's answer to a bare number
        pass
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: expected a mapping of figures, see {PAGE}")
    if gone := [key for key in _GONE if key in values]:
        raise ConfigError(
            f"{origin}: {', '.join(gone)}: not allowed any more, plans are nearer to runs without: "
            "remove them, or write the file anew by dist-embed bench calibrate"
        )
    try:
        machine = Machine.model_validate(values)
    except ValidationError as exc:
        raise ConfigError(mistakes(exc, Machine, origin, PAGE)) from None
    if machine.device == "cuda":
        for key in ("device_memory_gib", "host_link_gb_s"):
            if getattr(machine, key) is None:
                said = Machine.model_fields[key].description
                raise ConfigError(f"{origin}: {key}: missing; {said}")
    if machine.workers_per_node is not None and machine.between_nodes is None:
        raise ConfigError(
            f"{origin}: between_nodes: missing; with workers_per_node there may be several nodes"
        )
    return machine

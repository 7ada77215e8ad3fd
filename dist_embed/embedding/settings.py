"""Settings of the row-sharded tables."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_embed.optim.settings import Shape
from dist_embed.section import (
    EXPERT,
    MAY_CHANGE,
    NonNegativeInt,
    PositiveFloat,
    Section,
    Width,
)
from dist_embed.vectors.settings import PretrainedSection

Optimizer = Literal["rowwise_adagrad", "adagrad", "sgd", "adam"]
# Where the rows lie: on the device, in host memory that a GPU reads, or there with a cache on it.
Tier = Literal["device", "uvm", "uvm_caching"]
Memory = Literal["auto", Tier]
# FBGEMM's CUDA kernels have no bfloat16 rows (docs/decisions/0011-memory-tiers.md).
Weights = Literal["fp32", "fp16"]
Exchange = Literal["fp32", "fp16", "bf16"]


class TableSection(Section):
    """What one side's table does otherwise than the rest."""

    pretrained: PretrainedSection | None = Field(
        None, description="Start from the vectors of a file."
    )
    freeze: bool = Field(False, description="Leave the rows as they start.")
    freeze_until_step: Annotated[NonNegativeInt, EXPERT] = Field(
        0, description="Leave the rows as they start for this many steps."
    )
    learning_rate: Annotated[PositiveFloat | None, EXPERT] = Field(
        None, description="Peak rate of this table, instead of `embedding.learning_rate`."
    )


class TablesSection(Section):
    """Settings of single tables, by what they are for; sides that share a table share them."""

    source: TableSection | None = Field(None, description="The encoder's input.")
    target: TableSection | None = Field(None, description="The decoder's input.")
    output: TableSection | None = Field(None, description="The output layer.")


class EmbeddingSection(Section):
    """The row-sharded tables."""

    width: Width = Field(
        128,
        description="D, values per row; at most 2,048 on a GPU. In memory it is a multiple of 4.",
    )
    optimizer: Optimizer = Field(
        "rowwise_adagrad", description="Fused into the tables' backward. `adam` needs CUDA."
    )
    learning_rate: PositiveFloat = Field(0.05, description="Peak rate of the tables.")
    schedule: Annotated[Shape, EXPERT] = Field(
        "constant", description="How the tables' rate changes after warm-up."
    )
    warmup_steps: Annotated[NonNegativeInt, EXPERT] = Field(
        0, description="Steps of linear warm-up of the tables' rate."
    )
    eps: Annotated[float, EXPERT] = Field(
        1e-8, gt=0, le=1, description="The optimizer's term against division by zero."
    )
    memory: Annotated[Memory, MAY_CHANGE, EXPERT] = Field(
        "auto",
        description="Where the rows lie. `device`: on the GPU, or with the CPU; `uvm`: in host "
        "memory, which the GPU reads; `uvm_caching`: there, with a cache on the GPU; `auto`: "
        "`device` if they fit there on every worker, else `uvm_caching`. `uvm…` need CUDA.",
    )
    weights: Annotated[Weights, EXPERT] = Field(
        "fp32",
        description="Type of the rows. `fp16` rounds stochastically and needs CUDA; the "
        "optimizer's state stays fp32. (FBGEMM cannot train bf16 rows.)",
    )
    exchange: Annotated[Exchange, EXPERT] = Field(
        "fp32",
        description="Type in which looked-up vectors and their gradients cross the network; "
        "`fp16` sends the gradients in bf16, for its range. Both need CUDA.",
    )
    tables: TablesSection = Field(TablesSection(), description="Settings of single tables.")

"""Settings of training: optimisation of the dense part, and when things happen."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from dist_embed.optim.settings import Shape
from dist_embed.parallel.settings import Precision
from dist_embed.section import (
    EXPERT,
    MAY_CHANGE,
    NO_RESULT,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Probability,
    Section,
)


class TrainSection(Section):
    """Optimisation of the dense part, and when things happen."""

    max_steps: Annotated[PositiveInt, MAY_CHANGE] = Field(
        description="Optimizer steps of the whole run. `cosine` and `linear` schedules end here: a "
        "run that goes on with a larger value takes up the longer schedule where it stands."
    )
    batch_tokens: PositiveInt = Field(
        4096,
        description="Token budget of one global step: the sum over its units, small batches of "
        "sentences of like length, of sentences × longest side, padding included.",
    )
    accumulate: Annotated[PositiveInt, EXPERT] = Field(
        1, description="Micro-batches per worker and step; but for dropout the result is the same."
    )
    learning_rate: PositiveFloat = Field(1e-3, description="Peak rate of the dense part (AdamW).")
    schedule: Shape = Field("inverse_sqrt", description="How the dense rate changes after warm-up.")
    warmup_steps: NonNegativeInt = Field(0, description="Steps of linear warm-up.")
    beta1: Annotated[Probability, EXPERT] = Field(
        0.9, description="AdamW's decay of the first moment."
    )
    beta2: Annotated[Probability, EXPERT] = Field(
        0.98, description="AdamW's decay of the second moment."
    )
    weight_decay: Annotated[float, EXPERT] = Field(
        0.0, ge=0, le=1000, description="AdamW's decoupled weight decay."
    )
    label_smoothing: Probability = Field(0.0, description="ε, spread evenly over the vocabulary.")
    clip_norm: NonNegativeFloat = Field(
        0.0,
        description="Largest global gradient norm, dense part and tables together; 0: no limit.",
    )
    max_skipped_steps: Annotated[PositiveInt, NO_RESULT, EXPERT] = Field(
        20, description="Stop after this many steps in a row with a non-finite loss or gradient."
    )
    precision: Annotated[Precision, EXPERT] = Field(
        "auto", description="`auto`: bf16 where the device multiplies it natively, else fp32."
    )
    log_every: Annotated[PositiveInt, MAY_CHANGE] = Field(
        50, description="Steps between two lines of metrics; each validation has one too."
    )
    evaluate_every: Annotated[PositiveInt, MAY_CHANGE] = Field(
        500, description="Steps between two validations."
    )
    translate_every: Annotated[NonNegativeInt, MAY_CHANGE] = Field(
        0, description="Steps between two translations of the validation set (BLEU); 0: none."
    )
    neighbors_of: Annotated[list[str], NO_RESULT] = Field(
        [],
        description="Words of the source side whose nearest words are recorded at each translation "
        "of the validation set, for `dist-embed report`.",
    )

"""Settings of checkpoints: when they are written, and which stay."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dist_embed.section import (
    EXPERT,
    NO_RESULT,
    Minutes,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    Seconds,
    Section,
    Timeout,
)

# Which memory for a copy of a worker's rows it takes: one that is kept, one while a checkpoint is
# loaded, none.
Saving = Literal["behind", "waiting", "in_place"]


class CheckpointSection(Section):
    """When checkpoints are written and which are kept."""

    every_steps: NonNegativeInt = Field(
        500,
        description="A checkpoint is due in steps divisible by this; 0: by minutes alone. The last "
        "step always is saved, and with both 0 no other but the best (`keep_best`). One that is "
        "due while another is being written is made once that has ended, of the step that is done "
        "by then.",
    )
    every_minutes: Minutes = Field(
        0.0,
        description="A checkpoint is due too so long after training went on from the one before, "
        "by the clock of worker 0; 0: by steps alone.",
    )
    keep_last: PositiveInt = Field(3, description="Newest checkpoints kept.")
    keep_best: NonNegativeInt = Field(
        1,
        description="Checkpoints with the lowest validation loss kept; a validation that is the "
        "best so far is followed by a checkpoint, for which training waits for another one that is "
        "being written. 0: neither.",
    )
    keep_every: Annotated[NonNegativeInt, EXPERT] = Field(
        0, description="Checkpoints of steps divisible by this are kept for ever; 0: none."
    )
    saving: Annotated[Saving, EXPERT] = Field(
        "behind",
        description="`behind`: written behind training, from a copy in host memory; `waiting`: "
        "training waits, and only a load takes such a copy; `in_place`: training waits, and none "
        "is taken: a load reads everything twice, first to prove it; what lies on a GPU it reads "
        "through host memory, one tensor at a time.",
    )
    max_failures: Annotated[NonNegativeInt, NO_RESULT, EXPERT] = Field(
        2, description="Failed saves in a row that a run goes on with; a full disk stops it."
    )
    retry_seconds: Annotated[Seconds, NO_RESULT, EXPERT] = Field(
        120.0,
        description="How long a call that a store fails is repeated, seconds: those of checkpoints "
        "while a run trains, and those with which it starts. All others, such as reading ahead in "
        "prepared data, are repeated for 120 s.",
    )
    timeout_seconds: Annotated[Timeout, NO_RESULT, EXPERT] = Field(
        1800.0,
        description="Within which every worker must have written its part, once worker 0 has, "
        "seconds. A run that waits for a save gives up when no chunk of it was written for twice "
        "as long; one that trains meanwhile begins to wait after so long without one.",
    )
    drain_seconds: Annotated[Seconds, NO_RESULT, EXPERT] = Field(
        60.0,
        description="How long a run that is stopped or fails waits for its last checkpoint. "
        "With the local launcher not after a worker was killed: the others have 10 s then.",
    )
    leftover_hours: Annotated[NonNegativeFloat, NO_RESULT, EXPERT] = Field(
        24.0, description="Age at which what unfinished saves left behind is removed."
    )

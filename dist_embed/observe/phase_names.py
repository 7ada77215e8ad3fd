"""The names of a step's phases. Free of torch: who plans a run, or reads its metrics, asks."""

from __future__ import annotations

from typing import Literal, get_args

# In the order of a step. `agreement`: what all workers agree on between two steps. `gradient norm`:
# norms, and the exchange of the step's sums, in which a GPU's host waits for its results.
PhaseName = Literal[
    "agreement", "checkpoint stall", "data wait", "ids exchange", "lookup", "encoder", "decoder",
    "output", "dense backward", "gradient norm", "optimizer", "table backward",
]  # fmt: skip
PHASES: tuple[PhaseName, ...] = get_args(PhaseName)


def metric_of(phase: PhaseName) -> str:
    """The name of a phase's seconds in a run's metrics."""
    return f"phase/{key_of(phase)}"


def key_of(phase: PhaseName) -> str:
    """The name of a phase where blanks are not wanted."""
    return phase.replace(" ", "_")

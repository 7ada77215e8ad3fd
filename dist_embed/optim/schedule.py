"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from dist_embed.optim.settings import Shape


@dataclass(frozen=True)
class Schedule:
    """Linear warm-up to ``peak``, then a decay.

    ``inverse_sqrt`` falls with 1 / √step from the end of warm-up (Vaswani et al. 2017, section
    5.3); ``cosine`` and ``linear`` reach zero at ``max_steps``.
    """

    peak: float
    shape: Shape
    warmup_steps: int
    max_steps: int

    def rate(self, step: int) -> float:
        """Rate of step ``step``, counted from 1."""
        if step < self.warmup_steps:
            return self.peak * step / self.warmup_steps
        start = max(1, self.warmup_steps)
        if self.shape == "constant":
            return self.peak
        if self.shape == "inverse_sqrt":
            return self.peak * math.sqrt(start / max(step, start))
        done = min(1.0, (step - start) / max(1, self.max_steps - start))
        if self.shape == "cosine":
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        return self.peak * (1 - done)


@dataclass(frozen=True)
class Rates:
    """The learning rates of a run.

    Attributes:
        dense: of the dense part.
        tables: of the tables,
        own: but for those that have one of their own.
        frozen_until: tables that stay as they are, with the last step of it.
    """

    dense: Schedule
    tables: Schedule
    own: dict[str, Schedule] = field(default_factory=dict)
    frozen_until: dict[str, float] = field(default_factory=dict)

    def frozen(self, step: int) -> frozenset[str]:
        """The tables that stay as they are in a step."""
        return frozenset(name for name, last in self.frozen_until.items() if step <= last)

"""What measurements ask of workers that train; see `dist_embed.training.tasks`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from dist_embed.config.schema import Config
from dist_embed.embedding.settings import Tier
from dist_embed.training.needs import baseline_bytes
from dist_embed.training.tasks import Task

if TYPE_CHECKING:
    from dist_embed.training.worker import Context


@dataclass(frozen=True)
class Baseline(Task[dict[str, Any]]):
    """Training speed beside a plain PyTorch DDP model.

    Attributes:
        rounds: in each of which every side runs.
        steps: of a round.
        precisions: of fp32 and bf16.
        compiled: whether the plain model runs under torch.compile too.
        data_folder: see `Train`.
    """

    rounds: int
    steps: int
    precisions: Sequence[str]
    compiled: bool
    data_folder: str | None = None

    def function(self) -> Callable[[Context], dict[str, Any]]:
        """See `baseline.baseline_task`."""
        from dist_embed.bench.baseline import baseline_task

        return partial(baseline_task, asked=self)

    def host_bytes(
        self, config: Config, vocabulary_size: dict[str, int], *, narrow_products: bool,
        tier: Tier | None, word_tables: bool,
    ) -> int:  # fmt: skip
        """Nothing is saved, no words are held, and products are as narrow as ``precisions``."""
        return baseline_bytes(
            config, vocabulary_size, precisions=self.precisions, compiled=self.compiled, tier=tier
        )


@dataclass(frozen=True)
class PhaseCost(Task[dict[str, Any]]):
    """What it costs training steps that their phases are recorded.

    Attributes:
        rounds: in each of which steps are recorded, and not.
        steps: of either.
        data_folder: see `Train`.
    """

    rounds: int
    steps: int
    data_folder: str | None = None

    def function(self) -> Callable[[Context], dict[str, Any]]:
        """See `phase_cost.phase_cost_task`."""
        from dist_embed.bench.phase_cost import phase_cost_task

        return partial(phase_cost_task, asked=self)


@dataclass(frozen=True)
class ProfileSteps(Task[dict[str, Any]]):
    """Where the time of training steps goes.

    Attributes:
        steps: that are timed, and as many that are recorded.
        trace: the file that worker 0 records into.
        data_folder: see `Train`.
    """

    steps: int
    trace: str
    data_folder: str | None = None

    def function(self) -> Callable[[Context], dict[str, Any]]:
        """See `step_profile.step_task`."""
        from dist_embed.bench.step_profile import step_task

        return partial(step_task, asked=self)

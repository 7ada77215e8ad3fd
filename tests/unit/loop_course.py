"""The training loop among stand-ins, which note what happens in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from dist_embed.checkpoint.manifest import METRIC
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import TrainingState
from dist_embed.data.loader import Position, StepBatches
from dist_embed.observe.events import Reporter
from dist_embed.optim.schedule import Rates, Schedule
from dist_embed.parallel.group import Group
from dist_embed.training.evaluate import Quality
from dist_embed.training.loop import Hooks, train_loop
from dist_embed.training.settings import TrainSection
from dist_embed.training.step import StepResult

ALONE = Group(0, 1, 1, torch.device("cpu"), None)  # type: ignore[arg-type]
RATES = Rates(dense=Schedule(0.5, "linear", 4, 12), tables=Schedule(0.125, "constant", 0, 12))
STEP_SECONDS = 2.0
OTHER_SECONDS = 100.0  # what a validation, a translation and a save take


def after(number: int) -> Position:
    """Where the batch of a number, from 0, ends; ten are an epoch."""
    return Position((number + 1) // 10, 3, (number + 1) % 10)


@dataclass
class Given:
    """A batch that tells where it has been sent."""

    course: list[Any]

    def to(self, device: torch.device) -> Given:
        self.course.append(("to", device.type))
        return self


@dataclass
class Run:
    """The loop's surroundings; ``course`` is what happened, in order.

    Attributes:
        results: by step, what it finds; else a loss of 1.0 of ten tokens.
        asked_after: the step in which this process is asked to stop; -1: never.
        ended_after: the step after which the first save, under way from the start, has ended.
        save_takes: so many steps.
        hangs_after: the step after which a save under way is said to hang.
        losses: by step, what a validation finds.
    """

    group: Group = ALONE
    results: dict[int, StepResult] = field(default_factory=dict)
    asked_after: int = -1
    ended_after: int = -1
    save_takes: int = 0
    hangs_after: int = 10**9
    losses: dict[int, float] = field(default_factory=dict)
    first_step: int = 0
    position: Position = field(default_factory=Position)
    course: list[Any] = field(default_factory=list)
    prepared: list[Any] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    progress: list[dict[str, Any]] = field(default_factory=list)
    metrics: list[dict[str, Any]] = field(default_factory=list)
    now: float = 0.0
    saved_step: int = 0
    step_under_way: int | None = None
    publishes: bool = True
    saved_scalars: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.ended_after >= 0:
            self.step_under_way = self.first_step
        self.state = TrainingState(
            self.group, self.first_step, {},
            scalars={"position": self.position.to_dict(), "skipped_steps": 4},
        )  # fmt: skip

    # The loader.
    def prefetched(self, start: Position, prepare: Callable[[StepBatches], StepBatches]) -> Run:
        self.course.append(("from", start))
        self._works = map(prepare, self._all_works())
        return self

    def _all_works(self) -> Iterator[StepBatches]:
        number = 10 * self.position.epoch + self.position.batch
        while True:
            batches: Any = [Given(self.course)]
            yield StepBatches(batches, [[10]], after(number))
            number += 1

    def __next__(self) -> StepBatches:
        return next(self._works)

    # The step.
    rates = RATES

    def prepare(self, step: int, work: StepBatches) -> StepBatches:
        self.prepared.append((step, work.after))
        return work

    def run(self, step: int, work: StepBatches, following: StepBatches | None) -> StepResult:
        self.course.append(("step", step, work.after, following and following.after))
        self.now += STEP_SECONDS
        return self.results.get(step, StepResult(1.0, 0.5, 10, False, None))

    # The saver, and the end of loader and saver.
    @property
    def has_ended(self) -> bool:
        return self.step_under_way is not None and self.ended_after <= self.state.step

    @property
    def may_hang(self) -> bool:
        return self.step_under_way is not None and self.hangs_after <= self.state.step

    def conclude(self) -> None:
        self.step_under_way = None
        self.course.append(("concluded", self.state.step))

    def save(self, state: TrainingState, check: Callable[[], None]) -> None:
        check()
        self.now += OTHER_SECONDS
        self.course.append(("save", state.step, state.scalars.get(METRIC)))
        self.saved_scalars = dict(state.scalars)
        if self.publishes:
            self.saved_step = state.step
        if self.save_takes:
            self.step_under_way, self.ended_after = state.step, state.step + self.save_takes

    def wait(self, limit: float | None = None) -> None:
        self.step_under_way = None
        self.course.append(("wait", limit))

    def require(self, step: int) -> None:
        self.course.append(("require", step))

    def close(self) -> None:
        self.course.append(("close",))

    # What the user and the metrics get.
    def emit(self, event: dict[str, Any]) -> None:
        if event["kind"] == "line":
            self.lines.append(event["text"])
        else:
            self.progress.append(event)

    def write(self, step: int, **values: Any) -> None:
        self.course.append(("metrics", step, *sorted(values)[:1]))
        self.metrics.append({"step": step, **values})

    # The hooks.
    def validate(self) -> float:
        self.now += OTHER_SECONDS
        self.course.append(("validate", self.state.step))
        return self.losses.get(self.state.step, float(self.state.step))

    def translate(self) -> Quality:
        self.now += OTHER_SECONDS
        self.course.append(("translate", self.state.step))
        return Quality(
            21.5, 43.25, "tok:13a", 17, 3.4, [], [], [{"source": "a"}], {"a": [("b", 0.5)]}
        )  # fmt: skip

    def train(
        self, patched: Callable[[str, Any], None] = lambda name, value: None, *,
        held_out: bool = True, best_loss: float = math.inf, **rhythm: Any,
    ) -> bool:  # fmt: skip
        patched("stop_requested", lambda: 0 <= self.asked_after <= self.state.step)
        never = {"max_steps": 12, "log_every": 100, "evaluate_every": 100, "max_skipped_steps": 3}
        checkpoint = CheckpointSection(
            every_steps=rhythm.pop("save_every", 100), drain_seconds=7.0,
            every_minutes=rhythm.pop("save_seconds", 0.0) / 60,
            keep_best=rhythm.pop("keep_best", 0),
        )  # fmt: skip
        self_: Any = self
        hooks = Hooks(self.validate, self.translate) if held_out else Hooks(None, None)
        return train_loop(
            self.state, self_, self_, TrainSection(**(never | rhythm)), checkpoint, hooks, self_,
            reporter=Reporter(self.emit), metrics=self_ if self.group.is_first else None,
            best_loss=best_loss,
        )  # fmt: skip

    def happened(self, *kinds: str) -> list[Any]:
        return [event for event in self.course if event[0] in kinds]

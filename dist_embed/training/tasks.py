"""What workers are asked to do: small objects with typed options, which launchers send as they are.

The launching process need not import what a worker needs, which takes seconds.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Generic, TypeVar

from dist_embed.config.schema import Config
from dist_embed.embedding.settings import Tier
from dist_embed.training.needs import host_bytes
from dist_embed.training.results import Evaluation, TrainResult, Translations

if TYPE_CHECKING:
    from dist_embed.training.worker import Context

R_co = TypeVar("R_co", covariant=True)


class Task(Generic[R_co]):
    """A task of all workers.

    Attributes:
        trains: whether it is a run's training, which saves and is refused where a step would take
            too long.
        keeps_states: whether tables have the optimizer's.
        sentences: pairs of its training text, see `needs.host_bytes`; 0: it has none.
    """

    trains: ClassVar[bool] = False
    keeps_states: ClassVar[bool] = True
    sentences: int | None = 0

    @abstractmethod
    def function(self) -> Callable[[Context], R_co]:
        """What does it, imported here: on a worker, before it joins the others."""

    def host_bytes(
        self, config: Config, vocabulary_size: dict[str, int], *, narrow_products: bool,
        tier: Tier | None, word_tables: bool,
    ) -> int:  # fmt: skip
        """Host memory that a worker needs; arguments as those of `needs.host_bytes`."""
        return host_bytes(
            config, vocabulary_size, training=self.keeps_states, narrow_products=narrow_products,
            tier=tier, word_tables=word_tables, sentences=self.sentences,
        )  # fmt: skip


@dataclass(frozen=True)
class Train(Task[TrainResult]):
    """Train a run to its last step, from its newest checkpoint if there is one.

    Attributes:
        data_folder: the prepared data that the launching process has looked into; see
            `run.data.data_of_all`.
        profile: the first and the last step to record; see `step_traces.StepTraces`.
        sentences: of these data.
    """

    data_folder: str | None = None
    profile: tuple[int, int] | None = None
    sentences: int | None = 0
    trains: ClassVar[bool] = True

    def function(self) -> Callable[[Context], TrainResult]:
        """See `training.train.train_task`."""
        from dist_embed.training.train import train_task

        return partial(train_task, asked=self)


@dataclass(frozen=True)
class Evaluate(Task[Evaluation]):
    """Loss and translation quality of a run's checkpoint on a split.

    Attributes:
        split: of the held-out ones.
        step: of the checkpoint; None: the best one.
        training_tokens: the loss of so many tokens of the training data too; None: not.
        against_exact: whether it is measured too what candidate lists lose, where there are any.
        data_folder: see `Train`.
    """

    split: str
    step: int | None = None
    training_tokens: int | None = None
    against_exact: bool = False
    data_folder: str | None = None
    keeps_states: ClassVar[bool] = False

    def function(self) -> Callable[[Context], Evaluation]:
        """See `inference.evaluate_task`."""
        from dist_embed.training.inference import evaluate_task

        return partial(evaluate_task, asked=self)


@dataclass(frozen=True)
class Translate(Task[Translations]):
    """Translate lines of text that every worker has.

    Attributes:
        lines: of source text.
        step: of the checkpoint; None: the best one.
    """

    lines: list[str] = field(repr=False)
    step: int | None = None
    keeps_states: ClassVar[bool] = False

    def function(self) -> Callable[[Context], Translations]:
        """See `inference.translate_task`."""
        from dist_embed.training.inference import translate_task

        return partial(translate_task, asked=self)


@dataclass(frozen=True)
class TranslateStream(Task[int]):
    """Translate lines that worker 0 asks the launching process for. Gives the checkpoint's step.

    Attributes:
        step: of the checkpoint; None: the best one.
    """

    step: int | None = None
    keeps_states: ClassVar[bool] = False

    def function(self) -> Callable[[Context], int]:
        """See `stream.translate_stream_task`."""
        from dist_embed.training.stream import translate_stream_task

        return partial(translate_stream_task, asked=self)

"""Checkpoints of sharded tables: what is taken of them, and a loop of one's own that keeps them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import Tensor

from dist_embed.checkpoint.catalogue import open_checkpoints
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.manifest import ManifestName
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.errors import UserError

if TYPE_CHECKING:
    from typing_extensions import Self

_VALUES = "values"  # their name among the scalars


def live_tensors(
    tables: ShardedTables, dense: Mapping[str, Tensor], *, optimizer_state: bool = True
) -> dict[str, LiveTensor]:
    """What a checkpoint holds: the tables' rows with their optimizer's state, and ``dense``."""
    tensors: dict[str, LiveTensor] = {}
    for name, spec in tables.specs.items():
        first_row = tables.shards[name].first_row
        views = {"weight": tables.weight(name)}
        if optimizer_state:
            views |= tables.optimizer_state(name)
        for key, view in views.items():
            tensors[f"table.{name}.{key}"] = LiveTensor(
                view, first_row, spec.num_rows, replicated=False
            )
    return tensors | {name: LiveTensor.whole(tensor) for name, tensor in dense.items()}


def row_multipliers(tables: ShardedTables) -> dict[str, int]:
    """For each table m of ``row = (id * m) mod rows``."""
    return {name: order.multiplier for name, order in tables.orders.items()}


class Checkpoints:
    """Checkpoints of tables in a training loop of one's own.

    They have the promises of those of a run (docs/checkpoints.md): one exists when all of it has
    been written, every byte that is loaded is proven before, they load on any number of workers,
    and saving goes on behind training. Whether values are finite is not looked at::

        with Checkpoints("s3://bucket/words", tables) as checkpoints:
            for step in range(checkpoints.load() + 1, last + 1):
                ...
                if step % 1000 == 0:
                    checkpoints.save(step)

    Args:
        uri: a folder, as a path or any fsspec URL; they lie in ``checkpoints`` there.
        tables: whose rows and optimizer's state are kept.
        dense: by name what every worker holds, equal on all: live tensors, which `load` fills.
        keep_last: how many stay, the newest.
        timeout_seconds: within which the other workers must have written, once worker 0 has.
        report: takes lines for the user.

    Attributes:
        values: whatever JSON can hold: saved with each checkpoint, equal on all workers; after
            `load` those of the one that was loaded.

    Raises:
        UserError: a name of ``dense`` is one that tables have.

    Where the block ends by an error, the save under way gets ten seconds.
    """

    def __init__(
        self,
        uri: str,
        tables: ShardedTables,
        *,
        dense: Mapping[str, Tensor] | None = None,
        keep_last: int = 3,
        timeout_seconds: float = 600.0,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        for name in dense or {}:
            if name.startswith("table."):
                raise UserError(
                    f"dense: {name!r} is not allowed: table.… are the tables' own names"
                )
        self.values: dict[str, Any] = {}
        self._store = open_checkpoints(uri)
        self._tables = tables
        self._dense = dict(dense or {})
        self._settings = CheckpointSection(
            keep_last=keep_last,
            keep_best=0,
            max_failures=0,
            timeout_seconds=timeout_seconds,
            drain_seconds=10.0,
        )
        self._pruner = Pruner(self._store, self._settings)
        self._report = report
        self._saver: Saver | None = None

    def load(self) -> int:
        """Load the newest checkpoint that is sound; its step, or 0 where there is none.

        Raises:
            CheckpointError: there are some, and none is sound; or the newest is of tables, or of
                ``dense``, with other names, sizes or types, or of another optimizer.

        Collective.
        """
        state = self._state(0)
        loaded = load_newest(self._store, state, self._report)
        self.values = state.scalars.get(_VALUES, {})
        self._saver = self._made(loaded.damaged)
        return loaded.step

    def save(self, step: int) -> None:
        """Begin to save as of ``step``, from 1; returns as soon as tables may change again.

        A save under way is waited for first.

        Raises:
            CheckpointError: that one has failed, or there is one of this step already.

        Collective.
        """
        if self._saver is None:
            self._saver = self._made(frozenset())
        self._saver.save(self._state(step))

    def wait(self) -> None:
        """Wait for the save under way, if any. Raises as `save` does. Collective."""
        if self._saver is not None:
            self._saver.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self._saver is None:
            return
        try:
            if kind is None:
                self._saver.wait()
        finally:
            self._saver.close()

    def _state(self, step: int) -> TrainingState:
        tables = self._tables
        return TrainingState(
            group=tables.group,
            step=step,
            tensors=live_tensors(tables, self._dense),
            row_multipliers=row_multipliers(tables),
            scalars={_VALUES: self.values},
            before_reading=tables.before_reading,
            after_writing=tables.after_writing,
        )

    def _made(self, damaged: frozenset[ManifestName]) -> Saver:
        return Saver(
            self._store, self._tables.group, self._settings, self._pruner, damaged=damaged,
            report=self._report,
        )  # fmt: skip

"""Checkpoints of sharded tables: what is taken of them, and a loop of one's own that keeps them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from torch import Tensor

from dist_embed.arguments import function, of_kind, one_of, real_number, shown, whole_number
from dist_embed.checkpoint.catalogue import current_names, open_checkpoints
from dist_embed.checkpoint.load import load_newest
from dist_embed.checkpoint.manifest import CheckpointError, ManifestName
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.settings import CheckpointSection, Saving
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.embedding.sharded_tables import ShardedTables
from dist_embed.errors import UserError
from dist_embed.parallel.errors import all_or_none
from dist_embed.storage import uri as storage
from dist_embed.storage.objects import ObjectStore

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
        uri: a folder, as a path, relative to the working folder of now, or any fsspec URL; they lie
            in ``checkpoints`` there.
        tables: whose rows and optimizer's state are kept.
        dense: by name what every worker holds, equal on all: live tensors, which `load` fills.
        keep_last: how many stay, the newest.
        saving: ``behind``: from a copy of the tables in host memory, which stays; ``waiting``:
            training waits, and only a load takes such a copy; ``in_place``: none is taken, and a
            load reads everything twice, first to prove it; what lies on a GPU, or is not
            contiguous, it reads through host memory, one tensor at a time.
        timeout_seconds: within which the other workers must have written, once worker 0 has.
        report: takes lines for the user.

    Attributes:
        values: what JSON holds: text, numbers, bools, None, lists (tuples come back as these) and
            dictionaries by text. Saved with each checkpoint, equal on all workers; after `load`
            those of the one that was loaded.

    Raises:
        UserError: an argument cannot be; or a name of ``dense`` is one that tables have.

    Where the block ends by an error, the save under way gets ten seconds. Outside a ``with`` block
    nobody would wait for a save at the end: there `save` returns when it is written. The
    constructor is collective.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        tables: ShardedTables,
        *,
        dense: Mapping[str, Tensor] | None = None,
        keep_last: int = 3,
        saving: Saving = "behind",
        timeout_seconds: float = 600.0,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        of_kind("tables", tables, ShardedTables, "they are a ShardedTables")
        tables.group.require_joined()
        with all_or_none(tables.group):
            uri = storage.absolute(storage.given(uri, "uri"))
            _check_dense(dense)
            keep_last = whole_number("keep_last", keep_last, 1)
            one_of("saving", saving, get_args(Saving))
            timeout_seconds = real_number("timeout_seconds", timeout_seconds, positive=True)
            function("report", report)
        self.values: dict[str, Any] = {}
        self._store = open_checkpoints(uri)
        self._tables = tables
        self._dense = dict(dense or {})
        self._settings = CheckpointSection(
            keep_last=keep_last,
            keep_best=0,
            saving=saving,
            max_failures=0,
            timeout_seconds=timeout_seconds,
            drain_seconds=10.0,
        )
        self._pruner = Pruner(self._store, self._settings)
        self._report = report
        self._saver: Saver | None = None
        self._loaded = 0  # step of the checkpoint that this goes on from
        self._in_block = False

    def load(self) -> int:
        """Load the newest checkpoint that is sound; its step, or 0 where there is none.

        Raises:
            UserError: none can lie there: it is a file, or no folder can be made.
            CheckpointError: there are some, and none is sound; or the newest is of tables, or of
                ``dense``, with other names, sizes or types, or of another optimizer.
            StoreUnavailable, OSError: they could not be read.

        Tables and ``dense`` are as they were after an error, unless ``saving`` is ``in_place``: if
        the second reading fails, a part of them has been overwritten. Collective.
        """
        self.wait()
        self._tables.group.require_joined()
        self._check_folder()
        state = self._state(0)
        in_place = self._settings.saving == "in_place"
        loaded = load_newest(self._store, state, self._report, in_place=in_place)
        self.values = state.scalars.get(_VALUES, {})
        self._loaded = loaded.step
        self._saver = self._made(loaded.damaged)
        return loaded.step

    def save(self, step: int) -> None:
        """Begin to save as of ``step``, from 1; returns as soon as tables may change again.

        A save under way is waited for first; outside a ``with`` block this one too.

        Raises:
            UserError: ``step`` is no number from 1 on, JSON cannot hold `values` or changes them,
                or nothing can be written there.
            CheckpointError: that one has failed, or there is one of this step, or a later one: of
                two trainings in one place the pruning would keep the steps that are higher.

        Collective.
        """
        step = whole_number("step", step, 1)
        _check_values(self.values)
        self.wait()
        self._tables.group.require_joined()
        newest = max(self._loaded, self._saver.saved_step if self._saver else 0)
        if not newest:  # what may be there is another training's
            self._check_folder(step)
        elif step <= newest:
            raise CheckpointError(_too_low(step, newest, self._store))
        if self._saver is None:
            self._saver = self._made(frozenset())
        self._saver.save(self._state(step))
        if not self._in_block:
            self._saver.wait()

    def wait(self) -> None:
        """Wait for the save under way, if any. Raises as `save` does. Collective."""
        if self._saver is not None and self._saver.step_under_way is not None:
            self._tables.group.require_joined()
            self._saver.wait()

    def __enter__(self) -> Self:
        self._in_block = True
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._in_block = False
        if self._saver is None:
            return
        try:
            if kind is None:
                self.wait()
        finally:
            self._saver.close()

    def _check_folder(self, step: int | None = None) -> None:
        """Refuse a place that cannot hold checkpoints, or has one of ``step`` or a later one.
        Collective.
        """
        with all_or_none(self._tables.group):
            if not self._tables.group.is_first:
                return
            if self._store.is_local:
                _make_writable(self._store)
            if step is None:
                return
            newest = max((name.step for name in current_names(self._store)), default=0)
            if step <= newest:
                raise CheckpointError(_too_low(step, newest, self._store))

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


def _too_low(step: int, newest: int, store: ObjectStore) -> str:
    if step == newest:
        return f"step: {step} has a checkpoint in {store.uri} already; a step is saved once"
    return (
        f"step: {step} is not allowed: {store.uri} has a checkpoint of step {newest}; load it and "
        "go on from there, or give another place"
    )


def _make_writable(store: ObjectStore) -> None:
    """Make a local store's folder. Raises UserError: it cannot be, or could not be written to."""
    folder: Path = storage.local_path(store.uri)
    try:
        storage.make_folder(folder)
    except (FileExistsError, NotADirectoryError) as exc:
        raise UserError(
            f"uri: checkpoints cannot lie in {store.uri}: {exc.filename} is no folder"
        ) from exc
    except OSError as exc:
        raise UserError(
            f"uri: checkpoints cannot lie in {store.uri}: no folder can be made there "
            f"({exc.strerror}); give one that can be written to"
        ) from exc
    # Whoever only loads need not write.
    if not os.access(folder, os.W_OK | os.X_OK) and not current_names(store):
        raise UserError(
            f"uri: checkpoints cannot lie in {store.uri}: it cannot be written to, and holds none"
        )


def _check_dense(dense: Any) -> None:
    if dense is None:
        return
    if not isinstance(dense, Mapping):
        raise UserError(
            f"dense: a {type(dense).__name__} is not allowed: give tensors by name; those of a "
            "module and its AdamW are dist_embed.training.assemble.dense_tensors(module, optimizer)"
        )
    for name, tensor in dense.items():
        if not isinstance(name, str) or name.startswith("table."):
            raise UserError(
                f"dense: {name!r} is not allowed: names are text, and table.… the tables' own"
            )
        if not isinstance(tensor, Tensor):
            raise UserError(f"dense: {name!r}: {shown(tensor)} is no tensor; others go to `values`")


def _check_values(values: Any) -> None:
    """Raise UserError where JSON cannot hold what a checkpoint is to keep, or would change it."""
    parts = values.items() if isinstance(values, dict) else [("", values)]
    for name, value in parts:
        try:
            json.dumps({name: value}, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as exc:
            raise UserError(
                f"values: {shown(name)}: {shown(value)} is not allowed: JSON cannot hold it "
                f"({exc}); tensors that are to be kept go to `dense`"
            ) from exc
    for place, key in _changed("values", values):
        raise UserError(f"a key of {place}: {shown(key)} is not allowed: JSON makes text of it")


def _changed(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Keys of dictionaries that JSON would make text of, and where they stand."""
    if isinstance(value, list | tuple):
        for number, one in enumerate(value):
            yield from _changed(f"{place}[{number}]", one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if not isinstance(name, str):
                yield place, name
            yield from _changed(f"{place}[{name!r}]", one)

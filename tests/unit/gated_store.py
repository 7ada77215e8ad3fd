"""A store that waits when it is told to, and what is saved into it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

import torch

from dist_embed.checkpoint.catalogue import manifest_names
from dist_embed.checkpoint.retention import Pruner
from dist_embed.checkpoint.saver import Saver
from dist_embed.checkpoint.state import LiveTensor, TrainingState
from dist_embed.parallel.group import Group
from dist_embed.storage.objects import Buffer, Entry, ObjectStore
from tests.checkpoints import keeping, saving

ONE = Group(0, 1, 1, torch.device("cpu"), process_group=None)  # type: ignore[arg-type]


class GatedStore(ObjectStore):
    """Waits in `put` while the gate is closed, and raises what it is told to."""

    def __init__(self, uri: str) -> None:
        super().__init__(uri)
        self.gate = threading.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.before_listing: Callable[[], None] = lambda: None
        # For each attempt, the manifests that there were when it began to write.
        self.manifests_before: dict[str, list[str]] = {}

    def entries(self, folder: str) -> list[Entry]:
        self.before_listing()
        return super().entries(folder)

    def put(self, name: str, parts: Iterable[Buffer]) -> None:
        self.manifests_before.setdefault(name.split("/")[1], self.names("manifests"))
        assert self.gate.wait(60)
        if self.error is not None:
            raise self.error
        super().put(name, parts)

    @property
    def steps(self) -> list[int]:
        return [name.step for name in manifest_names(self)]


def state_of(step: int) -> TrainingState:
    tensors = {
        "table.t.weight": LiveTensor(torch.full((50, 4), float(step)), 0, 50, replicated=False),
        "model.x": LiveTensor.whole(torch.tensor([step + 0.5, 2.0 + step])),
        "model.step": LiveTensor.whole(torch.tensor(float(step))),
    }
    return TrainingState(ONE, step, tensors, {"t": 31}, {"position": {"batch": step}})


def saver_of(
    store: ObjectStore,
    reports: list[str] | None = None,
    *,
    asynchronous: bool = True,
    max_failures: int = 2,
    timeout_seconds: float = 30.0,
    drain_seconds: float = 30.0,
    keep_last: int = 9,
    **kwargs: Any,
) -> Saver:
    return Saver(
        store, ONE,
        saving(
            "behind" if asynchronous else "waiting", max_failures, timeout_seconds, drain_seconds
        ),
        Pruner(store, keeping(keep_last, 0, 0, 1.0)),
        report=(reports if reports is not None else []).append, **kwargs,
    )  # fmt: skip

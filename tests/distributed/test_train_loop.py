"""What workers agree on between two steps; for all else see `tests.unit.test_train_loop`."""

from __future__ import annotations

from typing import Any
from unittest import mock

from dist_embed.parallel.group import Group
from dist_embed.train import loop
from tests.distributed.pool import WorkerPool
from tests.unit.test_train_loop import Run


def course_of_one_asked(group: Group) -> tuple[bool, list[Any], list[dict[str, Any]]]:
    """The last worker is asked to stop in step 3; a save ends on worker r in step 1 + r."""
    last = group.rank == group.num_workers - 1
    run = Run(group, asked_after=3 if last else -1, ended_after=1 + group.rank)
    with mock.patch.object(loop, "stop_requested", loop.stop_requested):
        stopped = run.train(lambda name, value: setattr(loop, name, value), log_every=1)
    return stopped, run.happened("step", "concluded", "save"), run.metrics


def test_all_workers_stop_after_one_step_and_take_in_a_save_that_has_ended_everywhere(
    workers: WorkerPool,
) -> None:
    found = workers.run(3, course_of_one_asked)
    for stopped, course, _ in found:
        assert stopped
        assert [(event[0], event[1]) for event in course] == [
            ("step", 1), ("step", 2), ("step", 3), ("concluded", 3), ("save", 3)
        ]  # fmt: skip
    assert [len(metrics) for *_, metrics in found] == [3, 0, 0]

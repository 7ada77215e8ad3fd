"""What workers agree on between two steps; for all else see `tests.unit.test_train_loop`."""

from __future__ import annotations

from typing import Any
from unittest import mock

from dist_embed.parallel.group import Group
from dist_embed.training import saving
from tests.distributed.pool import WorkerPool
from tests.unit.loop_course import STEP_SECONDS, Run


def course_of_one_asked(group: Group) -> tuple[bool, list[Any], list[dict[str, Any]]]:
    """The last worker is asked to stop in step 3; a save ends on worker r in step 1 + r."""
    last = group.rank == group.num_workers - 1
    run = Run(group, asked_after=3 if last else -1, ended_after=1 + group.rank)
    with mock.patch.object(saving, "stop_requested", saving.stop_requested):
        stopped = run.train(lambda name, value: setattr(saving, name, value), log_every=1)
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


def course_by_one_clock(group: Group) -> list[tuple[str, int]]:
    """Worker 0's clock is due in step 3; the others' have gone on much further, or stand still."""
    run = Run(group, save_takes=2 + group.rank)
    clock = {0: lambda: run.now, 1: lambda: 1e6 * run.now, 2: lambda: 0.0}[group.rank]
    with (
        mock.patch.object(saving, "stop_requested", saving.stop_requested),
        mock.patch.object(saving.time, "monotonic", clock),
    ):
        run.train(
            lambda name, value: setattr(saving, name, value), save_every=0,
            save_seconds=3 * STEP_SECONDS,
        )  # fmt: skip
    return [event[:2] for event in run.happened("save", "concluded")]


def test_worker_0_s_clock_decides_for_all_and_a_save_is_under_way_until_the_last_has_ended(
    workers: WorkerPool,
) -> None:
    assert workers.run(3, course_by_one_clock) == [
        [("save", 3), ("concluded", 7), ("save", 7), ("concluded", 11), ("save", 11), ("save", 12)]
    ] * 3  # fmt: skip


def course_where_one_hangs(group: Group) -> list[tuple[str, int]]:
    run = Run(group, save_takes=50, hangs_after=6 if group.rank == 1 else 99)
    run.train(save_every=2, max_steps=8)
    return [event[:2] for event in run.happened("save")]


def test_a_save_that_hangs_on_one_worker_is_waited_for_by_all(workers: WorkerPool) -> None:
    assert workers.run(3, course_where_one_hangs) == [
        [("save", 2), ("save", 6), ("save", 8)]
    ] * 3  # fmt: skip

"""Lines that workers translate as they come."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.errors import UserError
from dist_embed.observe.events import Reporter, silent_reporter
from dist_embed.parallel.errors import WorkerError
from dist_embed.parallel.group import Group
from dist_embed.training import stream
from dist_embed.training.tasks import TranslateStream
from dist_embed.training.translation import TooLongError, Written
from dist_embed.training.worker import Context
from tests.distributed.pool import WorkerPool


class Capitals:
    """Stands for a translator; lines with a `!` are too long."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses
        self.asked: list[list[str]] = []

    def written(self, lines: list[str]) -> list[Written]:
        self.asked.append(lines)
        is_long = ["!" in line for line in lines]
        if self.refuses and any(is_long):
            raise TooLongError(is_long.index(True), "9 source tokens", 3)
        return [Written(a.upper(), "", b) for a, b in zip(lines, is_long, strict=True)]


def streamed(group: Group, answers: list[Any], refuses: bool = False) -> Any:
    """What worker 0 tells, what this worker translates, and how it ends."""
    translator, events, waits = Capitals(refuses), list[Any](), list[float]()

    def receive(number: int, seconds: float) -> Any:
        waits.append(seconds)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    config = config_from_dict({
        "run": {"uri": "/nowhere"}, "train": {"max_steps": 1}, "data": {"synthetic": {}},
        "cluster": {"timeout_seconds": 8.0},
    })  # fmt: skip
    reporter = Reporter(events.append) if group.is_first else silent_reporter()
    context = Context(config, group, reporter, receive if group.is_first else None)
    with mock.patch.object(stream, "load_translator", lambda context, step: (translator, step)):
        try:
            ended: Any = stream.translate_stream_task(context, TranslateStream(5))
        except (UserError, WorkerError, OSError) as exc:
            ended = type(exc), str(exc)
    return events, translator.asked, ended, set(waits)


def chunk(first: int, *lines: str) -> dict[str, Any]:
    return {"first": first, "lines": [*lines]}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_all_workers_translate_what_comes(workers: WorkerPool, num_workers: int) -> None:
    answers = [None, chunk(1, "a", "ü!"), None, None, chunk(3, "c", "!", "\u2028"), chunk(6)]
    found = workers.run(num_workers, streamed, answers)
    wanted = [
        {"kind": "wanted", "number": number, "most": 1024 * num_workers} for number in range(3)
    ]
    assert found[0][0] == [
        wanted[0], {"kind": "translated", "lines": ["A", "Ü!"], "cut": [2]},
        wanted[1], {"kind": "translated", "lines": ["C", "!", "\u2028"], "cut": [4]}, wanted[2],
    ]  # fmt: skip
    for _, asked, step, _ in found:
        assert asked == [["a", "ü!"], ["c", "!", "\u2028"]]
        assert step == 5
    # No exchange is waited for as long as it may take.
    assert found[0][3] == {2.0}


@pytest.mark.parametrize("num_workers", [1, 2])
def test_what_comes_before_a_refused_line_is_translated(
    workers: WorkerPool, num_workers: int
) -> None:
    found = workers.run(num_workers, streamed, [chunk(11, "a", "b", "c!", "d")], True)
    assert found[0][0][1:] == [{"kind": "translated", "lines": ["A", "B"], "cut": []}]
    for _, _, (kind, said), _ in found:
        assert kind is UserError
        assert said.startswith(
            "line 13: 9 source tokens are not allowed: at most 3 source tokens ("
        )


def test_lines_that_worker_0_cannot_get_end_all(workers: WorkerPool) -> None:
    found = workers.run(2, streamed, [chunk(1, "a"), OSError("cannot read")])
    assert [kind for _, _, (kind, _), _ in found] == [OSError, WorkerError]
    assert "cannot read" in found[1][2][1]

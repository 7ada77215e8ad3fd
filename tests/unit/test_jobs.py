"""Following a job, and what it is called, whatever its cluster is."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dist_embed.config.paths import run_name
from dist_embed.errors import UserError
from dist_embed.jobs import job as jobs
from dist_embed.jobs.job import Job, NoOutput, follow
from tests.unit.clock import Clock

RUNNING = Job("one", "RUNNING", False, "/runs/one", "0:00:01", "", "file", 0)


class Course:
    """A cluster whose answers are told beforehand: what the job has said until then, or None for a
    question that fails; with the last the job has ended.
    """

    def __init__(self, *said: bytes | None) -> None:
        self._said = list(said)

    def job(self, name: str) -> Job:
        return replace(RUNNING, is_over=len(self._said) == 1, exit_code=7)

    def said(self, job: Job, since: int) -> bytes:
        said = self._said.pop(0) if len(self._said) > 1 else self._said[0]
        if said is None:
            raise UserError("does not answer")
        return said[since:]

    def jobs(self) -> list[Job]:
        raise AssertionError

    stop = job


def no_wait(job: Job) -> None:
    raise AssertionError(f"a job that waits for {job.reason}")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(jobs, "time", clock)
    return clock


def test_each_byte_is_said_once_through_silence_and_failures(clock: Clock) -> None:
    heard: list[bytes] = []
    silence = [b"a\xc3"] * 1000  # longer than a cluster may be silent
    ended = follow(
        Course(b"", b"a\xc3", None, *silence, b"a\xc3\xa4", None, b"a\xc3\xa4b"),
        "one",
        heard.append,
        no_wait,
    )
    assert heard == [b"a\xc3", b"\xa4", b"b"]
    assert ended.exit_code == 7
    assert clock.now > jobs.SILENT_SECONDS


def test_a_cluster_that_does_not_answer_for_too_long_is_given_up(clock: Clock) -> None:
    with pytest.raises(UserError, match="does not answer"):
        follow(Course(b"", *[None] * 1000, b""), "one", print, no_wait)
    assert clock.now == pytest.approx(jobs.SILENT_SECONDS, abs=10)


def test_a_job_whose_output_is_nowhere_ends_as_it_ends(clock: Clock) -> None:
    """Its output is on another machine, or never came: that is told, and how it has ended."""

    class Elsewhere(Course):
        def said(self, job: Job, since: int) -> bytes:
            super().said(job, since)
            raise NoOutput("job one writes to file")

    heard: list[bytes] = []
    assert follow(Elsewhere(*[b""] * 1000), "one", heard.append, no_wait).exit_code == 7
    assert heard == [b"job one writes to file\n"]
    assert clock.now > jobs.SILENT_SECONDS


def test_what_a_job_waits_for_is_said_once_and_again_where_it_changes(clock: Clock) -> None:
    reasons = ["", "Priority", "Priority", "Resources", "", "Resources"]

    class Waiting(Course):
        def job(self, name: str) -> Job:
            return replace(super().job(name), reason=reasons.pop(0) if reasons else "NonZeroExit")

    told: list[str] = []
    follow(Waiting(*[b""] * 7), "one", lambda said: None, lambda job: told.append(job.reason))
    assert told == ["Priority", "Resources", "Resources"]


def test_long_answers_are_asked_for_seldom(clock: Clock) -> None:
    class Slow(Course):
        def said(self, job: Job, since: int) -> bytes:
            clock.sleep(60)
            return super().said(job, since)

    follow(Slow(b"a", b"a", b"a"), "one", lambda said: None, no_wait)
    assert clock.now >= 3 * 60 + 2 * 600


@pytest.mark.parametrize(
    ("uri", "name"),
    [("/a/runs/night-1", "night-1"), ("s3://bucket/run = one/", "run_one"), ("runs/ü.x", "_.x"),
     ("memory://..", "run")],
)  # fmt: skip
def test_a_run_is_called_by_the_end_of_its_address(uri: str, name: str) -> None:
    assert run_name(uri) == name

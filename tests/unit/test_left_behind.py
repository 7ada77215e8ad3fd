"""What tests find of processes that were to end."""

from __future__ import annotations

import subprocess

import psutil

from tests.left_behind import living


def test_who_lives_is_found_and_who_only_is_not_buried_is_not() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        this = psutil.Process(process.pid)
        assert living([this], 0.0) == [this]
        process.kill()
        assert living([this]) == []
        assert this.status() == psutil.STATUS_ZOMBIE
    assert living([this], 0.0) == []

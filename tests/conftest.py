from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No limit of time for an example, on a busy machine; the same examples in every run.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: packed ones may hold the time, and each worker collects."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture
def ray_alone() -> Iterator[None]:
    """To be used by tests that start a Ray: two clusters on one machine disturb each other."""
    path = Path(tempfile.gettempdir()) / f"dist_embed-tests-ray-{os.getuid()}.lock"
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

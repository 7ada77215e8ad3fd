from __future__ import annotations

import fcntl
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings

from dist_embed.parallel.stop import forget_signals

# What is imported and collected stays to the end: the garbage collector need not look at it, while
# it grows or later. The folders' conftest.py are imported after this one, and PyTorch with them.
gc.disable()

# No limit of time for an example, on a busy machine; the same examples in every run.
settings.register_profile("tests", deadline=None, derandomize=True, database=None)
settings.load_profile("tests")

# Both ends of a TCPStore ask for the name of ::ffff:127.0.0.1 (torch 2.13, Socket.cpp), which no
# /etc/hosts has. Where a question to the name server is lost now and then, a start of workers took
# 5 s longer: then the resolver asks again after one.
os.environ.setdefault("RES_OPTIONS", "timeout:1")


def pytest_configure() -> None:
    """Hear signals as in the foreground: behind `nohup` or `&` tests, and the commands that they
    start, would find SIGINT or SIGHUP ignored, which the product leaves so.
    """
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL),
    ):  # fmt: skip
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name bytes by their argument: packed ones may hold the time, and each worker collects."""
    return argname if isinstance(val, bytes) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """First the longest of the files that have a Ray, for another one would wait until its end: so
    that none of them comes soon.
    """
    items.sort(key=lambda item: item.path.name != "test_cluster_jobs.py")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the stores that could not be tried, where others were."""
    reports = [one for found in terminalreporter.stats.values() for one in found]
    names = {getattr(report, "nodeid", None) or "" for report in reports}
    if any("test_each_store.py" in name for name in names):
        from tests.stores.kinds import missing_kinds  # not in every process: it imports s3fs

        for name, why in missing_kinds().items():
            terminalreporter.write_line(f"store not tried: {name}: {why}", yellow=True)


@pytest.hookimpl(hookwrapper=True)
def pytest_collection() -> Iterator[None]:
    """Then each `gc.collect()` of a test is spared two million objects, a third of a second."""
    yield
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_signal_was_taken() -> Iterator[None]:
    """What a test has sent its own process is nothing to the next one."""
    yield
    forget_signals()


@pytest.fixture
def ray_alone() -> Iterator[None]:
    """To be used by tests that start a Ray: two clusters on one machine disturb each other."""
    with no_other_ray():
        yield


@pytest.fixture(scope="module")
def ray_alone_until_the_file_ends() -> Iterator[None]:
    """The same for a file whose tests share a cluster."""
    with no_other_ray():
        yield


@contextmanager
def no_other_ray() -> Iterator[None]:
    """Wait until no other process of tests is in such a block."""
    path = Path(tempfile.gettempdir()) / f"dist_embed-tests-ray-{os.getuid()}.lock"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    with open(handle, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield

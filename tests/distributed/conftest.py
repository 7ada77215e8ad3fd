from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.distributed.pool import WorkerPool

# Of the references: threads that wait for each other are slow where another process has a core.
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/distributed" in str(item.path):
            item.add_marker(pytest.mark.distributed)


@pytest.fixture(scope="session")
def workers() -> Iterator[WorkerPool]:
    pool = WorkerPool()
    yield pool
    pool.close()

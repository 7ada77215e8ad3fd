from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dist_embed.parallel.group import Group, lone_group
from tests.gpu.device import DEVICE

if DEVICE == "cpu":
    # Threads that wait for each other are slow where another process has a core.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="module")
def group() -> Iterator[Group]:
    """One worker on the device."""
    with lone_group(DEVICE, 60.0) as joined_one:
        yield joined_one

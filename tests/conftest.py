from __future__ import annotations

import pytest

# Two local clusters of Ray disturb each other.
USES_RAY = ("test_ray.py", "test_ray_kill.py", "test_quickstart.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where tests run in several processes (``-n``), those of a file stay together: they share
    servers and workers, and whole commands are slow beside each other.
    """
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        group = "ray" if item.path.name in USES_RAY else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))

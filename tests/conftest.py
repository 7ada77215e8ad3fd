from __future__ import annotations

import pytest

# Two local clusters of Ray disturb each other.
USES_RAY = ("test_ray.py", "test_ray_kill.py", "test_quickstart.py")
# Whole commands, each on its own; elsewhere the tests of a file share servers or workers.
INDEPENDENT = ("test_commands.py", "test_large_vocabulary.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which tests stay together where they run in several processes (``-n``)."""
    for item in items:
        if item.get_closest_marker("xdist_group"):
            continue
        if item.path.name in USES_RAY:
            item.add_marker(pytest.mark.xdist_group("ray"))
        elif item.path.name not in INDEPENDENT:
            item.add_marker(pytest.mark.xdist_group(str(item.path)))

"""Imports without Python's garbage collector, which then is as it was."""

from __future__ import annotations

import gc
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from dist_embed.parallel.collector import collector_off


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    gc.enable()


@pytest.mark.parametrize("was_on", [True, False])
@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_is_as_it_was(was_on: bool, fails: bool) -> None:
    frozen = gc.get_freeze_count()
    if not was_on:
        gc.disable()
    try:
        with collector_off():
            assert not gc.isenabled()
            if fails:
                raise ImportError("no such module")
    except ImportError:
        assert fails
    assert gc.isenabled() == was_on
    assert gc.get_freeze_count() == frozen


def test_within_another_block_it_stays_off() -> None:
    with collector_off():
        with collector_off():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_of_a_process_of_our_own_what_is_imported_is_left_alone() -> None:
    gc.unfreeze()
    with collector_off(freeze=True):
        pass
    assert gc.get_freeze_count()
    assert gc.isenabled()
    gc.unfreeze()


def test_what_the_process_imports_that_workers_are_forked_from_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or the collector of each fork would copy its pages."""
    for name in ("inference", "train"):  # they take seconds
        stand_in = ModuleType(f"dist_embed.training.{name}")
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    gc.unfreeze()
    runpy.run_module("dist_embed.cluster.forked")
    assert gc.get_freeze_count()
    gc.unfreeze()


_PROGRAM = """
import gc, sys
import dist_embed.cluster.ray_mailbox, dist_embed.parallel.collector
assert not sys.modules.keys() & {"ray", "torch", "pydantic"}
import dist_embed
dist_embed.train, dist_embed.UserError
assert gc.isenabled() and not gc.get_freeze_count() and gc.get_threshold() == gc_before
import dist_embed.cluster.ray_group, dist_embed.cluster.ray_worker
assert "torch" not in sys.modules
"""


def test_what_a_library_s_user_or_ray_s_controller_imports() -> None:
    """The user's collector stays as it is; what runs workers does not wait for PyTorch."""
    program = "import gc; gc_before = gc.get_threshold()\n" + _PROGRAM
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=110,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

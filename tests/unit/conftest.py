from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
import torch.distributed as dist

from dist_embed.parallel.group import Group
from tests.unit.small_corpus import Prepared, prepare, synthetic_corpora

# Threads that wait for each other are slow where another process has a core.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A small corpus prepared once, in several shards; only to be read.

    By this process: starting others takes longer, and changes no byte (test_prepare.py).
    """
    folder = tmp_path_factory.mktemp("prepared")
    corpora, pairs = synthetic_corpora(folder / "text")
    data = prepare(folder / "data", corpora)
    return Prepared(str(folder / "data"), data, corpora, pairs)


@pytest.fixture(scope="module")
def alone() -> Iterator[Group]:
    """This process as the only worker of a group."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Group(0, 1, 1, torch.device("cpu"), dist.group.WORLD)
    dist.destroy_process_group()


@pytest.fixture
def full_disk() -> Callable[[], AbstractContextManager[None]]:
    """A block in which no file may have more than 100 bytes."""

    @contextmanager
    def full() -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return full

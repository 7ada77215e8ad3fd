from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from dist_embed.config.load import config_from_dict
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepared_folder import prepared_folder
from tests.distributed.configured import DATA, Values, merged
from tests.distributed.pool import WorkerPool
from tests.unit.small_corpus import one_is_this_process

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


@pytest.fixture(scope="session")
def data_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small corpus with two vocabularies and a lexicon, see `configured.DATA`; to be read."""
    uri = str(tmp_path_factory.mktemp("configured") / "data")
    least: Values = {
        "run": {"uri": "/nowhere"}, "data": {"uri": uri}, "train": {"max_steps": 1},
    }  # fmt: skip
    with one_is_this_process(1):
        ensure_data(config_from_dict(merged(DATA, least)), lambda line: None)
    return prepared_folder(uri)

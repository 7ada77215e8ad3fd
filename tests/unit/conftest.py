from __future__ import annotations

import pytest

from tests.unit.small_corpus import Prepared, prepare, synthetic_corpora


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A small corpus prepared once, by two processes, in several shards; only to be read."""
    folder = tmp_path_factory.mktemp("prepared")
    corpora, pairs = synthetic_corpora(folder / "text")
    data = prepare(folder / "data", corpora, num_processes=2)
    return Prepared(str(folder / "data"), data, corpora, pairs)

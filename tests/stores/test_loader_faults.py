"""A store that fails now and then under the loader: the steps are those of a sound one."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path

import pytest
import s3fs

from dist_embed.data.loader import Loader, Position, StepBatches
from dist_embed.data.token_blocks import index_of
from dist_embed.errors import StoreUnavailable
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.s3_server import S3Server, connect, environment
from tests.unit.small_corpus import Prepared, prepare, synthetic_corpora
from tests.unit.step_content import step_content

STEPS = 40  # more than an epoch
START = Position(epoch=2, pool=1, batch=1)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("prepared")
    corpora, pairs = synthetic_corpora(folder / "text")
    return Prepared(str(folder / "data"), prepare(folder / "data", corpora), corpora, pairs)


@pytest.fixture
def url(s3: S3Server, s3_root: str, prepared: Prepared) -> str:
    """The same data on the server."""
    store = connect(s3.url)
    for path in Path(prepared.uri).rglob("*"):
        if path.is_file():
            name = path.relative_to(prepared.uri).as_posix()
            store.pipe_file(f"{s3_root}/{name}", path.read_bytes())
    return s3_root


def steps(prepared: Prepared, uri: str, start: Position) -> list[StepBatches]:
    loader = Loader(
        uri, prepared.data.splits["train"].shards, index=index_of(prepared.data, "train"),
        batch_tokens=150, seed=5, rank=1, num_workers=2, accumulate=1, pool_sentences=130,
        pool_steps=1,
    )  # fmt: skip
    found = loader.prefetched(start)
    try:
        return list(islice(found, STEPS))
    finally:
        found.close()


FAULTS = {
    "503 again and again": [Fault("GET", r"shard-", status=503, times=5, after=1)],
    "of the index": [Fault("GET", r"blocks\.arrow", status=500, times=2)],
    "no reply": [Fault("GET", r"shard-", drop_reply=True, times=3, after=2)],
    "half a reply": [Fault("GET", r"shard-", truncate_reply=700, times=4, after=2)],
    "one after the other": [
        Fault("GET", r"shard-0000[02]", status=503, times=3),
        Fault("GET", r"shard-0000[13]", drop_reply=True, times=3),
        Fault("GET", r"shard-0000[1-4]", truncate_reply=100, times=3, after=4),
    ],
}


@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_what_passes_changes_no_step(
    s3: S3Server, url: str, prepared: Prepared, faults: list[Fault],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    expected = steps(prepared, prepared.uri, START)
    monkeypatch.setattr("dist_embed.storage.retry.FIRST_WAIT_SECONDS", 0.02)
    with FaultProxy(s3.url) as proxy:
        through(proxy, monkeypatch)
        for fault in faults:
            proxy.add(fault)
        found = steps(prepared, url, START)
        assert all(fault.hits for fault in faults)
    assert [step.after for step in found] == [step.after for step in expected]
    assert [step.token_counts for step in found] == [step.token_counts for step in expected]
    assert [step_content(step) for step in found] == [step_content(step) for step in expected]


@pytest.mark.heavy  # the store's client tries again for most of a minute
def test_a_store_that_stays_away_is_told(
    s3: S3Server, url: str, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_embed.storage.retry.retried.__defaults__", (1.0,))
    with FaultProxy(s3.url) as proxy:
        through(proxy, monkeypatch)
        proxy.add(Fault("GET", r"shard-", status=503, times=None))
        began = time.monotonic()
        with pytest.raises(StoreUnavailable, match=r"could not read s3://.*shard-"):
            steps(prepared, url, START)
        assert time.monotonic() - began < 60


def through(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on clients talk to the proxy."""
    for name, value in environment(proxy.url).items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()

"""Workers killed at every point of a save, a prune and a load; then the run goes on as if not."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import s3fs

from dist_embed.checkpoint.catalogue import manifest_names, open_checkpoints, read_manifest
from dist_embed.checkpoint.manifest import ManifestName
from tests.stores.killing import (
    LAST_STEP,
    POINTS,
    Kill,
    Material,
    Place,
    check_committed,
    check_end,
    check_goes_on,
    material,
    train,
)
from tests.stores.s3_server import S3Server

Places = Callable[[str], Place]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return material(tmp_path_factory.getbasetemp() / "killing")


@pytest.fixture
def place_in(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Places]:
    """A place for a run, on local disk or on the S3 server."""

    def place(store: str) -> Place:
        if store == "local":
            return Place(str(tmp_path / "run"), tmp_path / "run")
        root: str = request.getfixturevalue("s3_root")
        server: S3Server = request.getfixturevalue("s3")
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        # Clients of this process may be those of another server.
        s3fs.S3FileSystem.clear_instance_cache()
        behind = server.folder("bucket") / root.removeprefix("s3://bucket/")
        return Place(f"{root}/run", behind / "run", server.environment)

    yield place
    s3fs.S3FileSystem.clear_instance_cache()


def _matrix() -> Iterator[tuple[str, int, tuple[int, ...], bool, str]]:
    for name, point in POINTS.items():
        for rank in (0,) if point.first_only else (0, 1):
            for victims in ((rank,), (1 - rank,), (0, 1)):
                for asynchronous in point.modes:
                    for store in point.stores:
                        yield name, rank, victims, asynchronous, store


def _sampled() -> list[object]:
    """The matrix, of which every fifth point is tried once by default, each time otherwise."""
    combinations = list(_matrix())
    usual = set()
    for number, name in enumerate(list(POINTS)[::5]):
        of_point = [c for c in combinations if c[0] == name]
        usual.add(of_point[7 * number % len(of_point)])
    return [
        pytest.param(
            *c,
            id=f"{c[0]}, worker {c[1]}, kills {' and '.join(map(str, c[2]))}, "
            f"{'asynchronous' if c[3] else 'synchronous'}, {c[4]}",
            marks=() if c in usual else pytest.mark.heavy,
        )
        for c in combinations
    ]


@pytest.mark.parametrize(("point", "rank", "victims", "asynchronous", "store"), _sampled())
def test_killed_at_a_point(
    point: str,
    rank: int,
    victims: tuple[int, ...],
    asynchronous: bool,
    store: str,
    shared: Material,
    place_in: Places,
) -> None:
    place = place_in(store)
    place.fill(shared.base)
    settings = POINTS[point].settings
    config = shared.configuration(place, saving="behind" if asynchronous else "waiting", **settings)
    ended = train(config, place.environment, Kill(point, rank, victims))
    assert [code == -signal.SIGKILL for code in ended.codes] == [r in victims for r in (0, 1)], (
        ended.traces
    )
    # A worker whose peer is gone says so; it does not go on alone.
    assert 0 not in ended.codes, ended.traces
    expected = POINTS[point].leaves if rank in victims else POINTS[point].spares
    committed = check_committed(place, shared.whole)
    assert committed in expected
    check_goes_on(config, place, shared.whole, committed[-1])


@pytest.mark.parametrize(
    "seed", [pytest.param(s, marks=() if s < 3 else pytest.mark.heavy) for s in range(125)]
)
def test_killed_at_random(seed: int, shared: Material, place_in: Places) -> None:
    chance = random.Random(seed)
    place = place_in(("local", "s3")[seed % 2])
    from_scratch = chance.random() < 0.4
    if not from_scratch:
        place.fill(shared.base)
    config = shared.configuration(
        place,
        saving="behind" if chance.random() < 0.7 else "waiting",
        leftover_hours=chance.choice([0.0, 24.0]),
    )
    newest = 0 if from_scratch else 4
    for _ in range(1 if seed < 5 else chance.randint(1, 3)):
        rank = chance.randrange(2)
        victims = chance.choice([(rank,), (1 - rank,), (0, 1)])
        # From step 4 on a run takes about half of the whole one's time.
        delay = chance.uniform(0.0, shared.whole.seconds * (0.9 if newest == 0 else 0.5))
        ended = train(config, place.environment, Kill("", rank, victims, delay))
        _settle(place)
        committed = check_committed(place, shared.whole)
        assert max(committed, default=0) >= newest, ended
        newest = max(committed, default=0)
        if ended.result is not None:
            assert newest == LAST_STEP
    if newest < LAST_STEP:
        check_goes_on(config, place, shared.whole, newest)


def _settle(place: Place) -> None:
    """Wait until the server has done all that killed workers asked it to.

    A worker's last upload may be in the server's sockets when the worker is gone: then an object
    appears later, up to 0.2 s on a busy machine. That a run is followed by another while the server
    still works for it is what `leftover_hours` is for; here it is waited for.

    An upload of which only a part was sent is another matter. rclone 1.75.2 makes the attempt's
    folder before it reads the body, then drops the file and leaves the folder, empty: it is listed
    ever after, and no call removes it. That a folder lay here once which no manifest named, after
    all had been pruned with 0 hours, is told by this: it is what one such request, sent by hand,
    leaves every time, however long one waits. No stale listing, for it was on the server's disk;
    and an S3 whose folders are only parts of names has none.
    """
    if not place.environment:
        return
    port = urlsplit(place.environment["AWS_ENDPOINT_URL"]).port
    deadline = time.monotonic() + 60
    while connections := _connections_to(port):
        assert time.monotonic() < deadline, connections
        time.sleep(0.05)


def _connections_to(port: int | None) -> list[object]:
    """The server's connections with other processes than this one, accepted or not; one whose
    client is gone counts until the server has read what it sent and closes it.
    """
    mine = {c.laddr.port for c in psutil.Process().net_connections("tcp") if c.laddr}
    return [
        c for c in psutil.net_connections("tcp")
        if c.laddr and c.laddr.port == port and c.raddr and c.raddr.port not in mine
        and c.status not in (psutil.CONN_TIME_WAIT, psutil.CONN_FIN_WAIT1, psutil.CONN_FIN_WAIT2)
    ]  # fmt: skip


FALLEN_BACK = {
    "before the manifest": {(2, 0), (4, 0)},
    "after the manifest": {(2, 0), (4, 0), (4, 1)},
    "before the old manifest is removed": {(2, 0), (4, 0), (4, 1)},
    "old manifest removed, its objects not": {(2, 0), (4, 1)},
    "after pruning": {(2, 0), (4, 1)},
}


@pytest.mark.parametrize(
    ("point", "store"),
    [
        pytest.param(
            point, store,
            marks=() if (point, store) == ("after the manifest", "local") else pytest.mark.heavy,
        )
        for point in FALLEN_BACK
        for store in ("local", "s3")
    ],
)  # fmt: skip
def test_killed_while_a_damaged_checkpoint_is_replaced(
    point: str, store: str, shared: Material, place_in: Places
) -> None:
    """Step 4 is damaged: the run goes on from step 2 and saves step 4 for the second time."""
    place = place_in(store)
    place.fill(shared.base)
    checkpoints = open_checkpoints(place.uri)
    attempt = read_manifest(checkpoints, ManifestName(4, 0)).attempt
    chunk = place.folder / "checkpoints" / "objects" / attempt / "chunk-00001-000001.safetensors"
    content = bytearray(chunk.read_bytes())
    content[-1] ^= 1
    chunk.write_bytes(content)
    config = shared.configuration(place)
    ended = train(config, place.environment, Kill(point, 0, (0, 1)))
    assert ended.codes == [-signal.SIGKILL] * 2, ended.traces
    names = {(name.step, name.generation) for name in manifest_names(checkpoints)}
    assert names == FALLEN_BACK[point]
    ended = train(config, place.environment)
    assert ended.result is not None, ended.traces
    assert ended.result.resumed_at == (4 if (4, 1) in names else 2)
    check_end(check_committed(place, shared.whole), ended.result.resumed_at)

"""What a preparation that was ended has finished, for the one after it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data import encoding
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.processes import ProcessEnded
from dist_embed.errors import RunFailed, StoreUnavailable
from dist_embed.storage import uri as storage
from dist_embed.storage.clients import filesystem
from tests.unit.small_corpus import one_is_this_process

SHARDS = 4  # of training data
TAKEN_OVER = re.compile(r"(\d+) of \d+ shards had been finished by a preparation that was ended")


@pytest.fixture(autouse=True)
def in_this_process() -> Iterator[None]:
    with one_is_this_process(1):
        yield


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    for name, lines in (("train", 7 * (SHARDS - 1) + 3), ("test", 5)):
        sentences = [f"word{i % 5} word{i % 3}, of {name}" for i in range(lines)]
        (tmp_path / "text" / name).write_text("\n".join([*sentences[:-1], ""]) + "\n")
    return tmp_path / "text"


@pytest.fixture(params=["local", "store"])
def data_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "data") if request.param == "local" else f"memory://ended/{tmp_path.name}"


def config_of(data_uri: str, text: Path, **tokenizer: Any) -> Config:
    corpora = {
        name: {"source": str(text / name), "target": str(text / name)} for name in ("train", "test")
    }
    return config_from_dict({
        "run": {"uri": "/nowhere"}, "train": {"max_steps": 1}, "tokenizer": tokenizer,
        "data": {"uri": data_uri, "num_processes": 1, "shard_sentences": 7, **corpora},
    })  # fmt: skip


def files_of(data_uri: str) -> dict[str, bytes]:
    """All files of prepared data by name."""
    folder = prepared_folder(data_uri)
    fs, path = filesystem(folder)
    return {name.removeprefix(path): fs.cat_file(name) for name in fs.find(path)}


def ended(config: Config, how: BaseException, at: str = "encoding test") -> str:
    """The folder that a preparation leaves which ends so, or an empty text."""

    def say(line: str) -> None:
        if line == at:
            raise how

    before = set(storage.names_in(config.data.uri))
    with pytest.raises(type(how)):
        ensure_data(config, say, force=True)
    left = set(storage.names_in(config.data.uri)) - before
    return storage.join(config.data.uri, left.pop()) if left else ""


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the length of each block that is encoded."""
    lengths: list[int] = []
    shard_of = encoding._shard_of

    def counting(block: Any, *how: Any) -> Any:
        lengths.append(len(block))
        return shard_of(block, *how)

    monkeypatch.setattr(encoding, "_shard_of", counting)
    return lengths


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_what_was_finished_is_not_made_again(
    data_uri: str, text: Path, encoded: list[int], kind: str
) -> None:
    config = config_of(data_uri, text, kind=kind, vocab_size=40)
    ensure_data(config, lambda line: None)
    undisturbed = files_of(data_uri)
    storage.remove(data_uri)
    assert ended(config, SystemExit(143))
    encoded.clear()
    said: list[str] = []
    ensure_data(config, said.append)
    assert encoded == [5]  # the other split
    assert [found[1] for found in map(TAKEN_OVER.match, said) if found] == [str(SHARDS)]
    assert files_of(data_uri) == undisturbed
    assert not [name for name in undisturbed if "finished" in name]
    assert len(storage.names_in(data_uri)) == 2  # the data, and what names them


@pytest.mark.parametrize(
    "how", [KeyboardInterrupt(), RunFailed("lost"), StoreUnavailable("503"), ProcessEnded("killed")]
)
def test_an_end_that_may_pass_leaves_what_is_finished(
    data_uri: str, text: Path, how: BaseException
) -> None:
    config = config_of(data_uri, text)
    assert ended(config, how)
    # Nothing is left where nothing was finished.
    storage.remove(data_uri)
    assert not ended(config, how, at="encoding train")
    assert not ended(config, ValueError("no use"))


def test_of_preparations_that_were_ended_one_after_the_other_few_stay(
    data_uri: str, text: Path, encoded: list[int]
) -> None:
    config = config_of(data_uri, text)
    other = ended(config_of(data_uri, text, kind="bpe", vocab_size=40), SystemExit(143))
    for _ in range(5):
        last = ended(config, SystemExit(143))
    left = {storage.join(data_uri, name) for name in storage.names_in(data_uri)}
    assert len(left) == 3  # one more than is new; it goes as the next begins
    assert {other, last} < left
    assert encoded == [7, 7, 7, 3] * 2
    ensure_data(config, lambda line: None)
    assert encoded[2 * SHARDS :] == [5]


def test_a_folder_with_a_damaged_record_removes_no_other(
    data_uri: str, text: Path, encoded: list[int]
) -> None:
    config = config_of(data_uri, text)
    _, second = (ended(config, SystemExit(143)) for _ in range(2))
    half_of(f"{second}/finished/train/shard-00000.json")
    encoded.clear()
    ensure_data(config, lambda line: None)
    assert encoded == [5]  # what is damaged in one is whole in the other


def half_of(uri: str) -> None:
    content = storage.read_bytes(uri)
    storage.write_bytes(uri, content[: len(content) // 2])


DAMAGES: dict[str, Callable[[str], None]] = {
    "the shard": lambda folder: half_of(f"{folder}/train/shard-00001.parquet"),
    "no shard": lambda folder: storage.remove(f"{folder}/train/shard-00001.parquet"),
    "the record": lambda folder: half_of(f"{folder}/finished/train/shard-00001.json"),
    "no record": lambda folder: storage.remove(f"{folder}/finished/train/shard-00001.json"),
    "another's record": lambda folder: storage.write_bytes(
        f"{folder}/finished/train/shard-00001.json",
        storage.read_bytes(f"{folder}/finished/train/shard-00002.json"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_what_is_not_what_was_finished_is_made_again(
    data_uri: str, text: Path, encoded: list[int], damage: Callable[[str], None]
) -> None:
    config = config_of(data_uri, text)
    damage(ended(config, SystemExit(143)))
    encoded.clear()
    ensure_data(config, lambda line: None)
    assert encoded == [7, 5]
    found = files_of(data_uri)
    ensure_data(config, lambda line: None, force=True)
    assert files_of(data_uri) == found


def test_what_other_text_or_settings_make_is_made_again(
    tmp_path: Path, text: Path, encoded: list[int]
) -> None:
    data_uri = str(tmp_path / "data")
    ended(config_of(data_uri, text), SystemExit(143))
    ended(config_of(data_uri, text, lowercase=True, min_count=2), SystemExit(143))
    encoded.clear()
    # Whatever was there: the second pair of one shard, with words of the same numbers.
    lines = (text / "train").read_text().split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    (text / "train").write_text("\n".join(lines))
    ensure_data(config_of(data_uri, text), lambda line: None)
    assert encoded == [7, 5]
    found = files_of(data_uri)
    ensure_data(config_of(data_uri, text), lambda line: None, force=True)
    assert files_of(data_uri) == found

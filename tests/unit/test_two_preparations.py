"""Preparations beside each other, and beside readers."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data import preparation
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.preparation import ensure_data
from dist_embed.data.prepared_folder import prepared_folder, publish, remove_others
from dist_embed.data.token_shards import PreparedData, read_tokens
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import StoreUnavailable, UserError
from dist_embed.storage import turns
from dist_embed.storage import uri as storage
from dist_embed.storage.turns import taking_turns
from tests.unit.small_corpus import one_is_this_process

OLD = Path(__file__).parent / "old_data" / "format-1"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("LOCK_SECONDS", "OBJECT_SECONDS"):
        monkeypatch.setattr(turns, name, 0.002)
    with one_is_this_process(1):
        yield


@pytest.fixture(params=["local", "store"])
def data_uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return (
        str(tmp_path / "data[12]") if request.param == "local" else f"memory://two/{tmp_path.name}"
    )


def config_of(data_uri: str, **tokenizer: Any) -> Config:
    generated = {"sentences": 12, "held_out": 2, "nouns": 6, "verbs": 3, "adjectives": 3}
    return config_from_dict({
        "run": {"uri": "/nowhere"}, "train": {"max_steps": 1}, "tokenizer": tokenizer,
        "data": {"uri": data_uri, "synthetic": generated, "num_processes": 1,
                 "shard_sentences": 7, "lexicon_translations": 2},
    })  # fmt: skip


def content(data_uri: str) -> dict[str, Any]:
    """All that a reader finds; fails where a file is not there."""
    folder = prepared_folder(data_uri)
    data = PreparedData.read(folder)
    shards = [shard for split in data.splits.values() for shard in split.shards]
    tokenizers = {side: t.to_json() for side, t in load_tokenizers(folder).items()}
    tokens = read_tokens(folder, shards)
    return {
        "data": data, "tokenizers": tokenizers, "source": tokens.source_tokens.tolist(),
        "target": tokens.target_tokens.tolist(), "lexicon": Lexicon(folder).index,
    }  # fmt: skip


def preparations(data_uri: str) -> list[str]:
    return [
        name for name in storage.names_in(data_uri) if re.fullmatch("prepared-[0-9a-f]{16}", name)
    ]


def test_one_prepares_and_the_others_use_it(data_uri: str) -> None:
    goes_on, has_begun = threading.Event(), threading.Event()
    found: dict[str, Any] = {}

    def say_first(line: str) -> None:
        if line == "encoding train":
            has_begun.set()
            assert goes_on.wait(30)

    def prepare_first() -> None:
        found["first"] = ensure_data(config_of(data_uri), say_first)

    said: list[str] = []

    def say_second(line: str) -> None:
        said.append(line)
        goes_on.set()

    def prepare_third() -> None:
        with pytest.raises(UserError) as told:
            ensure_data(config_of(data_uri, min_count=2), lambda line: None)
        found["third"] = str(told.value)

    threads = [threading.Thread(target=prepare_first), threading.Thread(target=prepare_third)]
    threads[0].start()
    assert has_begun.wait(30)
    threads[1].start()
    second = ensure_data(config_of(data_uri), say_second)
    for thread in threads:
        thread.join(30)
    assert said[0] == f"another process prepares data in {data_uri}: waiting for it, up to 24 h"
    assert [line for line in said if "lexicon" not in line] == said[:1]
    assert second == found["first"]
    assert "tokenizer.min_count: 1 there, 2 here" in found["third"]
    assert storage.names_in(data_uri) == ["data.json", *preparations(data_uri)]
    assert len(preparations(data_uri)) == 1


def test_a_reader_sees_the_old_or_the_new_whole(data_uri: str) -> None:
    ensure_data(config_of(data_uri), lambda line: None)
    before = content(data_uri)
    seen: list[str] = []

    def say(line: str) -> None:
        seen.append(line)
        assert content(data_uri) == before

    ensure_data(config_of(data_uri, min_count=2), say, force=True)
    # The lexicon is learned before the data that it belongs to count.
    assert {"encoding test", "learning the lexicon"} <= set(seen)
    after = content(data_uri)
    assert after["data"].settings["tokenizer.min_count"] == 2
    assert after["data"] != before["data"]
    assert len(preparations(data_uri)) == 1


def test_one_that_is_broken_off_leaves_what_was_there(data_uri: str) -> None:
    def say(line: str) -> None:
        if line == "encoding test":
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        ensure_data(config_of(data_uri), say)
    assert storage.names_in(data_uri) == []
    first = ensure_data(config_of(data_uri), lambda line: None)
    before, names = content(data_uri), preparations(data_uri)
    # Killed, it leaves a folder, which goes with the next; a user's own stays.
    storage.write_text(f"{data_uri}/prepared-de-en/mine.txt", "not ours")
    storage.write_text(
        f"{data_uri}/prepared-0123456789abcdef/train/shard-00000.parquet", "half of it"
    )
    with pytest.raises(ZeroDivisionError):
        ensure_data(config_of(data_uri, min_count=2), say, force=True)
    assert content(data_uri) == before
    assert preparations(data_uri) == sorted(["prepared-0123456789abcdef", *names])
    again = ensure_data(config_of(data_uri), lambda line: None, force=True)
    assert len(preparations(data_uri)) == 1
    assert preparations(data_uri) != names
    # The same text prepared again is the same to a run, whatever its folder is called.
    assert content(data_uri) == before
    assert again.splits["train"].identity() == first.splits["train"].identity()
    assert storage.names_in(f"{data_uri}/prepared-de-en") == ["mine.txt"]


def test_a_preparation_that_counts_and_is_told_as_failed_stays(
    data_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(uri: str, folder: str) -> None:
        publish(uri, folder)
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(preparation, "publish", silent)
    with pytest.raises(StoreUnavailable):
        ensure_data(config_of(data_uri), lambda line: None)
    content(data_uri)
    monkeypatch.setattr(preparation, "publish", None)
    ensure_data(config_of(data_uri), lambda line: None)


def test_a_silent_store_is_no_damage(data_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(data_uri)
    ensure_data(config, lambda line: None)
    folder = prepared_folder(data_uri)
    read_bytes = storage.read_bytes
    silent: list[str] = []

    def read(uri: str) -> bytes:
        if uri in silent:
            raise StoreUnavailable("no answer")
        return read_bytes(uri)

    monkeypatch.setattr(storage, "read_bytes", read)
    for name, reader in (
        (f"{data_uri}/data.json", prepared_folder), (f"{folder}/data.json", PreparedData.read),
        (f"{folder}/lexicon/lexicon.json", Lexicon),
    ):  # fmt: skip
        silent[:] = [name]
        with pytest.raises(StoreUnavailable):
            reader(data_uri if reader is prepared_folder else folder)
        with pytest.raises(StoreUnavailable):
            ensure_data(config, lambda line: None)


def test_who_is_not_alone_after_all_uses_what_the_other_prepares(
    data_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken for dead at a store, or on a file system whose locks count on one machine only."""
    monkeypatch.setattr(turns, "_locked", lambda *given: os.open(os.devnull, os.O_RDONLY))
    said: list[str] = []
    others: list[PreparedData] = []

    def say(line: str) -> None:
        said.append(line)
        if line == "encoding test" and not others:
            storage.remove(f"{data_uri}/preparing.json")
            others.append(ensure_data(config_of(data_uri), lambda line: None))

    assert [ensure_data(config_of(data_uri), say)] == others
    assert any("has begun to prepare data in" in line for line in said)
    assert len(preparations(data_uri)) == 1
    assert content(data_uri)["data"] == others[0]


def test_who_has_lost_its_turn_does_not_publish(tmp_path: Path) -> None:
    data_uri = f"memory://two/{tmp_path.name}"
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if said.count("encoding test") == 1 and line == "encoding test":
            storage.write_text(f"{data_uri}/preparing.json", "other 0\n")
        if "has begun to prepare data in" in line:
            assert storage.names_in(data_uri) == ["preparing.json"]
        if "waiting for it" in line:  # the other one ends without having prepared anything
            storage.remove(f"{data_uri}/preparing.json")

    ensure_data(config_of(data_uri), say)
    assert said.count("encoding test") == 2
    assert len(preparations(data_uri)) == 1


def test_data_prepared_before_give_way_to_new_ones(tmp_path: Path) -> None:
    data_uri = tmp_path / "data"
    shutil.copytree(OLD, data_uri)
    (data_uri / "train" / "mine.txt").write_text("not ours")
    assert prepared_folder(str(data_uri)) == str(data_uri)
    ensure_data(config_of(str(data_uri)), lambda line: None, force=True)
    content(str(data_uri))
    left = {path.relative_to(data_uri).as_posix() for path in data_uri.rglob("*.parquet")}
    assert not {name for name in left if name.startswith(("train/", "validation/"))}
    assert (data_uri / "train" / "mine.txt").exists()


def test_a_folder_that_is_named_and_gone_is_told(tmp_path: Path) -> None:
    data_uri = str(tmp_path / "data")
    ensure_data(config_of(data_uri), lambda line: None)
    folder = prepared_folder(data_uri)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=rf"{data_uri} names {folder}, where no prepared data are"):
        ensure_data(config_of(data_uri), lambda line: None)
    # What could lead out of it is no such folder.
    storage.write_text(f"{data_uri}/data.json", '{"folder": "prepared-/../.."}')
    assert prepared_folder(data_uri) == data_uri


def test_one_that_keeps_its_turn_for_too_long_is_told(
    data_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taking_turns(data_uri, "preparing", lambda: None):
        monkeypatch.setattr(
            preparation, "taking_turns",
            lambda uri, name, waiting: taking_turns(uri, name, waiting, longest=0.01),
        )  # fmt: skip
        said: list[str] = []
        told = rf"cannot prepare data in {re.escape(data_uri)}: .* did not end within"
        with pytest.raises(UserError, match=told):
            ensure_data(config_of(data_uri), said.append)
    assert len(said) == 1


def test_data_that_another_has_prepared_between_two_looks_are_used(
    data_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(data_uri)
    ensure_data(config, lambda line: None)
    old = prepared_folder(data_uri)
    second = ensure_data(config, lambda line: None, force=True)
    folders = [old]
    monkeypatch.setattr(
        preparation, "prepared_folder",
        lambda uri: folders.pop() if folders else prepared_folder(uri),
    )  # fmt: skip
    assert ensure_data(config, lambda line: None).folder_uri == second.folder_uri


def test_who_was_overtaken_removes_nothing(data_uri: str) -> None:
    ensure_data(config_of(data_uri), lambda line: None)
    before = content(data_uri)
    names = preparations(data_uri)
    remove_others(data_uri, f"{data_uri}/prepared-0123456789abcdef")
    assert preparations(data_uri) == names
    assert content(data_uri) == before


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "{}", '{"folder": 7}', '{"folder": "x"}'])
def test_an_index_that_names_no_folder_is_left_to_its_reader(data_uri: str, text: str) -> None:
    assert prepared_folder(data_uri) == data_uri  # there is none yet
    storage.write_text(f"{data_uri}/data.json", text)
    assert prepared_folder(data_uri) == data_uri

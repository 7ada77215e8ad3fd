"""Tables of words in folders: written, mapped, fetched once a machine, and proven."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dist_embed.data import proven_once
from dist_embed.data.proof import copy_proven
from dist_embed.data.token_shards import SIDES, PreparedData
from dist_embed.data.tokenizer import Tokenizer
from dist_embed.data.tokenizer_files import WordsPage, copy_tokenizers, load_tokenizers
from dist_embed.data.words_folder import some_words, write_words_folder
from dist_embed.errors import UserError
from dist_embed.run.data import digests_of_data, digests_of_tokenizers
from dist_embed.run.folder import OtherVocabulary, check_vocabularies
from dist_embed.storage import uri as storage
from dist_embed.storage.temporary import remove_abandoned, shared_folder

SIZES = {"source": 60, "target": 40}
MIB = 2**20


@pytest.fixture(autouse=True)
def own_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture(params=["local", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path)
        return
    yield "memory://words-of-a-test"
    storage.remove("memory://words-of-a-test")


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are fetched or proven."""
    seen: list[str] = []

    def noting(real: Any, uri: str, *others: Any) -> Any:
        seen.append(uri.rsplit("/", 1)[-1])
        return real(uri, *others)

    for name in ("prove_file", "copy_proven"):
        monkeypatch.setattr(proven_once, name, partial(noting, getattr(proven_once, name)))
    return seen


def test_tables_are_looked_at_once_a_machine(place: str, looked_at: list[str]) -> None:
    data = write_words_folder(f"{place}/data", SIZES)
    assert data == PreparedData.read(f"{place}/data")
    first = load_tokenizers(f"{place}/data", data)
    second = load_tokenizers(f"{place}/data", data)
    assert looked_at == ["words.source.arrow", "words.target.arrow"]
    for found in (first, second):
        for side, size in SIZES.items():
            library = Tokenizer.from_words(
                some_words(size - 4).to_pylist(), lowercase=False, split_punctuation=True
            )
            assert found[side].tokens() == library.tokens()
            assert found[side].json_digest == library.json_digest == data.digests[side]["tokenizer"]
            assert found[side].digest == library.digest
    assert digests_of_data(data) == digests_of_tokenizers(first)


def test_one_vocabulary_is_one_table(place: str) -> None:
    data = write_words_folder(f"{place}/data", {"source": 50, "target": 50})
    tables = [name for name in storage.names_in(f"{place}/data") if name.endswith(".arrow")]
    assert tables == ["words.source.arrow"]
    found = load_tokenizers(f"{place}/data", data)
    assert found["source"] is found["target"]


def test_a_damaged_table_is_refused(place: str, looked_at: list[str]) -> None:
    data = write_words_folder(f"{place}/data", SIZES)
    uri = f"{place}/data/words.target.arrow"
    content = bytearray(storage.read_bytes(uri))
    content[len(content) // 2] ^= 1
    storage.write_bytes(uri, bytes(content))
    for _ in range(2):  # what was found wrong is looked at again
        with pytest.raises(UserError, match=r"words\.target\.arrow is not the file that was"):
            load_tokenizers(f"{place}/data", data)
    with pytest.raises(UserError, match=r"words\.target\.arrow is not the file that was"):
        copy_tokenizers(data, f"{place}/run")
    assert not storage.exists(f"{place}/run/tokenizer.target.json")
    content[len(content) // 2] ^= 1
    storage.write_bytes(uri, bytes(content))
    assert load_tokenizers(f"{place}/data", data)["target"].size == SIZES["target"]


def test_a_local_table_that_was_replaced_is_proven_anew(tmp_path: Path) -> None:
    data = write_words_folder(f"{tmp_path}/data", SIZES)
    held = load_tokenizers(f"{tmp_path}/data", data)
    shutil.copy(tmp_path / "data" / "words.source.arrow", tmp_path / "other")
    os.replace(tmp_path / "other", tmp_path / "data" / "words.target.arrow")
    with pytest.raises(UserError, match=r"words\.target\.arrow is not the file that was"):
        load_tokenizers(f"{tmp_path}/data", data)
    assert held["target"].size == SIZES["target"]


def test_a_page_that_was_written_to_is_refused(tmp_path: Path) -> None:
    write_words_folder(f"{tmp_path}/data", SIZES)
    page = tmp_path / "data" / "tokenizer.source.json"
    page.write_text(page.read_text().replace('"size": 60', '"size": 61'))
    with pytest.raises(UserError, match=r"tokenizer\.source\.json cannot be read as a tokenizer"):
        load_tokenizers(f"{tmp_path}/data")


@pytest.mark.parametrize("name", ["../words.source.arrow", "/words.source.arrow", "config.yaml",
                                  "words.source.arrow\n", ""])  # fmt: skip
def test_a_page_of_others_names_no_other_file(tmp_path: Path, name: str) -> None:
    """A run gets a copy under that name."""
    write_words_folder(f"{tmp_path}/data", SIZES)
    page = WordsPage.of((tmp_path / "data/tokenizer.source.json").read_bytes())
    assert page
    with pytest.raises(ValueError, match="word_table"):
        WordsPage.of(replace(page, word_table=name).to_bytes())


def test_a_run_gets_the_tables_once(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_words_folder(f"{place}/data", SIZES)
    copy_tokenizers(data, f"{place}/run")
    assert digests_of_tokenizers(load_tokenizers(f"{place}/run")) == digests_of_data(data)
    with monkeypatch.context() as patch:
        patch.setattr("dist_embed.data.tokenizer_files.copy_proven", None)
        copy_tokenizers(data, f"{place}/run")
    storage.write_bytes(f"{place}/run/words.source.arrow", b"cut")
    copy_tokenizers(data, f"{place}/run")
    assert load_tokenizers(f"{place}/run")["source"].size == SIZES["source"]


def test_a_table_of_both_sides_is_copied_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_words_folder(f"{tmp_path}/data", {"source": 60, "target": 60})
    copied: list[str] = []

    def copy(uri: str, *others: Any) -> Any:
        copied.append(uri)
        return copy_proven(uri, *others)

    monkeypatch.setattr("dist_embed.data.tokenizer_files.copy_proven", copy)
    copy_tokenizers(data, f"{tmp_path}/run")
    assert copied == [f"{tmp_path}/data/words.source.arrow"]


def test_a_table_that_does_not_fit_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, own_temporary_files: Path
) -> None:
    data = write_words_folder("memory://words-without-room/data", SIZES)

    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(proven_once, "copy_proven", full)
        with pytest.raises(UserError, match=r"does not fit into .*takes [\d,]+ bytes .*TMPDIR"):
            load_tokenizers(data.folder_uri, data)
    (folder,) = own_temporary_files.iterdir()
    (folder / ".file.left").write_bytes(b"of a killed process")
    assert load_tokenizers(data.folder_uri, data)["source"].size == SIZES["source"]
    storage.remove("memory://words-without-room")


def test_a_run_of_before_goes_on_with_data_of_the_same_words(tmp_path: Path) -> None:
    data, run = write_words_folder(f"{tmp_path}/data", SIZES), tmp_path / "run"
    run.mkdir()
    for side in SIDES:
        text = load_tokenizers(f"{tmp_path}/data")[side].to_json()
        (run / f"tokenizer.{side}.json").write_text(text)
    check_vocabularies(str(run), data)
    before = load_tokenizers(str(run))
    assert not before["source"].on_disk
    assert digests_of_tokenizers(before) == digests_of_data(data)
    other = write_words_folder(f"{tmp_path}/other", SIZES | {"target": 41})
    with pytest.raises(OtherVocabulary, match="another target vocabulary"):
        check_vocabularies(str(run), other)


def test_a_shared_folder_stays_while_somebody_holds_it(own_temporary_files: Path) -> None:
    first, second = shared_folder("some"), shared_folder("some")
    assert first.path == second.path
    del first
    remove_abandoned()
    assert Path(second.path).is_dir()
    del second
    remove_abandoned()
    assert os.listdir(own_temporary_files) == []


# What a worker does about words: training, then translating. Free of PyTorch, which takes seconds.
WORKER = """
import sys
from dist_embed.data.token_shards import PreparedData
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.data.words_folder import some_words

def kept(*kinds):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return sum(int(lines[kind].split()[0]) * 1024 for kind in kinds)

texts = [" ".join(some_words(60).to_pylist()).replace("▁", "")] * 20
data = PreparedData.read(sys.argv[1])
assert data.digests["source"]
trained = kept("RssAnon", "RssFile")
tokenizers = load_tokenizers(sys.argv[1], data)
assert tokenizers["target"].decode(tokenizers["source"].encode(texts)) == texts
print(trained, kept("RssAnon"))
"""


def test_a_worker_holds_no_words(tmp_path: Path) -> None:
    held = []
    for size in (500, 200_000):  # which take 60 MiB where the library has them
        folder = f"{tmp_path}/{size}"
        write_words_folder(folder, {"source": size, "target": size})
        command = [sys.executable, "-c", WORKER, folder]
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
        held.append([int(number) for number in told.stdout.split()])
    growth = [large - small for small, large in zip(*held, strict=True)]
    print([f"{n / MIB:.1f} MiB" for n in growth])
    assert max(growth) < 8 * MIB

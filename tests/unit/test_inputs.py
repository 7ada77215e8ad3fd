"""Prepared data and the files that they were prepared from."""

from __future__ import annotations

import errno
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from dist_embed.config.load import config_from_dict
from dist_embed.config.schema import Config
from dist_embed.data import fitting, inputs, preparation
from dist_embed.data.corpus import ParallelText
from dist_embed.data.inputs import Comparison, InputFile, compare_inputs, record_inputs
from dist_embed.data.lexicon import Lexicon
from dist_embed.data.prepare import read_counts
from dist_embed.data.prepared_folder import prepared_folder
from dist_embed.data.processes import ThisMachine
from dist_embed.data.text.rows import CorpusError
from dist_embed.data.token_shards import (
    PreparedData,
    ShardInfo,
    Split,
    read_texts,
    read_tokens,
)
from dist_embed.data.tokenizer_files import load_tokenizers
from dist_embed.errors import StoreUnavailable, UserError
from dist_embed.observe.events import Watch, unwatched
from dist_embed.storage import uri as storage
from dist_embed.storage.turns import taking_turns
from dist_embed.study import unchanged
from tests.unit.small_corpus import one_is_this_process, prepare, sentences

Item = TypeVar("Item")
OLD = Path(__file__).parent / "old_data" / "format-1"
TEXTS = {
    "s.txt": "a b c\nd e f\nb d\na f c e\n", "t.txt": "x y z\nu v w\ny u\nx w z v\n",
    "v.tsv": "source\ttarget\na b\tx y\nd f\tu w\n",
}  # fmt: skip
# Of the same size as s.txt.
OTHER_TEXT = "a b c\nd e f\nd b\na f c e\n"


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)


def config_of(source: Any = "s.txt", **data: Any) -> Config:
    values = {
        "uri": "data", "train": {"source": source, "target": "t.txt"},
        "validation": {"pairs": "v.tsv"}, "num_processes": 1, "shard_sentences": 3,
        "lexicon_translations": 2,
    }  # fmt: skip
    return config_from_dict({
        "run": {"uri": "run"}, "train": {"max_steps": 1}, "data": values | data,
        "tokenizer": {"shared": False}, "model": {"share_embeddings": "none"},
    })  # fmt: skip


def with_form(config: Config, form: Any) -> Config:
    tokenizer = config.tokenizer.model_copy(update={"normalize": form})
    return config.model_copy(update={"tokenizer": tokenizer})


def ensured(config: Config, **options: Any) -> tuple[PreparedData, list[str]]:
    said: list[str] = []
    with one_is_this_process(1):
        return preparation.ensure_data(config, said.append, **options), said


def counting() -> tuple[Watch, Counter[tuple[str, str]]]:
    """A `Watch` that counts what it passes on."""
    watched = Counter[tuple[str, str]]()

    def watch(what: str, items: Iterable[Item], unit: str = "pairs") -> Iterator[Item]:
        for item in items:
            watched[what, unit] += 1
            yield item

    return watch, watched


def digests_counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    read: list[str] = []
    original = storage.sha256_of
    monkeypatch.setattr(
        storage, "sha256_of", lambda uri, *how: (read.append(uri), original(uri, *how))[1]
    )
    return read


def test_a_replaced_corpus_is_refused_and_prepared_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = ensured(config_of())
    assert first.inputs is not None
    assert set(first.inputs) == {"train.source", "train.target", "validation.pairs"}
    read = digests_counted(monkeypatch)
    assert ensured(config_of(), renew=True) == (first, [])
    assert read == []  # size and time were enough

    for text, difference in (
        (OTHER_TEXT, r"s\.txt: other content than when"),
        (TEXTS["s.txt"] + "a\n", r"s\.txt: 24 bytes when it was prepared, 26 now"),
    ):
        (tmp_path / "s.txt").write_text(text)
        os.utime(tmp_path / "s.txt", (1, 1))
        with pytest.raises(UserError, match=rf"{difference}[^$]*dist-embed prepare CONFIG") as told:
            ensured(config_of())
        assert "t.txt" not in str(told.value)
    assert read == ["s.txt"]
    (tmp_path / "s.txt").write_text(OTHER_TEXT)
    second, said = ensured(config_of(), renew=True)
    assert said[0].startswith("preparing anew: the corpora have changed since:\n  ")
    assert "s.txt: other content" in said[0]
    assert second != first
    assert ensured(config_of()) == (second, [])
    # The lexicon goes with the data.
    assert Lexicon(prepared_folder("data")).index.data == second.digest()


def test_a_copied_or_moved_corpus_is_none_that_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = ensured(config_of())
    shutil.copy(tmp_path / "s.txt", tmp_path / "copy.txt")
    os.utime(tmp_path / "copy.txt", (1, 1))
    (tmp_path / "s.txt").write_text("another\n")
    read = digests_counted(monkeypatch)
    data, said = ensured(config_of("copy.txt"))
    assert data == first
    assert [line.split(" than ")[0] for line in said] == [
        "1 files of the corpora have another name or time"
    ]
    # `prepare` writes down what they are called by now, and does not learn the lexicon again.
    data, said = ensured(config_of("copy.txt"), renew=True)
    assert (data.digest(), len(said)) == (first.digest(), 1)
    assert read == ["copy.txt"] * 2
    assert ensured(config_of("copy.txt")) == (data, [])
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "copy.txt", tmp_path / "elsewhere")
    assert ensured(config_of("elsewhere/copy.txt"), renew=True)[0].digest() == data.digest()
    assert ensured(config_of("elsewhere/copy.txt")) == (PreparedData.read(data.folder_uri), [])
    assert read == ["copy.txt", "copy.txt", "elsewhere/copy.txt"]
    # One of another content and name may be meant for another folder: nothing is removed for it.
    (tmp_path / "other.txt").write_text(OTHER_TEXT)
    with pytest.raises(UserError, match=r"other\.txt: other content[^$]*prepare CONFIG --force"):
        ensured(config_of("other.txt"), renew=True)
    # One of another name that is not there cannot be compared, and so is no obstacle.
    assert ensured(config_of("gone.txt"))[0].digest() == data.digest()
    # A corpus that there was none of is another setting.
    with pytest.raises(UserError, match=r"data\.test\.pairs: None there, 'v\.tsv' here"):
        ensured(config_of("elsewhere/copy.txt", test={"pairs": "v.tsv"}))


def test_prepared_data_need_no_corpora(tmp_path: Path) -> None:
    first, _ = ensured(config_of())
    (tmp_path / "s.txt").unlink()
    (tmp_path / "v.tsv").unlink()
    for renew in (False, True):
        data, said = ensured(config_of(), renew=renew)
        assert data == first
        assert len(said) == 1
        assert said[0].endswith("is not known: s.txt is not there; v.tsv is not there")
    (tmp_path / "t.txt").write_text(TEXTS["t.txt"].upper())
    with pytest.raises(UserError, match=r"t\.txt: other content"):
        ensured(config_of())


def test_another_set_of_files_is_a_change(tmp_path: Path) -> None:
    lines = TEXTS["s.txt"].splitlines(keepends=True)
    for name, text in (("part1", lines[:2]), ("part2", lines[2:])):
        (tmp_path / f"s.{name}").write_text("".join(text))
    for name, text in (("part1", "x y z\nu v w\n"), ("part2", "y u\nx w z v\n")):
        (tmp_path / f"t.{name}").write_text(text)
        os.utime(tmp_path / f"s.{name}", (1, 1))
    config = config_of(train={"source": "s.part*", "target": "t.part*"})
    first, _ = ensured(config)
    for side in "st":
        (tmp_path / f"{side}.part3").write_text("a\n")
    with pytest.raises(UserError, match=r"train\.source: 2 files .*, 3 now \(new: .*s\.part3\)"):
        ensured(config)
    for side in "st":
        (tmp_path / f"{side}.part3").unlink()
    assert ensured(config) == (first, [])
    # Other names, by which they are read in another order.
    shutil.move(tmp_path / "s.part1", tmp_path / "s.part9")
    with pytest.raises(UserError, match=r"s\.part2: other content than when"):
        ensured(config)


def test_a_corpus_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    def say(line: str) -> None:
        if line == "encoding validation":
            (tmp_path / "s.txt").write_text(OTHER_TEXT)

    corpora = {
        "train": ParallelText(("s.txt",), ("t.txt",)), "validation": ParallelText(pairs=("v.tsv",))
    }  # fmt: skip
    os.utime(tmp_path / "s.txt", (1, 1))
    with pytest.raises(CorpusError, match=r"s\.txt was changed while data were prepared from it"):
        prepare(tmp_path / "data", corpora, say=say)
    assert not (tmp_path / "data" / "data.json").exists()


@pytest.mark.parametrize("times", [True, False])
def test_inputs_may_lie_at_urls(times: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "memory://inputs/p.tsv.gz"
    storage.write_bytes(uri, b"stored bytes")
    if not times:  # some servers give none
        monkeypatch.setattr(storage, "_TIMES", ())
    corpora = {"test": ParallelText(pairs=(uri,))}
    recorded = record_inputs(corpora, lambda line: None)
    (file,) = recorded["test.pairs"]
    assert (file.uri, file.size_bytes) == (uri, 12)
    assert (file.modified is not None) is times
    read = digests_counted(monkeypatch)
    said: list[str] = []
    found = compare_inputs(recorded, corpora, said.append)
    assert (found.changed, found.copied, found.absent, said) == ([], [], [], [])
    assert read == ([] if times else [uri])
    storage.write_bytes(uri, b"other  bytes")
    monkeypatch.setattr(inputs, "_LARGE_BYTES", 12)
    found = compare_inputs(recorded, corpora, said.append)
    assert said == [f"reading {uri} to see whether it has changed"]
    assert found.changed == [f"{uri}: other content than when it was prepared"]
    unreachable = {"test": ParallelText(pairs=("nothing-of-that-kind://x",))}
    assert "nothing-of-that-kind" in compare_inputs(recorded, unreachable, said.append).absent[0]


def test_generated_text_has_no_inputs() -> None:
    generated = {"sentences": 8, "held_out": 2, "nouns": 6, "verbs": 3, "adjectives": 3}
    config = config_of(train=None, validation=None, synthetic=generated)
    data, _ = ensured(config)
    assert data.inputs == {}
    assert ensured(config, renew=True) == (data, [])


def test_data_prepared_before_go_on(tmp_path: Path) -> None:
    shutil.copytree(OLD, tmp_path / "data")
    before = (tmp_path / "data" / "data.json").read_bytes()
    for renew in (False, True):
        data, said = ensured(config_of(), renew=renew)
        assert [line.split(":")[0] for line in said] == [
            "data was prepared before data carried digests",
            "data does not say what it was prepared from",
        ]
        assert data.inputs is None
        # Its text is what a lexicon knows its data by.
        assert (tmp_path / "data" / "data.json").read_bytes() == data.to_json().encode() == before
    assert data.splits["train"].identity() == "4 pairs in 2 shards (f3e5f26b26b20966)"
    assert prepared_folder("data") == "data"
    assert ensured(with_form(config_of(), "none"))[0] == data
    with pytest.raises(UserError, match=r"tokenizer.normalize: 'none' there, 'nfc' here"):
        ensured(with_form(config_of(), "nfc"))
    again, _ = ensured(with_form(config_of(uri="again"), "none"))
    folder = prepared_folder("again")
    assert again.splits.keys() == data.splits.keys()
    for name, split in data.splits.items():
        assert again.splits[name].identity() == split.identity()
        old, new = read_tokens("data", split.shards), read_tokens(folder, again.splits[name].shards)
        assert sentences(old) == sentences(new)
    assert read_texts("data", data.splits["validation"]) == (["a b", "d f"], ["x y", "u w"])
    for side in ("source", "target"):
        assert read_counts(data, side).tolist() == read_counts(again, side).tolist()
        tokenizers = [load_tokenizers(uri)[side].to_json() for uri in ("data", folder)]
        assert tokenizers[0] == tokenizers[1]


def test_what_is_written_is_read_again() -> None:
    file = InputFile("ä.txt", None, "Fri, 01 Jan 2027", "00")
    data = PreparedData({}, {"source": 1, "target": 1}, False, {}, inputs={"train.pairs": [file]})
    storage.write_text("data/data.json", data.to_json())
    assert PreparedData.read("data") == data
    storage.write_text("data/data.json", replace(data, inputs=None).to_json())
    assert PreparedData.read("data").inputs is None


def test_a_large_corpus_takes_a_while_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = {"train": ParallelText(("s.txt",), ("t.txt",))}
    said: list[str] = []
    record_inputs(corpora, said.append)
    assert said == []
    monkeypatch.setattr(inputs, "_LARGE_BYTES", sum(map(len, (TEXTS["s.txt"], TEXTS["t.txt"]))))
    record_inputs(corpora, said.append)
    assert said == ["taking digests of 2 files, 0.0 GiB"]
    recorded = record_inputs(corpora, lambda line: None)
    os.utime("s.txt", (1, 1))
    assert compare_inputs(recorded, corpora, said.append).copied == ["s.txt"]
    assert len(said) == 1  # smaller than what takes a while


def test_how_far_files_are_read_for_their_digests_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "_DIGEST_BLOCK_BYTES", 10)
    corpora = {"train": ParallelText(("s.txt",), ("t.txt",))}
    watch, watched = counting()
    recorded = record_inputs(corpora, print, watch)
    blocks = {name: -(-len(TEXTS[name]) // 10) for name in ("s.txt", "t.txt")}
    assert watched == {(f"taking the digest of {n}", "MiB"): blocks[n] for n in blocks}
    assert recorded == record_inputs(corpora, print)
    os.utime("s.txt", (1, 1))
    watched.clear()
    assert compare_inputs(recorded, corpora, print, watch).copied == ["s.txt"]
    assert watched == {("taking the digest of s.txt", "MiB"): blocks["s.txt"]}


def test_who_asks_for_data_sees_their_digests_taken() -> None:
    watch, watched = counting()
    ensured(config_of(), watch=watch)
    digests = [what for what, unit in watched if unit == "MiB"]
    assert digests == [f"taking the digest of {name}" for name in ("s.txt", "t.txt", "v.tsv")]
    os.utime("t.txt", (1, 1))
    watched.clear()
    ensured(config_of(), watch=watch)
    assert watched == {("taking the digest of t.txt", "MiB"): 1}


def test_a_study_says_lines_alone_as_it_looks_at_corpora() -> None:
    ensured(config_of())
    os.utime("t.txt", (1, 1))
    said: list[str] = []
    unchanged.check_corpora([config_of()], said.append)
    assert [line.partition(" ")[0] for line in said] == ["1"]  # "1 files of the corpora have …"


@pytest.mark.parametrize("kind", ["synthetic", "inflected"])
def test_how_far_a_corpus_is_generated_is_shown(kind: str) -> None:
    generated = {"sentences": 9, "held_out": 2, "nouns": 6, "verbs": 3, "adjectives": 3}
    data = {"train": None, "validation": None, kind: generated, "lexicon_translations": 0}
    watch, watched = counting()
    ensured(config_of(**data), watch=watch)
    sizes = {"train": 9, "validation": 2, "test": 2}
    assert {
        what: number for (what, _), number in watched.items() if what.startswith("generating")
    } == {f"generating {name}": size for name, size in sizes.items()}
    assert all(unit == "pairs" for _, unit in watched)


def test_a_file_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    corpora = {"train": ParallelText(("s.txt",), ("t.txt",))}
    recorded = record_inputs(corpora, lambda line: None)

    def fail(uri: str, *how: object) -> str:
        raise OSError("bad block")

    monkeypatch.setattr(storage, "sha256_of", fail)
    with pytest.raises(CorpusError, match=r"cannot read s\.txt: bad block"):
        record_inputs(corpora, lambda line: None)
    os.utime("s.txt", (1, 1))
    found = compare_inputs(recorded, corpora, lambda line: None)
    assert (found.absent, found.changed, found.copied) == (["cannot read s.txt: bad block"], [], [])
    monkeypatch.setattr(storage, "stamp", fail)
    with pytest.raises(CorpusError, match=r"cannot read s\.txt: bad block"):
        inputs.check_unchanged(recorded)


def test_files_that_are_more_or_fewer_are_named_up_to_three(tmp_path: Path) -> None:
    for name in "abcdefg":
        (tmp_path / f"{name}.tsv").write_text("source\ttarget\n")

    def compared(before: str, now: str) -> Comparison:
        sides = [
            {"train": ParallelText(pairs=tuple(f"{name}.tsv" for name in names))}
            for names in (before, now)
        ]
        recorded = record_inputs(sides[0], lambda line: None)
        return compare_inputs(recorded, sides[1], lambda line: None)

    for before, now, told in (
        ("a", "fedcba", "1 files when it was prepared, 6 now "
         "(new: b.tsv, c.tsv, d.tsv and 2 more)"),
        ("abcd", "d", "4 files when it was prepared, 1 now (gone: a.tsv, b.tsv, c.tsv)"),
        ("ab", "bcd", "2 files when it was prepared, 3 now (new: c.tsv, d.tsv; gone: a.tsv)"),
        ("ab", "aba", "2 files when it was prepared, 3 now (the same ones)"),
    ):  # fmt: skip
        found = compared(before, now)
        assert found.changed == [f"data.train.pairs: {told}"]
        assert (found.absent, found.copied) == ([], [])
    # Of one that is not there nobody knows which of the others it was.
    recorded = record_inputs({"train": ParallelText(pairs=("a.tsv", "b.tsv"))}, print)
    now = {"train": ParallelText(pairs=("b.tsv", "gone*.tsv", "c.tsv"))}
    found = compare_inputs(recorded, now, print)
    assert (len(found.absent), found.changed, found.copied) == (1, [], [])
    # What is recorded stays as it was.
    assert found.now == recorded


def test_what_data_were_prepared_with_before_is_what_the_defaults_do_now() -> None:
    """Keys that came later are not there in the settings of earlier data."""
    data, _ = ensured(config_of())
    assert data.settings["tokenizer.oov_buckets"] == data.settings["data.max_sentences"] == 0
    before = {key: value for key, value in data.settings.items()
              if key not in ("tokenizer.oov_buckets", "data.max_sentences",
                             "data.max_length_ratio")}  # fmt: skip
    earlier = replace(data, settings=before)
    storage.write_text(storage.join(data.folder_uri, "data.json"), earlier.to_json())
    assert ensured(config_of())[0] == earlier
    with pytest.raises(UserError) as told:
        ensured(config_of(max_sentences=3, shard_sentences=4, max_length_ratio=9))
    assert str(told.value).splitlines()[1:4] == [
        "  data.max_length_ratio: None there, 9.0 here", "  data.max_sentences: 0 there, 3 here",
        "  data.shard_sentences: 3 there, 4 here",
    ]  # fmt: skip


def test_data_without_an_index_of_blocks_are_told_once_to_several_workers() -> None:
    data, said = ensured(config_of())
    told = "data was prepared before parts of its shards could be read"
    assert not [line for line in said if told in line]
    files = {name: file for name, file in data.files.items() if "blocks" not in name}
    before = replace(data, files=files)
    storage.write_text(storage.join(data.folder_uri, "data.json"), before.to_json())
    for workers, times in ((2, 1), (1, 0)):
        config = config_of(lexicon_translations=0)
        cluster = config.cluster.model_copy(update={"num_workers": workers})
        found, said = ensured(config.model_copy(update={"cluster": cluster}))
        assert found == before
        assert len([line for line in said if told in line]) == times


def test_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = {
        "train": Split([ShardInfo("s", 1200, 7, 9)], 1000, 2, dropped_ratio=3),
        "validation": Split([ShardInfo("s", 3, 7, 9)], cut=4),
        "test": Split([ShardInfo("s", 1, 7, 9)]),
    }
    data = PreparedData({}, {"source": 9, "target": 9}, False, splits)
    monkeypatch.setattr(preparation, "prepare_data", lambda *_, **more: data)
    said: list[str] = []
    preparation._prepare(
        config_of(max_tokens=3, max_length_ratio=2),
        "folder",
        {},
        said.append,
        ThisMachine(1),
        unwatched,
    )
    assert said == [
        "train: 1,200 pairs, 9 target tokens "
        "(1,000 dropped with an empty side, 2 dropped as longer than 3 tokens, "
        "3 dropped with one side over 2.0 times the other)",
        "validation: 3 pairs, 9 target tokens (4 cut at 3 tokens)",
        "test: 1 pairs, 9 target tokens",
    ]


def test_nothing_is_written_down_in_data_that_others_have_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(lexicon_translations=0)
    ensured(config)
    os.utime(tmp_path / "s.txt", (1, 1))
    compared = fitting.compare_inputs

    def replaced_meanwhile(*given: Any) -> Comparison:
        found = compared(*given)
        monkeypatch.setattr(fitting, "compare_inputs", compared)
        with one_is_this_process(1):
            preparation.ensure_data(config, lambda line: None, force=True)
        return found

    monkeypatch.setattr(fitting, "compare_inputs", replaced_meanwhile)
    before, said = ensured(config, renew=True)
    assert not Path(before.folder_uri).exists()
    assert said[-1].startswith("it could not be written down: ")


def test_what_files_are_called_by_now_is_written_down_without_a_wait(tmp_path: Path) -> None:
    config = config_of(lexicon_translations=0)
    ensured(config)
    os.utime(tmp_path / "s.txt", (1, 1))
    with taking_turns(config.data.uri, "preparing", lambda: None):
        _, said = ensured(config, renew=True)
    assert said[-1].startswith("it could not be written down: another process did not end")
    assert ensured(config, renew=True)[1] == said[:-1]
    assert ensured(config)[1] == []


def test_others_data_are_used_where_nothing_can_be_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = ensured(config_of())
    os.utime(tmp_path / "s.txt", (1, 1))

    for error in (PermissionError("not yours"), OSError(errno.EROFS, "not yours"),
                  StoreUnavailable("not yours")):  # fmt: skip

        def refuse(uri: str, text: str, error: Exception = error) -> None:
            raise error

        with monkeypatch.context() as patched:
            patched.setattr(storage, "write_text", refuse)
            data, said = ensured(config_of(), renew=True)
        assert data.digest() == first.digest()
        assert said[-1].startswith("it could not be written down: ")
        assert said[-1].endswith("not yours")
    assert "; `dist-embed prepare CONFIG` writes it down" in ensured(config_of())[1][0]
